package dataplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// Ports are the two ports of one worker.
type Ports struct{ TAP, Underlay Port }

// An Engine forwards packets between TAP queues and underlays, one worker for each
// pair. Its methods are safe for concurrent use; Run is called once.
type Engine struct {
	tables  atomic.Pointer[tables.Set] // one writer: Publish
	workers []*worker
}

// New returns an engine with one worker for each pair of ports. The ports stay the
// caller's to close, after Run has returned.
func New(codec Codec, pairs []Ports) (*Engine, error) {
	e := &Engine{}
	for i, p := range pairs {
		w, err := newWorker(e, codec, p)
		if err != nil {
			e.close()
			return nil, fmt.Errorf("worker %d: %w", i, err)
		}
		e.workers = append(e.workers, w)
	}
	return e, nil
}

// Publish makes set the one that every later batch uses. Until the first one the engine
// drops everything.
func (e *Engine) Publish(set *tables.Set) { e.tables.Store(set) }

// Tables returns the published Set, or nil.
func (e *Engine) Tables() *tables.Set { return e.tables.Load() }

// Run forwards packets until ctx ends or a port is gone, and then returns: nil, or what
// happened to the port.
func (e *Engine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(e.workers))
	var wg sync.WaitGroup
	for i, w := range e.workers {
		wg.Go(func() {
			defer cancel()
			if err := w.run(); err != nil {
				errs[i] = fmt.Errorf("worker %d: %w", i, err)
			}
		})
	}
	<-ctx.Done()
	for _, w := range e.workers {
		w.stop()
	}
	wg.Wait()
	e.close()
	return errors.Join(errs...)
}

func (e *Engine) close() {
	for _, w := range e.workers {
		w.poller.close()
	}
}

// Counters returns the counters of each worker, taken at a batch boundary. After Run has
// returned they are the final ones.
func (e *Engine) Counters(ctx context.Context) ([]Counters, error) {
	all := make([]Counters, len(e.workers))
	for i, w := range e.workers {
		if err := w.atBoundary(ctx, func() { all[i] = w.snapshot() }); err != nil {
			return nil, fmt.Errorf("counters of worker %d: %w", i, err)
		}
	}
	return all, nil
}

// Sum adds up the counters of all workers.
func Sum(all []Counters) Counters {
	var total Counters
	for i := range all {
		total.add(&all[i])
	}
	return total
}
