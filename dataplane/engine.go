package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// Ports are the ports of one worker. One of the underlays may be nil.
type Ports struct{ TAP, Underlay, Underlay6 Port }

// A Config says what an Engine works with. Codec, Ports and Flows are needed.
type Config struct {
	Codec Codec
	Ports []Ports          // one worker for each
	Flows *conntrack.Table // stays the caller's: it outlives the engine

	// Clock is monotonic, in the terms of Flows' times. It is called by all workers.
	Clock func() time.Duration
	// Probe is told of each answer to an echo request of this node's: the peer's outer address, and the request's identifier,
	// sequence number and size as IP packet; and of when the worker began to read the batch that it came in. It is called by all
	// workers and must not block; nil for none.
	Probe func(peer netip.Addr, id, seq uint16, size int, read time.Duration)

	// Join says which super-packets the TAPs take that the engine may make of segments from an underlay.
	Join packet.Joining

	// BusyPoll is how long a worker may look for packets before it sleeps, as long as that finds some; 0 for not at all. A
	// few times what it takes to wake a thread is right.
	BusyPoll time.Duration

	// DecrementTTL makes the tunnel a hop on each side, as flannel's udp backend is.
	DecrementTTL bool
	// Fragments are what another engine of as many workers left; the zero value for none.
	Fragments Fragments
	// CopyDSCP copies the inner DSCP to the outer header (RFC 2983, uniform model); without it the outer one is 0.
	CopyDSCP bool
}

// An Engine forwards packets between TAP queues and underlays. Its methods are safe for concurrent use; Run is called once.
type Engine struct {
	Config
	tables  atomic.Pointer[tables.Set] // one writer: Publish
	workers []*worker

	watchers observers
	observed atomic.Pointer[[]*Observer] // watchers' list, nil when it is empty
}

// New returns an engine with one worker for each Ports. The ports stay the caller's to close, after Run has returned.
func New(c Config) (*Engine, error) {
	e := &Engine{Config: c}
	for i, p := range c.Ports {
		w, err := newWorker(e, i, p)
		if err != nil {
			e.close()
			return nil, fmt.Errorf("worker %d: %w", i, err)
		}
		e.workers = append(e.workers, w)
	}
	e.Fragments = Fragments{} // the workers have them
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
