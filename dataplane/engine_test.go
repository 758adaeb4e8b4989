package dataplane

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// TestRandomTraffic mixes all cases at random, with ports that refuse now and then, and looks at the ledger in the
// middle of writes too, where packets are queued.
func TestRandomTraffic(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t)
	r.tap().refuse, r.underlay().refuse, r.underlay6().refuse = 7, 5, 5
	r.pods[0].refuse, r.pods[1].refuse = 5, 5
	queued := uint64(0)
	look := func() {
		c := r.w.snapshot()
		queued += c.Queued
	}
	r.tap().onWrite, r.underlay().onWrite, r.underlay6().onWrite = look, look, look
	r.pods[0].onWrite, r.pods[1].onWrite = look, look
	expect := uint64(0)
	for range 300 {
		for range rng.IntN(100) {
			c := verdictCases[rng.IntN(len(verdictCases))]
			if c.prepare != nil {
				continue
			}
			r.port(c.side).put(c.frame(t))
			expect += uint64(c.segments)
		}
		for side := range numCounters {
			r.turn(side)
		}
		r.now.Add(int64(rng.IntN(1e9)))
	}
	r.now.Add(int64(time.Minute))
	r.w.begin() // fragments that still wait
	if l := r.w.snapshot(); l.Ledger().In != expect {
		t.Errorf("%d segments in, want %d", l.Ledger().In, expect)
	}
	if queued == 0 {
		t.Error("nothing was ever queued during a write")
	}
}

// TestLedgerDuringWrite looks at the ledger while a port writes: what is not settled is queued.
func TestLedgerDuringWrite(t *testing.T) {
	r := newRig(t)
	looked := 0
	r.underlay().onWrite = func() {
		looked++
		c := r.w.snapshot()
		if l := c.Ledger(); !l.Balanced() || l.Queued != 4 {
			t.Errorf("ledger during a write of 4 segments: %+v", l)
		}
	}
	r.tap().put(tcpSuper(t, "10.0.1.9", "10.0.2.9", 5000, 1400))
	r.turn(TAP)
	if looked != 1 {
		t.Errorf("%d writes, want 1", looked)
	}
}

// TestLedgerDuringPodWrite is the same for a pod's port, while another is still to be written to.
func TestLedgerDuringPodWrite(t *testing.T) {
	r := newRig(t)
	want := uint64(2)
	look := func() {
		c := r.w.snapshot()
		if l := c.Ledger(); !l.Balanced() || l.Queued != want {
			t.Errorf("ledger during a write, %d segments of which are left: %+v", want, l)
		}
		want--
	}
	r.pods[0].onWrite, r.pods[1].onWrite = look, look
	r.send(Underlay, fromB(t, "10.0.2.9", pod1), fromB(t, "10.0.2.9", pod2))
	if want != 0 {
		t.Errorf("%d writes to pods are missing", want)
	}
}

// TestZeroAllocs demands that no packet costs an allocation, on either way.
func TestZeroAllocs(t *testing.T) {
	r := newRig(t)
	r.tap().discard, r.underlay().discard = true, true
	out := []memFrame{tcpSuper(t, "10.0.1.9", "10.0.2.9", 60000, 1398), {data: udpFrame(t, macA, gateA, "10.0.1.9", "10.0.3.9", 64)}, {data: arpRequest(t, "10.0.1.0", "10.0.2.9")}}
	in := []memFrame{fromB(t, "10.0.2.9", "10.0.1.9"), fromB(t, "10.0.9.9", "10.0.1.9"), kernelSuper(t)}
	round := func() {
		r.tap().put(out...)
		r.underlay().put(in...)
		r.turn(TAP)
		r.turn(Underlay)
	}
	round()
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations per round of %d packets, want 0", n, len(out)+len(in))
	}
}

// TestRun drives running workers from outside: traffic, new tables and counters all at once; then the end.
func TestRun(t *testing.T) {
	before := runtime.NumGoroutine()
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.engine.Run(ctx) }()
	const rounds = 200
	var wg sync.WaitGroup
	wg.Go(func() {
		for range rounds {
			r.tap().put(memFrame{data: udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)})
			r.underlay().put(fromB(t, "10.0.2.9", "10.0.1.9"))
		}
	})
	wg.Go(func() {
		for range rounds {
			r.engine.Publish(testTables(t))
		}
	})
	deadline := time.Now().Add(10 * time.Second)
	for {
		all, err := r.engine.Counters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		total := Sum(all)
		if l := total.Ledger(); !l.Balanced() {
			t.Fatalf("ledger of a running engine: %+v", l)
		}
		if total.Verdicts[packet.Encapsulated] == rounds && total.Verdicts[packet.Delivered] == rounds {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("packets missing: %v", verdictText(total.Verdicts))
		}
	}
	wg.Wait()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := r.engine.Counters(t.Context()); err != nil {
		t.Errorf("counters after the end: %v", err)
	}
	if after := settledGoroutines(before); after > before {
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

// settledGoroutines waits a moment for goroutines that are about to end.
func settledGoroutines(want int) int {
	for range 100 {
		if runtime.NumGoroutine() <= want {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return runtime.NumGoroutine()
}

// TestPortGone demands that Run ends with the reason when a port does.
func TestPortGone(t *testing.T) {
	r := newRig(t)
	gone := errors.New("device removed")
	r.tap().gone = gone
	r.tap().signal(true)
	if err := r.engine.Run(t.Context()); !errors.Is(err, gone) {
		t.Errorf("Run returned %v, want %v", err, gone)
	}
}
