package main

import (
	"context"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// A linkReport holds the engine's count of the TAP's frames against the kernel's, since this engine began.
type linkReport struct {
	In      uint64 `json:"in"`      // frames to the engine, by the kernel's count
	Out     uint64 `json:"out"`     // from the engine
	Dropped uint64 `json:"dropped"` // by the kernel, because the TAP's queue was full: since the link was made
	Agrees  bool   `json:"agrees"`  // with the engine's count
}

// checkedCounters returns the engine's counters, and what the kernel's say of them: nil for a library's device, whose frames are not the
// kernel's. The kernel is asked before and after, and what the engine counts must lie in between.
func (f *forwarder) checkedCounters(ctx context.Context) (dataplane.Counters, *linkReport, error) {
	f.mu.Lock()
	engine, past, base, counted := f.engine, f.past, f.linkBase, f.linkOf
	f.mu.Unlock()
	if f.config.device != tap.TAP {
		total, err := f.counters(ctx)
		return total, nil, err
	}
	before, errBefore := control.CountsOf(tapName)
	all, err := engine.Counters(ctx)
	if err != nil {
		return dataplane.Counters{}, nil, err
	}
	now := dataplane.Sum(all)
	after, errAfter := control.CountsOf(tapName)
	f.mu.Lock()
	same := counted == engine && f.linkOf == engine && f.engine == engine
	f.mu.Unlock()
	total := dataplane.Sum([]dataplane.Counters{now, past})
	if errBefore != nil || errAfter != nil || !same {
		return total, nil, nil // somebody removed the TAP: there is another one in a moment
	}
	ours := now.Ports[dataplane.TAP]
	return total, &linkReport{
		In: after.In - base.In, Out: after.Out - base.Out, Dropped: after.Dropped,
		Agrees: before.In-base.In <= ours.FramesIn && ours.FramesIn <= after.In-base.In &&
			before.Out-base.Out <= ours.FramesOut && ours.FramesOut <= after.Out-base.Out,
	}, nil
}
