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
	u := &Underlay{framing: codec(t, 1)}
	u.recv.init()
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
	tests := map[string]struct {
		data              []byte
		gsoSize           int
		frames, size, hnt int
	}{
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
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			frames := crafted(t, tt.data, tt.gsoSize, 0)
			if len(frames) != tt.frames {
				t.Fatalf("%d frames, want %d", len(frames), tt.frames)
			}
			checkSplit(t, frames, tt.data, tt.size, tt.hnt)
		})
	}
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

func TestControlRoundTrip(t *testing.T) {
	var buf [controlLen]byte
	used := putControl(&buf, 0, unix.IPPROTO_UDP, unix.UDP_GRO, 1410, 4)
	used = putControl(&buf, used, unix.IPPROTO_IP, unix.IP_TOS, 0xbb, 4)
	if size, tos := readControl(buf[:used]); size != 1410 || tos != 0xbb || used != 2*24 {
		t.Errorf("readControl = %d, %#x of %d bytes", size, tos, used)
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
		used = putControl(&buf, used, unix.IPPROTO_IP, unix.IP_TOS, r.Uint32N(256), 4)
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
			}
		}
		if size != wantSize || tos != wantTOS {
			t.Fatalf("%x: %d, %#x; want %d, %#x", data, size, tos, wantSize, wantTOS)
		}
	})
}
