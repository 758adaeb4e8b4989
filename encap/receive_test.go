package encap

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// crafted returns the frames that one datagram becomes when the kernel hands it over with
// the given control messages and flags.
func crafted(t *testing.T, data []byte, gsoSize int, flags int32) []*packet.Frame {
	t.Helper()
	return craftedFor(t, codec(t, 1), data, gsoSize, flags)
}

func craftedFor(t *testing.T, framing Framing, data []byte, gsoSize int, flags int32) []*packet.Frame {
	t.Helper()
	u := &Underlay{framing: framing}
	u.recv.init(0)
	b := packet.NewBatch(0)
	if u.recv.arm(b) != 1 {
		t.Fatal("a batch of one slot takes another number of messages")
	}
	copy(u.recv.slots[0][packet.Headroom:], data)
	m := &u.recv.msgs[0]
	m.len, m.hdr.Flags = uint32(len(data)), flags
	used := putControl(&u.recv.control[0], 0, unix.IPPROTO_IP, unix.IP_TOS, 2, 4)
	if gsoSize != 0 {
		used = putControl(&u.recv.control[0], used, unix.IPPROTO_UDP, unix.UDP_GRO, uint32(gsoSize), 4)
	}
	m.hdr.SetControllen(used)
	u.split(b, 0)
	return b.Frames
}

// checkSplit compares frames with the pieces of data of the given size.
func checkSplit(t *testing.T, frames []*packet.Frame, data []byte, size, hint int) {
	t.Helper()
	for i, f := range frames {
		want := data[:min(size, len(data))]
		data = data[len(want):]
		if !bytes.Equal(f.Bytes(), want) || f.SegmentHint != hint || f.OuterTOS != 2 || f.Segments != 1 {
			t.Fatalf("frame %d: %d bytes, want %d; hint %d, want %d; TOS %#x", i, f.Len(), len(want), f.SegmentHint, hint, f.OuterTOS)
		}
	}
	if len(data) > 0 {
		t.Fatalf("%d bytes are in no frame", len(data))
	}
}

func TestSplit(t *testing.T) {
	one := vxlanUDP(t, 100)
	joined := append(bytes.Repeat(one, 9), one[:70]...)
	whole := vxlanUDP(t, 30000)
	whole6 := append(bytes.Clone(one[:8]), ipv6UDP(t, 30000)...)
	bare, bareWhole := one[8+14:], whole[8+14:]
	tests := map[string]splitTest{
		"a datagram":                            {one, 0, 1, len(one), 0},
		"an empty datagram":                     {nil, 0, 1, 1, 0},
		"an empty datagram with a size":         {nil, 10, 1, 1, 0},
		"joined":                                {joined, len(one), 10, len(one), 0},
		"joined, size of the whole":             {joined, len(joined), 1, len(joined), 0},
		"joined, size beyond the whole":         {joined, 1 << 20, 1, len(joined), 0},
		"joined, negative size":                 {joined, -5, 1, len(joined), 0},
		"never cut":                             {whole, 1422, 1, len(whole), 1422},
		"never cut, no size":                    {whole, 0, 1, len(whole), 0},
		"joined bytes of no network":            {make([]byte, 1000), 100, 10, 100, 0},
		"joined bytes shorter than any header":  {make([]byte, 9), 2, 5, 2, 0},
		"never cut, but with a byte behind":     {append(bytes.Clone(whole), 0), 1422, 22, 1422, 0},
		"never cut, but with a byte of it lost": {whole[:len(whole)-1], 1422, 22, 1422, 0},
		"never cut, IPv6":                       {whole6, 1402, 1, len(whole6), 1402},
		"never cut, IPv6, a byte lost":          {whole6[:len(whole6)-1], 1402, 22, 1402, 0},
	}
	plain := map[string]splitTest{
		"a packet":                      {bare, 0, 1, len(bare), 0},
		"an empty datagram":             {nil, 0, 1, 1, 0},
		"joined":                        {append(bytes.Repeat(bare, 9), bare[:70]...), len(bare), 10, len(bare), 0},
		"never cut":                     {bareWhole, 1422, 1, len(bareWhole), 1422},
		"never cut, with a byte behind": {append(bytes.Clone(bareWhole), 0), 1422, 22, 1422, 0},
		"joined bytes of no network":    {make([]byte, 1000), 100, 10, 100, 0},
	}
	for name, tt := range tests {
		t.Run("VXLAN, "+name, func(t *testing.T) { tt.run(t, codec(t, 1)) })
	}
	for name, tt := range plain {
		t.Run("plain UDP, "+name, func(t *testing.T) { tt.run(t, PlainUDP{}) })
	}
}

// A splitTest is a datagram with its UDP_GRO size, and the frames that it becomes: their number, their size and
// their hint.
type splitTest struct {
	data              []byte
	gsoSize           int
	frames, size, hnt int
}

func (tt splitTest) run(t *testing.T, framing Framing) {
	frames := craftedFor(t, framing, tt.data, tt.gsoSize, 0)
	if len(frames) != tt.frames {
		t.Fatalf("%d frames, want %d", len(frames), tt.frames)
	}
	checkSplit(t, frames, tt.data, tt.size, tt.hnt)
}

func TestSplitTruncated(t *testing.T) {
	data := bytes.Repeat(vxlanUDP(t, 100), 4)
	for _, f := range crafted(t, data, len(data)/4, unix.MSG_TRUNC) {
		if !f.Truncated {
			t.Error("a frame of a cut datagram is not marked")
		}
	}
	for _, f := range crafted(t, data, len(data)/4, 0) {
		if f.Truncated {
			t.Error("a frame of a whole datagram is marked as cut")
		}
	}
}

// What one frame of a joined datagram gets prepended must not lie in the one before.
func TestSplitFramesAreApart(t *testing.T) {
	one := vxlanUDP(t, 100)
	frames := crafted(t, bytes.Repeat(one, 3), len(one), 0)
	for _, f := range frames {
		if header, ok := f.Prepend(20); ok {
			clear(header)
			f.Strip(20)
		}
		f.Strip(8)
		if header, ok := f.Prepend(8); !ok {
			t.Error("what a codec took off cannot be put on again")
		} else {
			copy(header, one)
		}
	}
	checkSplit(t, frames, bytes.Repeat(one, 3), len(one), 0)
}

// A detached frame's Ethernet header lies beside the slot: in front of the frame lies another one.
func TestSplitDetachedFramesAreApart(t *testing.T) {
	one := vxlanUDP(t, 100)[8+14:]
	frames := craftedFor(t, PlainUDP{}, bytes.Repeat(one, 3), len(one), 0)
	for i, f := range frames {
		if v := (PlainUDP{}).Decap(f); v != packet.None {
			t.Fatal(v)
		}
		f.SetMACs(packet.MAC{1, 1, 1, 1, 1, 1}, packet.MAC{2, 2, 2, 2, 2, 2})
		if _, ok := f.Prepend(1); ok && i > 0 {
			t.Errorf("frame %d has room in front of it", i)
		} else if ok {
			f.Strip(1)
		}
	}
	checkSplit(t, frames, bytes.Repeat(one, 3), len(one), 0)
}

func TestControlRoundTrip(t *testing.T) {
	var buf [controlLen]byte
	used := putControl(&buf, 0, unix.IPPROTO_UDP, unix.UDP_GRO, 1410, 4)
	used = putControl(&buf, used, unix.IPPROTO_IP, unix.IP_TOS, 0xbb, 4)
	if size, tos := readControl(buf[:used]); size != 1410 || tos != 0xbb || used != 2*24 {
		t.Errorf("readControl = %d, %#x of %d bytes", size, tos, used)
	}
	used = putControl(&buf, 24, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0xbb, 4)
	if size, tos := readControl(buf[:used]); size != 1410 || tos != 0xbb {
		t.Errorf("IPv6: readControl = %d, %#x of %d bytes", size, tos, used)
	}
	if size, tos := readControl(nil); size != 0 || tos != 0 {
		t.Errorf("readControl of nothing = %d, %#x", size, tos)
	}
}

// FuzzReadControl: what x/sys/unix parses as control messages gives the same values.
func FuzzReadControl(f *testing.F) {
	r := rand.New(rand.NewPCG(4, 0))
	for range 20 {
		var buf [controlLen]byte
		used := putControl(&buf, 0, unix.IPPROTO_UDP, unix.UDP_GRO, r.Uint32N(70000), 4)
		if r.IntN(2) == 0 {
			used = putControl(&buf, used, unix.IPPROTO_IP, unix.IP_TOS, r.Uint32N(256), 4)
		} else {
			used = putControl(&buf, used, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, r.Uint32N(256), 4)
		}
		f.Add(buf[:used-r.IntN(10)])
		short := bytes.Clone(buf[:used])
		short[0] = byte(unix.CmsgLen(r.IntN(12))) // another length of the first value
		f.Add(short)
		foreign := bytes.Clone(buf[:used])
		foreign[24+8+r.IntN(8)] ^= byte(1 + r.IntN(255)) // another level or type of the second
		f.Add(foreign)
		beyond := bytes.Clone(buf[:used])
		beyond[24*r.IntN(2)+r.IntN(8)] = byte(25 + r.IntN(231)) // longer than the buffer, or negative
		f.Add(beyond)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		size, tos := readControl(bytes.Clone(data))
		messages, err := unix.ParseSocketControlMessage(bytes.Clone(data))
		if err != nil {
			return // no panic is all that is asked
		}
		wantSize, wantTOS := 0, uint8(0)
		for _, m := range messages {
			if len(m.Data) == 0 {
				break // the kernel writes none
			}
			switch {
			case m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4:
				wantSize = int(int32(uint32(m.Data[0]) | uint32(m.Data[1])<<8 | uint32(m.Data[2])<<16 | uint32(m.Data[3])<<24))
			case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS:
				wantTOS = m.Data[0]
			case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS && len(m.Data) >= 4:
				wantTOS = m.Data[0] // little-endian, as all machines that this runs on
			}
		}
		if size != wantSize || tos != wantTOS {
			t.Fatalf("%x: %d, %#x; want %d, %#x", data, size, tos, wantSize, wantTOS)
		}
	})
}
