package capture

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

// TestRing holds a ring against a list: what was published comes out in order, whole and unchanged, whatever the sizes.
func TestRing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	ring := newRing(1 << 10)
	var want [][]byte
	refused, taken := 0, 0
	for i := range 100000 {
		if r.IntN(3) > 0 {
			n := recordHeader + recordAlign*r.IntN(40)
			b, _ := ring.reserve(n)
			if b == nil {
				refused++
				if used := int(ring.reserved - ring.tail.Load()); used+2*n <= 1<<10 {
					t.Fatalf("%d bytes refused with %d in use", n, used)
				}
				continue
			}
			for at := range b {
				b[at] = byte(i)
			}
			(&Record{Serial: uint64(i)}).put(b, kindPacket, 0)
			want = append(want, bytes.Clone(b))
			ring.publish(ring.reserved)
			continue
		}
		chunk := ring.readable(1 + r.IntN(600))
		ring.consume(len(chunk))
		for len(chunk) > 0 {
			n := recordSize(chunk)
			if chunk[4] != kindSkip {
				if taken++; !bytes.Equal(chunk[:n], want[0]) {
					t.Fatalf("record %d is damaged", taken)
				}
				want = want[1:]
			}
			chunk = chunk[n:]
		}
	}
	if refused < 1000 || taken < 1000 {
		t.Errorf("%d refused, %d read: the test tells nothing", refused, taken)
	}
}
