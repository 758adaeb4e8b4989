package dataplane

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

const (
	// batchArena holds one recvmmsg of super-datagrams, the largest batch a port reads.
	batchArena = 16 * (1<<16 + 256)
	// madeArena holds what the engine makes itself in one turn: some hundred ICMP errors.
	madeArena = 256 << 10
)

// A worker serves its ports on one thread. Everything in it is its own; others reach it through atBoundary.
type worker struct {
	engine *Engine
	number int
	ports  [numSides]Port // nil where there is none
	poller *poller
	calls  chan func() // run between batches, announced through poller.wake
	ended  chan struct{}
	halt   atomic.Bool

	rx       *packet.Batch
	made     *packet.Batch // packets of the engine's own, of this turn
	tx       [numSides]packet.Batch
	pods     podPorts
	now      time.Duration    // of this turn
	from     Side             // of this turn
	at       int              // index in rx of the frame at hand
	flow     conntrack.Packet // of the frame at hand
	touched  touched
	limits   icmpLimiter
	schedule schedule
	// Fragments, by where they come from: the TAP or an underlay.
	outFragments, inFragments *fragment.Tracker
	left                      WorkerFragments // valid once the worker has ended

	observers *[]*Observer // of this turn; nil for none
	serial    uint64       // of the last packet met while observed
	sighting  Sighting     // of the packet at hand

	count Counters
}

func newWorker(e *Engine, number int, p Ports) (*worker, error) {
	w := &worker{
		engine: e, number: number, ports: [numSides]Port{TAP: p.TAP, Underlay: p.Underlay, Underlay6: p.Underlay6},
		calls: make(chan func(), 16), ended: make(chan struct{}),
		rx: packet.NewBatch(batchArena), made: packet.NewBatch(madeArena),
		outFragments: fragment.New(fragment.Limits{}), inFragments: fragment.New(fragment.Limits{}),
	}
	var err error
	w.adoptFragments(e.Fragments, len(e.Ports))
	w.poller, err = newPoller(w.ports, e.BusyPoll)
	return w, err
}

// run serves the ports until stop or until one is gone.
func (w *worker) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer w.schedule.begin()()
	defer close(w.ended)
	defer w.leaveFragments()
	for !w.halt.Load() {
		ready, err := w.poller.wait(w.patience())
		if err != nil {
			return err
		}
		if ready.woken {
			w.runCalls()
		}
		w.begin()
		for side := range numSides {
			if !ready.sides[side] {
				continue
			}
			if _, err := w.turn(side); err != nil {
				return err
			}
		}
		for _, number := range w.poller.pods[:ready.pods] {
			if _, err := w.serve(number); err != nil {
				return err
			}
		}
	}
	return nil
}

// stop makes run return after the batch it is at.
func (w *worker) stop() {
	w.halt.Store(true)
	w.poller.wake()
}

func (w *worker) runCalls() {
	for {
		select {
		case f := <-w.calls:
			f()
		default:
			return
		}
	}
}

// atBoundary runs f between two batches of the worker, or at once if it has ended.
func (w *worker) atBoundary(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case w.calls <- func() { f(); close(done) }:
		w.poller.wake()
	case <-w.ended:
		f()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-w.ended:
		w.runCalls() // what the worker did not come to
	case <-ctx.Done():
		return ctx.Err()
	}
	<-done
	return nil
}

func (w *worker) snapshot() Counters {
	c := w.count
	for side := range w.tx {
		for _, f := range w.tx[side].Frames {
			c.Queued += uint64(f.Segments)
		}
	}
	c.Queued += w.pods.queued()
	c.Queued += uint64(w.outFragments.Held() + w.inFragments.Held())
	return c
}

// begin starts a turn: the time, and what became of fragments that waited too long.
func (w *worker) begin() {
	w.now = w.engine.Clock()
	w.observers = w.engine.observed.Load()
	for _, t := range [...]*fragment.Tracker{w.outFragments, w.inFragments} {
		t.Recycle()
		for _, lost := range t.Expire(w.now) {
			w.settle(lost.Frame, lost.Verdict)
		}
	}
}

// patience is how long the worker may sleep: until the first waiting fragment's time is up.
func (w *worker) patience() time.Duration {
	timeout := time.Duration(-1)
	for _, t := range [...]*fragment.Tracker{w.outFragments, w.inFragments} {
		at, ok := t.NextDeadline()
		if left := max(at-w.now, 0); ok && (timeout < 0 || left < timeout) {
			timeout = left
		}
	}
	return timeout
}

// turn takes one batch from a port through every stage and writes what comes of it. It
// returns the number of frames read.
func (w *worker) turn(side Side) (int, error) {
	w.prepare(side)
	n, err := w.ports[side].Read(w.rx)
	if err != nil {
		return n, err
	}
	return n, w.work(side)
}

func (w *worker) prepare(side Side) {
	w.rx.Reset()
	w.made.Reset()
	w.begin()
	w.from = side
}

// work decides the batch that was read, and writes what comes of it.
func (w *worker) work(side Side) error {
	if w.schedule.note(len(w.rx.Frames), w.now) {
		w.poller.busy.flooded()
	}
	set := w.engine.tables.Load()
	w.touch(side, set)
	in := &w.count.Ports[side]
	for w.at = 0; w.at < len(w.rx.Frames); w.at++ {
		f := w.rx.Frames[w.at]
		in.FramesIn++
		in.BytesIn += uint64(f.Len())
		w.meet(side, f)
		v := w.decide(side, set, f)
		in.SegmentsIn += uint64(f.Segments)
		w.settle(f, v)
	}
	for side := range numSides {
		if err := w.flush(side); err != nil {
			return err
		}
	}
	w.flushPods()
	return nil
}

// join makes a super-packet of the frame at hand and those behind it that belong to it. What is decided of it is decided of
// them.
func (w *worker) join(f *packet.Frame) {
	next := w.rx.Frames[w.at+1:]
	joined := w.rx.Join(f, next, w.engine.Join)
	in := &w.count.Ports[w.from]
	for _, g := range next[:joined] {
		in.FramesIn++
		in.BytesIn += uint64(g.Len())
	}
	w.at += joined
}

func (w *worker) decide(side Side, set *tables.Set, f *packet.Frame) packet.Verdict {
	switch {
	case f.Truncated:
		return packet.DropReadTruncated
	case set == nil:
		return packet.DropNoTables
	case side == TAP:
		return w.outbound(set, f)
	case side == Pod:
		return w.fromPod(set, f)
	default:
		return w.inbound(set, f)
	}
}

// settle counts the verdict, or queues the frame for the port that will settle it. None is a fragment that waits for its
// first one, or what was settled before.
func (w *worker) settle(f *packet.Frame, v packet.Verdict) {
	switch v {
	case packet.None:
	case packet.Delivered:
		if f.Pod == 0 {
			w.tx[TAP].Add(f)
		} else if !w.pods.add(f) {
			w.settle(f, packet.DropPodWrite)
		}
	case packet.Encapsulated:
		w.tx[underlayTo(f)].Add(f)
	default:
		w.count.Verdicts[v] += uint64(f.Segments)
		w.see(AtDrop, f, v)
	}
}

// turnRound settles a packet that the engine used up, whose frame holds the answer to it now: another packet.
func (w *worker) turnRound(f *packet.Frame, v packet.Verdict) {
	w.settle(f, v)
	w.meetMade(f, f.Serial)
}

// generate queues a packet of the engine's own, of one segment.
func (w *worker) generate(f *packet.Frame, v packet.Verdict) {
	w.count.Generated++
	w.settle(f, v)
}

// underlayTo is the side that reaches the frame's Remote.
func underlayTo(f *packet.Frame) Side {
	if f.Remote.Addr().Is4() {
		return Underlay
	}
	return Underlay6
}

// flush writes what is queued for a port and counts what the port took and refused.
func (w *worker) flush(side Side) error {
	batch := &w.tx[side]
	if len(batch.Frames) == 0 {
		return nil
	}
	err := w.ports[side].Write(batch)
	w.tally(side, batch)
	return err
}

// tally counts what became of a batch that was written, and empties it.
func (w *worker) tally(side Side, batch *packet.Batch) {
	out := &w.count.Ports[side]
	for _, f := range batch.Frames {
		if f.Sent > 0 {
			out.FramesOut++
		}
		out.SegmentsOut += uint64(f.Sent)
		out.BytesOut += uint64(f.SentBytes)
		w.count.Verdicts[side.sent()] += uint64(f.Sent)
		w.count.Verdicts[side.refused(f)] += uint64(f.Refused)
		if f.Sent > 0 {
			w.seeAside(AtSent, f, side.sent())
		}
		if f.Refused > 0 {
			w.seeAside(AtDrop, f, side.refused(f))
		}
	}
	batch.Reset()
}
