package packet_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func TestSumMatchesNaive(t *testing.T) {
	r := newRand(t)
	arena := make([]byte, 4096)
	for range 20000 {
		start := r.IntN(64)
		b := arena[start : start+r.IntN(600)]
		switch r.IntN(4) {
		case 0:
			copy(b, bytes.Repeat([]byte{0xff}, len(b)))
		case 1:
			clear(b)
			if len(b) > 0 {
				b[r.IntN(len(b))] = byte(r.Uint32())
			}
		default:
			copy(b, randomBytes(r, len(b)))
		}
		cut := r.IntN(len(b)+1) &^ 1 // every piece but the last is even
		word := uint16(r.Uint32())
		got := packet.Sum(0).AddUint16(word).Add(b[:cut]).Add(b[cut:])
		want := naiveSum([]byte{byte(word >> 8), byte(word)}, b)
		if got.Fold() != want || got.Checksum() != ^want {
			t.Fatalf("sum of %#x, %x (cut at %d): fold %#x, checksum %#x; want fold %#x", word, b, cut, got.Fold(), got.Checksum(), want)
		}
	}
}

// All ones drive every carry there is: each addition overflows.
func TestSumOfOnes(t *testing.T) {
	ones := bytes.Repeat([]byte{0xff}, 1<<16)
	for _, n := range []int{2, 8, 62, 64, 66, 128, 65534, 65536} {
		sum := packet.Sum(^uint64(0)).Add(ones[:n])
		if got := sum.Fold(); got != 0xffff {
			t.Errorf("%d bytes of ones on a sum of ones: fold %#x, want 0xffff", n, got)
		}
	}
	if got := packet.Sum(0).Fold(); got != 0 {
		t.Errorf("empty sum folds to %#x, want 0", got)
	}
}

func BenchmarkSumAdd(b *testing.B) {
	for _, n := range []int{20, 64, 1460, 64 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data := bytes.Repeat([]byte{0xa5}, n)
			b.SetBytes(int64(n))
			var sum packet.Sum
			for b.Loop() {
				sum = sum.Add(data)
			}
			if sum.Fold() == 1 {
				b.Log("keeps the sum alive")
			}
		})
	}
}
