package main

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/impair"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestBadWire puts a wire between two nodes that corrupts, loses, repeats and reorders: not a byte arrives changed, in TCP, in UDP
// and in UDP fragments, in both families.
func TestBadWire(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Family: lab.FamilyDual})
	seed := rand.Uint64()
	for _, spec := range []impair.Spec{
		{Seed: seed, Corrupt: 0.01},
		{Seed: seed, Corrupt: 0.01, Loss: 0.01, Duplicate: 0.05, Reorder: 0.25},
	} {
		t.Run(fmt.Sprintf("%+v", spec), func(t *testing.T) {
			wire, err := l.Impair(1, spec, spec)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := wire.Stop(); err != nil {
					t.Error(err)
				}
				out, in := wire.Stats()
				t.Logf("out %+v, in %+v", out, in)
				if out.Corrupted == 0 || in.Corrupted == 0 {
					t.Error("the wire corrupted nothing")
				}
			}()
			for _, addr := range l.Nodes()[1].Pods[0].Addrs() {
				p := between(l, 1, 2)
				p.Addr = addr
				transfer(t, p, 2<<20)
				for _, size := range []int{200, 1300, 4000} {
					r := sequence(t, p, bench.Sequence{Count: 1000, Size: size, Interval: 200 * time.Microsecond})
					if r.Corrupt != 0 || r.Received < r.Sent/2 {
						t.Errorf("%s, %d bytes: %+v", addr, size, r)
					}
				}
			}
		})
	}
}

func sequence(t *testing.T, p lab.Pair, s bench.Sequence) bench.SequenceResult {
	t.Helper()
	from, to, err := p.UDP()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	r, err := s.Run(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
