package packet_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// bare puts an IP packet into the batch as a frame without Ethernet header, behind room bytes of another frame's.
func bare(b *packet.Batch, ip []byte, room int) *packet.Frame {
	b.Reset()
	slot := b.Slot(len(ip))
	copy(slot, bytes.Repeat([]byte{0xee}, room))
	copy(slot[room:], ip)
	b.Claim(room + len(ip))
	f := b.Append(slot, room, room+len(ip))
	f.Detached = true
	return f
}

// inFront reports whether the bytes in front of a bare frame are as they were.
func inFront(f *packet.Frame, room int) bool {
	b := f.Bytes()
	front := f.Slot()[:room]
	return f.Start() == room && bytes.Count(front, []byte{0xee}) == room && len(b) > 0
}

// A bare packet reads like the same one behind an Ethernet header, whose header is beside it then.
func checkBare(t *testing.T, one, two *packet.Batch, ip []byte, vnet packet.VNet) {
	t.Helper()
	const room = 5 // less than an Ethernet header
	link := [14]byte{12: 0x08}
	if len(ip) > 0 && ip[0]>>4 == 6 {
		link[12], link[13] = 0x86, 0xdd
	}
	f, g := bare(one, ip, room), load(two, append(link[:], ip...))
	f.VNet, g.VNet = vnet, vnet
	got, want := parse(f), parse(g)
	if f.L2 != room-packet.EthernetLen || f.L3 != room {
		t.Fatalf("offsets %d, %d of a frame at %d", f.L2, f.L3, room)
	}
	if len(ip) > 0 && ip[0]>>4 != 4 && ip[0]>>4 != 6 {
		want = parseResult{Verdict: packet.DropIPHeader, L2: g.L2, L3: g.L3, Segments: 1, Len: want.Len}
	}
	if len(ip) == 0 {
		want.EtherType = 0
	}
	for _, at := range []*int{&want.L2, &want.L3, &want.L4, &want.Payload} {
		if *at != 0 {
			*at += room - packet.EthernetLen - packet.Headroom
		}
	}
	want.Len -= packet.EthernetLen
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatalf("%x: with Ethernet header (-) and bare (+):\n%s", ip, diff)
	}
	if got.Verdict == packet.None {
		checkBareLink(t, f, room)
	}
}

func checkBareLink(t *testing.T, f *packet.Frame, room int) {
	f.SetMACs(packet.MAC{1, 2, 3, 4, 5, 6}, packet.MAC{7, 8, 9, 10, 11, 12})
	want := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, byte(f.EtherType >> 8), byte(f.EtherType)}
	if !bytes.Equal(f.DetachedLink(), want) || f.DstMAC() != (packet.MAC{1, 2, 3, 4, 5, 6}) {
		t.Fatalf("Ethernet header %x, want %x", f.DetachedLink(), want)
	}
	if _, ok := f.Prepend(1); ok || !inFront(f, room) {
		t.Fatal("what lies in front of a bare frame is not its own")
	}
}

func TestBareFrames(t *testing.T) {
	r := newRand(t)
	one, two := packet.NewBatch(0), packet.NewBatch(0)
	checkBare(t, one, two, nil, packet.VNet{})
	for range 2000 {
		ip := randomStack(r, 100).bytes(t)[packet.EthernetLen:]
		switch r.IntN(4) {
		case 0:
			ip = ip[:r.IntN(len(ip))]
		case 1:
			ip[r.IntN(len(ip))] ^= 1 << r.IntN(8)
		}
		checkBare(t, one, two, ip, packet.VNet{})
	}
}

// Offload work on a bare frame leaves what a frame with an Ethernet header has, and nothing in front is touched.
func TestBareOffload(t *testing.T) {
	r := newRand(t)
	b, whole := packet.NewBatch(0), packet.NewBatch(0)
	for range 300 {
		s := randomSuper(r)
		g := s.frame(t, whole)
		for _, room := range []int{0, 5, 100} {
			f := bare(b, g.Bytes()[packet.EthernetLen:], room)
			f.VNet = g.VNet
			if v := f.Parse(); v != packet.None || f.SegmentLen() != g.SegmentLen() {
				t.Fatalf("%v, segments of %d, want %d", v, f.SegmentLen(), g.SegmentLen())
			}
			checkBareSegments(t, f, s.segments(t))
			if !inFront(f, room) {
				t.Fatal("bytes in front of the frame changed")
			}
		}
	}
}

func checkBareSegments(t *testing.T, f *packet.Frame, want [][]byte) {
	t.Helper()
	cut := packet.NewSegmenter(f)
	for i, segment := range want {
		header := make([]byte, cut.HeaderLen())
		payload, ok := cut.Next(header)
		if got := append(header, payload...); !ok || !bytes.Equal(got, segment[packet.EthernetLen:]) {
			t.Fatalf("segment %d of %d:\ngot  %x\nwant %x", i, len(want), got, segment[packet.EthernetLen:])
		}
	}
}

// A frame with an Ethernet header that a codec has stripped is cut and completed as a bare one is.
func TestStrippedOffload(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 300 {
		s := randomSuper(r)
		f := s.frame(t, b)
		f.Strip(packet.EthernetLen)
		checkBareSegments(t, f, s.segments(t))
		s.payload = randomBytes(r, r.IntN(1000))
		for _, isBare := range []bool{false, true} {
			want := s.bytes(t)
			data := partial(s.stack, bytes.Clone(want))
			f := load(b, data)
			if isBare {
				f = bare(b, data[packet.EthernetLen:], 3)
			}
			f.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: uint16(s.l4()), CsumOffset: uint16(s.checksumAt() - s.l4())}
			if v := f.Parse(); v != packet.None {
				t.Fatal(v)
			}
			if !isBare {
				f.Strip(packet.EthernetLen)
			}
			if f.CompleteChecksum(); !bytes.Equal(f.Bytes(), want[packet.EthernetLen:]) {
				t.Fatalf("completed, bare %v:\ngot  %x\nwant %x", isBare, f.Bytes(), want[packet.EthernetLen:])
			}
		}
	}
}

func TestBareAdoptOffload(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 100 {
		s := randomSuper(r)
		s.gsoSize = 500 + r.IntN(700)
		s.payload = randomBytes(r, s.gsoSize*(1+r.IntN(40))+r.IntN(s.gsoSize))
		f := bare(b, partial(s.stack, s.bytes(t))[packet.EthernetLen:], 0)
		if v := f.Parse(); v != packet.None {
			t.Fatal(v)
		}
		if v := f.AdoptOffload(testMTU, testMTU, s.gsoSize); v != packet.None || int(f.VNet.CsumStart) != s.l4() || f.VNet.GSOType != s.gsoType() {
			t.Fatalf("%v, %+v", v, f.VNet)
		}
		checkBareSegments(t, f, s.segments(t))
	}
}

// FuzzParseBare: a bare packet reads like the same one behind an Ethernet header.
func FuzzParseBare(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 0))
	for range 20 {
		f.Add(randomStack(r, 40).bytes(f)[packet.EthernetLen:], false)
	}
	one, two := packet.NewBatch(0), packet.NewBatch(0)
	f.Fuzz(func(t *testing.T, ip []byte, needsCsum bool) {
		if len(ip) > packet.MaxFrame-packet.EthernetLen {
			return
		}
		vnet := packet.VNet{}
		if needsCsum {
			vnet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 6}
		}
		checkBare(t, one, two, ip, vnet)
	})
}
