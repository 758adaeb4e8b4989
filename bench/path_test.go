package bench_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/impair"
	"github.com/tulle-net/tulle/scripts/lab"
)

// directEnds are two namespaces joined by a veth.
func directEnds(t *testing.T, family string) bench.Ends {
	t.Helper()
	d, err := lab.NewDirect(1450)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	place := func(side int) bench.Place {
		return bench.Place{Addr: lab.DirectAddr(side, family), CPU: -1, In: func(f func() error) error { return d.In(side, f) }}
	}
	return bench.Ends{Client: place(0), Server: place(1)}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// Every kind of traffic passes between two namespaces, in both families.
func TestDirect(t *testing.T) {
	for _, family := range []string{lab.FamilyV4, lab.FamilyV6} {
		ends := directEnds(t, family)
		u, err := bench.OpenUDP(ends, 4)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		for _, s := range []bench.Stream{{Flows: 4}, {Sizes: []int{9000}}, {Segments: 8}, {Latency: true, Echo: true}} {
			s.Rate, s.Duration, s.All = 2000, 100*time.Millisecond, true
			r, err := u.Run(within(t, 10*time.Second), s)
			if err != nil || r.Sent != 200 || r.Received != 200 || r.Foreign+r.Duplicates+r.Reordered > 0 {
				t.Errorf("%s: %+v: %+v, %v", family, s, r, err)
			}
		}
		if r, err := (bench.TCP{Flows: 2, Duration: 100 * time.Millisecond}).Run(within(t, 10*time.Second), ends); err != nil || r.Bytes == 0 {
			t.Errorf("%s: %+v, %v", family, r, err)
		}
		for _, connect := range []bool{false, true} {
			r, err := bench.Transact{Connect: connect, Duration: 50 * time.Millisecond}.Run(within(t, 10*time.Second), ends)
			if err != nil || r.Count == 0 {
				t.Errorf("%s: %+v, %v", family, r, err)
			}
		}
	}
}

// What a bad wire did is what the sink counts, to the datagram.
func TestImpaired(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	l, err := lab.Up(within(t, 5*time.Minute), lab.Config{Dir: t.TempDir() + "/lab", Nodes: 2, Pods: 1, Kernel: map[int]bool{1: true, 2: true}, Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	u, err := bench.OpenUDP(podEnds(l), 3)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	stream := bench.Stream{Flows: 3, Rate: 4000, Duration: 250 * time.Millisecond, All: true}
	if r, err := u.Run(within(t, 10*time.Second), stream); err != nil || r.Received != r.Sent {
		t.Fatalf("a good wire, with ARP to be done: %+v, %v", r, err)
	}
	for _, spec := range []impair.Spec{{}, {Loss: 0.1}, {Duplicate: 0.1}, {Corrupt: 0.1}, {Reorder: 0.05}} {
		spec.Seed = seed
		wire, err := l.Impair(2, impair.Spec{}, spec)
		if err != nil {
			t.Fatal(err)
		}
		r, err := u.Run(within(t, 10*time.Second), stream)
		_, did := wire.Stats()
		if err := wire.Stop(); err != nil {
			t.Fatal(err)
		}
		checkImpaired(t, spec, r, did, err)
	}
}

// checkImpaired compares what the sink counted with what the wire did; a frame or two of it may be the kernel's own, such as ARP's.
func checkImpaired(t *testing.T, spec impair.Spec, r bench.UDPResult, did impair.Stats, err error) {
	t.Helper()
	const own = 2
	near := func(got, want uint64) bool { return got <= want && got+own >= want }
	lost := did.Lost + did.Missed + did.Refused + did.Corrupted
	if err != nil || r.Sent != 1000 || !near(r.Lost(), lost) || !near(r.Duplicates, did.Duplicated) || r.Foreign != 0 {
		t.Errorf("%+v: %+v, %v, want what the wire did: %+v", spec, r, err, did)
	}
	if (spec.Loss > 0) != (did.Lost > 0) || (spec.Duplicate > 0) != (r.Duplicates > 0) || (spec.Reorder > 0) != (r.Reordered > 0) {
		t.Errorf("%+v: the wire did %+v, the sink saw %+v", spec, did, r)
	}
}

// podEnds are the first pods of a lab's two nodes.
func podEnds(l *lab.Lab) bench.Ends {
	place := func(i int) bench.Place {
		pod := l.Nodes()[i].Pods[0]
		return bench.Place{Addr: pod.Addrs()[0], CPU: -1, In: func(f func() error) error { return lab.In(pod.Namespace, f) }}
	}
	return bench.Ends{Client: place(0), Server: place(1)}
}
