package fragment

import (
	"math/rand/v2"
	"testing"
)

// Slots lie apart, hold what was asked for, and all memory comes back as whole chunks.
func TestArena(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	a := newArena(1 << 20)
	owner := make([]int, len(a.units)) // the slot + 1 that a unit belongs to
	var slots []int
	full := 0
	for range 20000 {
		if len(slots) > 0 && r.IntN(2) == 0 {
			i := r.IntN(len(slots))
			for u := range owner {
				if owner[u] == slots[i]+1 {
					owner[u] = 0
				}
			}
			a.give(slots[i])
			slots[i] = slots[len(slots)-1]
			slots = slots[:len(slots)-1]
			continue
		}
		n := 1 + r.IntN(1<<r.IntN(18))
		s, ok := a.take(n)
		if !ok {
			full++
			continue
		}
		slots = append(slots, s)
		if got := len(a.bytes(s)); got < n || got >= 2*max(n, unit) {
			t.Fatalf("slot of %d bytes for %d", got, n)
		}
		for u := s; u < s+len(a.bytes(s))/unit; u++ {
			if owner[u] != 0 {
				t.Fatalf("unit %d of slot %d belongs to slot %d", u, s, owner[u]-1)
			}
			owner[u] = s + 1
		}
	}
	if full == 0 {
		t.Error("the arena was never full")
	}
	for _, s := range slots {
		a.give(s)
	}
	for range len(a.mem) / (chunk * unit) {
		if _, ok := a.take(chunk * unit); !ok {
			t.Fatal("memory is lost, or in pieces")
		}
	}
	if _, ok := a.take(1); ok {
		t.Fatal("more memory than there is")
	}
}

func TestArenaTooLarge(t *testing.T) {
	a := newArena(0)
	if _, ok := a.take(chunk*unit + 1); ok {
		t.Error("a slot larger than a chunk")
	}
	if s, ok := a.take(chunk * unit); !ok || len(a.bytes(s)) != chunk*unit {
		t.Error("no slot of a chunk")
	}
}
