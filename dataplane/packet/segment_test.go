package packet_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// super is a super-packet: a stack with all the payload and the size of its segments.
type super struct {
	stack
	gsoSize int
}

// frame returns the super-packet as a TAP hands it over: the L4 checksum is only the
// pseudo-header's sum.
func (s super) frame(t testing.TB, b *packet.Batch) *packet.Frame {
	t.Helper()
	f := load(b, partial(s.stack, s.bytes(t)))
	f.VNet = packet.VNet{
		Flags: packet.VNetNeedsCsum, GSOType: packet.GSOTCPv4, GSOSize: uint16(s.gsoSize),
		CsumStart: uint16(s.l4()), CsumOffset: uint16(s.checksumAt() - s.l4()),
	}
	f.VNet.GSOType = s.gsoType()
	if v := f.Parse(); v != packet.None {
		t.Fatalf("Parse of a super-packet: %v", v)
	}
	return f
}

func (s super) gsoType() uint8 {
	switch {
	case s.udp != nil:
		return packet.GSOUDPL4
	case s.ip6 != nil:
		return packet.GSOTCPv6
	}
	return packet.GSOTCPv4
}

// partial overwrites the L4 checksum with the pseudo-header's sum alone.
func partial(s stack, data []byte) []byte {
	ip := data[packet.EthernetLen:]
	binary.BigEndian.PutUint16(data[s.checksumAt():], naivePseudo(ip, len(ip)))
	return data
}

// segments is the wire as gopacket writes it: what a kernel's GSO makes of the super-packet
// (net/ipv4/af_inet.c inet_gso_segment, tcp_offload.c tcp_gso_segment, udp_offload.c).
func (s super) segments(t testing.TB) [][]byte {
	t.Helper()
	count := max(1, (len(s.payload)+s.gsoSize-1)/s.gsoSize)
	var all [][]byte
	for i := range count {
		one, at := s.stack, i*s.gsoSize
		one.payload = s.payload[at:min(at+s.gsoSize, len(s.payload))]
		one.ip.Id += uint16(i)
		if s.tcp != nil {
			tcp := *s.tcp
			tcp.Seq += uint32(at)
			tcp.CWR = tcp.CWR && i == 0
			tcp.FIN = tcp.FIN && i == count-1
			tcp.PSH = tcp.PSH && i == count-1
			one.tcp = &tcp
		}
		all = append(all, one.bytes(t))
	}
	return all
}

func randomSuper(r *rand.Rand) super {
	s := super{stack: stack{ip: randomIPv4(r)}}
	s.ip.Flags, s.ip.FragOffset = s.ip.Flags&layers.IPv4DontFragment, 0
	if r.IntN(2) == 0 {
		s.stack = s.randomIPv6(r, r.IntN(2) == 0)
		s.ext = slices.DeleteFunc(s.ext, func(e extension) bool { return e.proto == 44 && e.data[2]|e.data[3]&^6 != 0 })
	}
	s.ip.Protocol = layers.IPProtocolTCP
	if s.tcp, s.udp = randomTCP(r), nil; r.IntN(3) == 0 {
		s.tcp, s.udp = nil, randomUDP(r)
		s.ip.Protocol = layers.IPProtocolUDP
	} else if r.IntN(2) == 0 {
		s.tcp.Seq = -uint32(r.IntN(1 << 16)) // wraps around
	}
	if r.IntN(2) == 0 {
		s.ip.Id = -uint16(r.IntN(20))
	}
	s.gsoSize = 1 + r.IntN(3000)
	segments := 1 + r.IntN(min(60, 60000/s.gsoSize))
	s.payload = randomBytes(r, segments*s.gsoSize)
	if r.IntN(3) > 0 { // a short last segment
		s.payload = s.payload[r.IntN(s.gsoSize):]
	}
	return s
}

// checkSegments cuts the frame, with encapsulation in front, and compares byte by byte.
func checkSegments(t *testing.T, f *packet.Frame, encapsulation []byte, want [][]byte) {
	t.Helper()
	if f.Segments != len(want) {
		t.Fatalf("Segments is %d, %d are to leave", f.Segments, len(want))
	}
	if header, ok := f.Prepend(len(encapsulation)); ok {
		copy(header, encapsulation)
	}
	cut := packet.NewSegmenter(f)
	for i, segment := range want {
		header := make([]byte, cut.HeaderLen())
		payload, ok := cut.Next(header)
		if !ok {
			t.Fatalf("segment %d of %d is missing", i, len(want))
		}
		got := append(header, payload...)
		if !bytes.Equal(got, append(append([]byte(nil), encapsulation...), segment...)) {
			t.Fatalf("segment %d of %d:\ngot  %x\nwant %x + %x", i, len(want), got, encapsulation, segment)
		}
		if err := verifies(got[len(encapsulation)+packet.EthernetLen:]); err != nil {
			t.Fatalf("segment %d of %d: %v", i, len(want), err)
		}
	}
	if _, ok := cut.Next(make([]byte, cut.HeaderLen())); ok {
		t.Fatalf("a segment more than %d", len(want))
	}
}

func TestSegmenterMatchesKernelGSO(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 400 {
		s := randomSuper(r)
		checkSegments(t, s.frame(t, b), randomBytes(r, 8*r.IntN(2)), s.segments(t))
	}
}

func TestSegmenterEdges(t *testing.T) {
	tests := []struct {
		name             string
		payload, gsoSize int
	}{
		{"one byte", 1, 1}, {"one segment, full", 1448, 1448}, {"one segment, short", 100, 1448},
		{"two segments, full", 2896, 1448}, {"one byte more", 1449, 1448}, {"no payload", 0, 1448},
		{"largest packet", 65535 - 40, 1410}, {"largest size", 65535 - 40, 65535},
	}
	b := packet.NewBatch(0)
	check := func(t *testing.T, s stack, gsoSize int) {
		s.tcp.FIN, s.tcp.PSH, s.tcp.CWR = true, true, true
		one := super{stack: s, gsoSize: gsoSize}
		checkSegments(t, one.frame(t, b), make([]byte, 8), one.segments(t))
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := plainTCP(bytes.Repeat([]byte("ab\xff"), tt.payload)[:tt.payload])
			check(t, s, tt.gsoSize)
			check(t, s.overIPv6(option(0, 1)), tt.gsoSize)
		})
	}
	t.Run("largest IPv6 packet", func(t *testing.T) { check(t, plainTCP(make([]byte, 65535-20)).overIPv6(), 1410) })
}

// A UDP checksum that comes out as zero leaves as 0xffff: zero means "none".
func TestSegmenterUDPChecksumZero(t *testing.T) {
	s := super{stack: plainUDP(make([]byte, 6)), gsoSize: 2}
	want := s.segments(t)
	for i, segment := range want { // the payload word that makes the sum 0xffff
		at := s.checksumAt()
		binary.BigEndian.PutUint16(s.payload[2*i:], binary.BigEndian.Uint16(segment[at:]))
	}
	b := packet.NewBatch(0)
	f := s.frame(t, b)
	cut := packet.NewSegmenter(f)
	header := make([]byte, cut.HeaderLen())
	for range 3 {
		if _, ok := cut.Next(header); !ok || header[s.checksumAt()] != 0xff || header[s.checksumAt()+1] != 0xff {
			t.Errorf("checksum field %x, want ffff", header[s.checksumAt():])
		}
	}
	checkSegments(t, s.frame(t, b), nil, s.segments(t))
}

// FuzzSegment: whatever super-packet Parse accepts, putting its segments together again
// gives the super-packet back, and every segment is a sound packet of the same flow.
func FuzzSegment(f *testing.F) {
	r := rand.New(rand.NewPCG(2, 0))
	for range 20 {
		s := randomSuper(r)
		s.payload = s.payload[:min(len(s.payload), 200)]
		f.Add(partial(s.stack, s.bytes(f)), uint16(s.gsoSize%50+1), s.gsoType())
	}
	b, one := packet.NewBatch(0), packet.NewBatch(0)
	f.Fuzz(func(t *testing.T, data []byte, gsoSize uint16, gsoType uint8) {
		if len(data) < 34 || len(data) > packet.MaxFrame || gsoType == packet.GSONone {
			return
		}
		if data[12], data[13] = 0x08, 0x00; data[14]>>4 == 6 {
			data[12], data[13] = 0x86, 0xdd
		} else if n := int(data[14]&0xf) * 4; n >= 20 && n <= len(data)-14 {
			refresh(data[14:])
		}
		frame := load(b, data)
		frame.VNet.GSOSize, frame.VNet.GSOType = gsoSize, gsoType
		if v := frame.Parse(); v == packet.None {
			checkReassembly(t, frame, one)
		} else if _, err := decode(data); err == nil && v != packet.DropOffload {
			t.Fatalf("%x: %v", data, v)
		}
	})
}

func checkReassembly(t *testing.T, f *packet.Frame, one *packet.Batch) {
	whole := append([]byte(nil), f.Bytes()...)
	headerLen, count := f.Payload-f.Start(), 0
	cut := packet.NewSegmenter(f)
	rebuilt := append([]byte(nil), whole[:headerLen]...)
	header := make([]byte, cut.HeaderLen())
	for payload, ok := cut.Next(header); ok; payload, ok = cut.Next(header) {
		segment := append(append([]byte(nil), header...), payload...)
		if err := verifies(segment[packet.EthernetLen:]); err != nil {
			t.Fatalf("segment %d: %v: %x", count, err, segment)
		}
		g := parsed(t, one, segment)
		if g.Hash != f.Hash || g.Payload != f.Payload || g.Len() != len(segment) {
			t.Fatalf("segment %d is another flow or cut elsewhere: %x of %x", count, segment, whole)
		}
		if s := len(payload); s != int(f.VNet.GSOSize) && headerLen+count*int(f.VNet.GSOSize)+s != len(whole) {
			t.Fatalf("segment %d has %d bytes, size is %d", count, s, f.VNet.GSOSize)
		}
		rebuilt = append(rebuilt, payload...)
		count++
	}
	if count != f.Segments || !bytes.Equal(rebuilt, whole) || !bytes.Equal(f.Bytes(), whole) {
		t.Fatalf("%d segments of %d: %x become %x", count, f.Segments, whole, rebuilt)
	}
}
