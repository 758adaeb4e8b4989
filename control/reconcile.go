package control

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"
)

const (
	// resyncInterval bounds how long a change that is not announced (a sysctl, a neighbour, nftables) stays unseen.
	resyncInterval = 400 * time.Millisecond
	// everyResync is how many of these looks it takes until one is at everything: announcements can be missed.
	everyResync = 5
	// settleTime lets a burst of announcements end before it is looked into.
	settleTime = 5 * time.Millisecond
)

// A Reconciler keeps the kernel's state what it has to be: it compares all of it after each announcement of the
// kernel's, after each Set, and every two seconds, and what is not announced more often; it never relies on having seen a change.
//
// Its methods are safe for concurrent use; Run is called once.
type Reconciler struct {
	wake    chan struct{}
	reached func(State)

	mu      sync.Mutex // guards the rest
	want    Kernel
	settled bool            // want has been reached once: what differs from now on is a repair
	subnets [2]netip.Prefix // of the state that was reached last
	err     error
	repairs map[Change]uint64
}

// NewReconciler returns a reconciler that begins with the state in k. reached is called, from Run, each time the kernel's state
// has become a new one that Set asked for. Nothing happens before Run.
func NewReconciler(k Kernel, reached func(State)) *Reconciler {
	repairs := map[Change]uint64{ChangedSysctl: 0, ChangedLink: 0, ChangedAddress: 0, ChangedRoute: 0, ChangedNeighbour: 0, ChangedPod: 0, ChangedNetfilter: 0}
	k.rules = &rules{seen: map[string]seenRules{}}
	return &Reconciler{wake: make(chan struct{}, 1), reached: reached, want: k, err: fmt.Errorf("link %s: not set up yet", k.TAP), repairs: repairs}
}

// Set says what the state has to be from now on.
func (r *Reconciler) Set(s State) {
	r.mu.Lock()
	r.settled = r.settled && s.sameKernel(r.want.State)
	r.want.State = s
	r.mu.Unlock()
	r.Wake()
}

// Wake makes Run look at once.
func (r *Reconciler) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Err returns what keeps the kernel's state from being what it has to be, nil when nothing does.
func (r *Reconciler) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if self := r.want.State.Self; r.err == nil && self.subnets() != r.subnets {
		return fmt.Errorf("link %s: addresses and routes of the node's subnet are being made", r.want.TAP)
	}
	return r.err
}

// Repairs returns how often each kind of state was found changed by somebody else, and mended.
func (r *Reconciler) Repairs() map[Change]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.repairs)
}

// apply compares and mends once, everything or what is not announced. It reports whether a new state has been reached.
func (r *Reconciler) apply(everything bool) (State, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changes, err := r.want.apply(everything || r.err != nil || !r.settled)
	if r.settled {
		for _, c := range changes {
			r.repairs[c]++
			slog.Warn("kernel state was changed by somebody else; mended", "link", r.want.TAP, "what", c)
		}
	}
	if err != nil && (r.err == nil || err.Error() != r.err.Error()) {
		slog.Error("kernel state is not what it has to be", "error", err)
	}
	reached := err == nil && !r.settled
	if reached {
		r.subnets = r.want.State.Self.subnets()
	}
	r.err, r.settled = err, r.settled || reached
	return r.want.State, reached
}

// Run keeps the state until ctx ends.
func (r *Reconciler) Run(ctx context.Context) error {
	r.Wake()
	var wg sync.WaitGroup
	wg.Go(func() { watch(ctx, false, r.Wake) })
	defer wg.Wait()
	ticker := time.NewTicker(resyncInterval)
	defer ticker.Stop()
	for looks := 0; ; looks++ {
		everything := looks%everyResync == 0
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-r.wake:
			time.Sleep(settleTime)
			everything = true
		}
		if state, reached := r.apply(everything); reached {
			r.reached(state)
		}
	}
}
