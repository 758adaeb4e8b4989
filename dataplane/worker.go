package dataplane

import (
	"context"
	"runtime"
	"sync/atomic"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// batchArena holds one recvmmsg of super-datagrams, the largest batch a port reads.
const batchArena = 16 * (1<<16 + 256)

// A worker serves one pair of ports on one thread. Everything in it is its own; others
// reach it through atBoundary.
type worker struct {
	engine *Engine
	codec  Codec
	ports  [numSides]Port
	poller *poller
	calls  chan func() // run between batches, announced through poller.wake
	ended  chan struct{}
	halt   atomic.Bool

	rx    *packet.Batch
	tx    [numSides]packet.Batch
	count Counters
}

func newWorker(e *Engine, codec Codec, p Ports) (*worker, error) {
	w := &worker{
		engine: e, codec: codec, ports: [numSides]Port{TAP: p.TAP, Underlay: p.Underlay},
		calls: make(chan func(), 16), ended: make(chan struct{}),
		rx: packet.NewBatch(batchArena),
	}
	var err error
	w.poller, err = newPoller(p.TAP.FD(), p.Underlay.FD())
	return w, err
}

// run serves the ports until stop or until one is gone.
func (w *worker) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(w.ended)
	for !w.halt.Load() {
		ready, err := w.poller.wait()
		if err != nil {
			return err
		}
		if ready.woken {
			w.runCalls()
		}
		for side := range numSides {
			if !ready.sides[side] {
				continue
			}
			if _, err := w.turn(side); err != nil {
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
	return c
}

// turn takes one batch from a port through every stage and writes what comes of it. It
// returns the number of frames read.
func (w *worker) turn(side Side) (int, error) {
	w.rx.Reset()
	n, err := w.ports[side].Read(w.rx)
	if err != nil {
		return n, err
	}
	set := w.engine.tables.Load()
	in := &w.count.Ports[side]
	for _, f := range w.rx.Frames {
		in.FramesIn++
		in.BytesIn += uint64(f.Len())
		v := w.decide(side, set, f)
		in.SegmentsIn += uint64(f.Segments)
		w.settle(f, v)
	}
	if err := w.flush(TAP); err != nil {
		return n, err
	}
	return n, w.flush(Underlay)
}

func (w *worker) decide(side Side, set *tables.Set, f *packet.Frame) packet.Verdict {
	switch {
	case f.Truncated:
		return packet.DropReadTruncated
	case set == nil:
		return packet.DropNoTables
	case side == TAP:
		return w.outbound(set, f)
	default:
		return w.inbound(set, f)
	}
}

// settle counts the verdict, or queues the frame for the port that will settle it.
func (w *worker) settle(f *packet.Frame, v packet.Verdict) {
	switch v {
	case packet.Encapsulated:
		w.tx[Underlay].Add(f)
	case packet.Delivered:
		w.tx[TAP].Add(f)
	case packet.ARPAnswered:
		w.count.Verdicts[v] += uint64(f.Segments)
		w.count.Generated++ // the reply, in the request's frame
		w.tx[TAP].Add(f)
	default:
		w.count.Verdicts[v] += uint64(f.Segments)
	}
}

// flush writes what is queued for a port and counts what the port took and refused.
func (w *worker) flush(side Side) error {
	batch := &w.tx[side]
	if len(batch.Frames) == 0 {
		return nil
	}
	err := w.ports[side].Write(batch)
	sent := packet.Delivered
	if side == Underlay {
		sent = packet.Encapsulated
	}
	out := &w.count.Ports[side]
	for _, f := range batch.Frames {
		if f.Sent > 0 {
			out.FramesOut++
		}
		out.SegmentsOut += uint64(f.Sent)
		out.BytesOut += uint64(f.SentBytes)
		w.count.Verdicts[sent] += uint64(f.Sent)
		w.count.Verdicts[side.refused()] += uint64(f.Refused)
	}
	batch.Reset()
	return err
}
