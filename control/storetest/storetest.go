// Package storetest holds every control.Store to the same behaviour. It knows no store: each package's test hands its own over.
package storetest

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tulle-net/tulle/control"
)

// patience is how long a test waits for something that takes seconds on an idle machine.
const patience = 60 * time.Second

// A Network is some nodes of one network that learn of each other by one kind of store.
type Network interface {
	// Open makes the store of node i, from 1. What the node keeps on disk is there again when it is opened a second time.
	Open(t *testing.T, i int) control.Store
}

// Dirs are the state directories of nodes, made when they are asked for first.
type Dirs map[int]string

// Of returns node i's.
func (d Dirs) Of(t *testing.T, i int) string {
	if d[i] == "" {
		d[i] = t.TempDir()
	}
	return d[i]
}

// Run runs the suite, each test in a network of its own.
func Run(t *testing.T, network func(*testing.T) Network) {
	for name, test := range map[string]func(*testing.T, Network){
		"nodes learn of each other":           learn,
		"a subnet stays over a restart":       restart,
		"one view says everything":            whole,
		"Run ends with its context":           ends,
		"View is what was handed over last":   last,
		"what was handed over is not changed": constant,
	} {
		t.Run(name, func(t *testing.T) { test(t, network(t)) })
	}
}

// A node is a store that runs.
type node struct {
	control.Store
	t    *testing.T
	stop func()

	mu    sync.Mutex
	views []control.View
	ended bool
	late  int // updates after Run's end
}

func start(t *testing.T, n Network, i int) *node {
	t.Helper()
	r := &node{Store: n.Open(t, i), t: t}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := r.Run(ctx, r.update)
		r.mu.Lock()
		r.ended = true
		r.mu.Unlock()
		done <- err
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *node) update(v control.View) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.views = append(r.views, v)
	if r.ended {
		r.late++
	}
}

func (r *node) now() control.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.views) == 0 {
		return control.View{}
	}
	return r.views[len(r.views)-1]
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// knows says whether the node's last view has a route to the other's subnet, as the other one says that it is.
func (r *node) knows(other *node) bool {
	self := other.now().Self
	for _, p := range r.now().Peers {
		if p.Routable && p.PublicIP == self.PublicIP && p.Subnet == self.Subnet && p.Subnet.IsValid() && p.BackendType == self.BackendType && p.VTEP == self.VTEP {
			return true
		}
	}
	return false
}

func together(t *testing.T, n Network, count int) (all []*node) {
	t.Helper()
	for i := range count {
		all = append(all, start(t, n, i+1))
	}
	for _, a := range all {
		for _, b := range all {
			await(t, "all know all", func() bool { return a == b && a.now().Self.HasSubnet() || a.knows(b) })
		}
	}
	return all
}

func learn(t *testing.T, n Network) {
	all := together(t, n, 3)
	seen := map[netip.Prefix]bool{}
	for _, r := range all {
		v := r.now()
		if seen[v.Self.Subnet] {
			t.Errorf("%s twice", v.Self.Subnet)
		}
		if seen[v.Self.Subnet] = true; len(v.Peers) != 2 || v.Members != 3 || len(v.Problems) != 0 {
			t.Errorf("%d peers, %d members, problems %q", len(v.Peers), v.Members, v.Problems)
		}
	}
}

func restart(t *testing.T, n Network) {
	all := together(t, n, 2)
	subnet := all[1].now().Self.Subnet
	all[1].stop()
	again := start(t, n, 2)
	await(t, "the subnet is back", func() bool { return again.now().Self.Subnet == subnet })
	await(t, "both know each other again", func() bool { return again.knows(all[0]) && all[0].knows(again) })
	again.mu.Lock()
	defer again.mu.Unlock()
	for _, v := range again.views {
		if v.Self.HasSubnet() && v.Self.Subnet != subnet {
			t.Errorf("it had %s for a while, and %s before", v.Self.Subnet, subnet)
		}
	}
}

func whole(t *testing.T, n Network) {
	all := together(t, n, 2)
	late := start(t, n, 3)
	await(t, "the last one knows all", func() bool { return late.knows(all[0]) && late.knows(all[1]) && late.now().Self.HasSubnet() })
	if v := late.now(); len(v.Peers) != 2 {
		t.Errorf("one view has %d peers", len(v.Peers))
	}
}

func ends(t *testing.T, n Network) {
	r := start(t, n, 1)
	await(t, "a view", func() bool { return r.now().Self.PublicIP.IsValid() })
	r.stop()
	time.Sleep(200 * time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.late > 0 {
		t.Errorf("%d updates after Run has returned", r.late)
	}
}

func last(t *testing.T, n Network) {
	all := together(t, n, 2)
	await(t, "View says the same", func() bool {
		a, b := all[0].View(), all[0].now()
		if len(a.Peers) != 1 || len(b.Peers) != 1 || a.Self != b.Self {
			return false
		}
		p, q := a.Peers[0], b.Peers[0]
		p.LastSeen, q.LastSeen = time.Time{}, time.Time{}
		return p == q
	})
}

func constant(t *testing.T, n Network) {
	one := start(t, n, 1)
	await(t, "a subnet", func() bool { return one.now().Self.HasSubnet() })
	before := one.now()
	peers := append([]control.Peer(nil), before.Peers...)
	two := start(t, n, 2)
	await(t, "the other one is known", func() bool { return one.knows(two) })
	for i := range peers {
		if before.Peers[i] != peers[i] {
			t.Errorf("peer %d of an old view has changed: %+v, was %+v", i, before.Peers[i], peers[i])
		}
	}
}
