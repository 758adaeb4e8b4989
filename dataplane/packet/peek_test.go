package packet_test

import (
	"math/rand/v2"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// checkPeek looks at a frame before Parse: what it sees of a sound packet is what Parse finds, and of the kind that most are it
// sees every one.
func checkPeek(t *testing.T, frame *packet.Frame) (peeked bool, v packet.Verdict) {
	t.Helper()
	var p packet.Peek
	peeked = frame.Peek(packet.EthernetLen, &p)
	bytes := string(frame.Bytes())
	v = frame.Parse()
	if v != packet.None || frame.EtherType == packet.EtherTypeARP {
		return peeked, v
	}
	src, dst := frame.Ports()
	plain := (frame.Proto == packet.ProtoTCP || frame.Proto == packet.ProtoUDP) && !frame.Fragment && frame.Payload > frame.L4 &&
		(frame.Src.Is4() && frame.L4 == frame.L3+20 || frame.Src.Is6() && frame.L4 == frame.L3+40)
	if plain && !peeked {
		t.Fatalf("%x is not seen", bytes)
	}
	if want := (packet.Peek{Src: frame.Src, Dst: frame.Dst, SrcPort: src, DstPort: dst, Proto: frame.Proto}); plain && p != want {
		t.Fatalf("%x: %+v, want %+v", bytes, p, want)
	}
	return peeked, v
}

func TestPeek(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 0))
	b := packet.NewBatch(0)
	seen := 0
	for range 20000 {
		data := randomStack(r, 40).bytes(t)
		if n := r.IntN(8); n == 0 {
			data = data[:r.IntN(len(data)+1)]
		} else if n == 1 {
			data[r.IntN(len(data))] ^= 1 << r.IntN(8)
		}
		if peeked, v := checkPeek(t, load(b, data)); peeked && v == packet.None {
			seen++
		}
	}
	if seen < 1000 {
		t.Errorf("%d sound packets were seen", seen)
	}
}
