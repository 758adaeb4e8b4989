package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/tulle-net/tulle/control/claim"
)

// Quarantine is how long a block rests that was given back or taken away.
const Quarantine = claim.Quarantine

// A Subnet is a block, who holds or held it, and what is known of that.
type Subnet struct {
	Block      netip.Prefix
	Node       string // name; empty for a block in quarantine
	NodeID     string
	State      string // confirmed, tentative, released, ended by a fence, or quarantine
	Owner      bool   // whom the block belongs to, of all that claim it or a part of it
	Live       string // of the node: alive, dead or left
	Tenure     time.Duration
	Fence      uint64
	Quarantine time.Duration // left; 0 for none
}

// Subnets lists all claims that this node knows of, and the blocks in quarantine, by block. Safe for concurrent use.
func (s *Store) Subnets() (all []Subnet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.machine.Survey() {
		one := Subnet{Block: h.Block, State: h.State, Owner: h.Owner, Tenure: h.Tenure, Fence: h.Fence, Quarantine: h.Quarantine}
		if r := s.known[h.Node]; r != nil {
			one.Node, one.NodeID, one.Live = r.Name, r.ID.String(), Alive
			if r != s.self && !s.lives.alive(r) {
				one.Live = map[bool]string{true: Left, false: Dead}[r.Leaving()]
			}
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Subnet) int {
		return cmp.Or(a.Block.Addr().Compare(b.Block.Addr()), a.Block.Bits()-b.Block.Bits(), cmp.Compare(a.Node, b.Node), cmp.Compare(a.State, b.State))
	})
	return all
}

// Forget takes the blocks of a node that is gone away from it, by name or by ID, and returns them: from now on they are in quarantine, then
// free. It can be done twice and on two nodes at once. A node that is alive is refused: it would go on, and claim another block.
func (s *Store) Forget(ctx context.Context, node string) (blocks []netip.Prefix, err error) {
	err = s.between(ctx, func() error {
		s.mu.Lock()
		r, err := s.gone(node)
		if err == nil {
			for _, c := range r.Claims {
				blocks = append(blocks, c.Block)
			}
			s.machine.Forget(r.ID, s.now())
			s.dirty = true
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
		s.save()
		return s.diskErr
	})
	return blocks, err
}

// gone returns the record of a node that can be forgotten.
func (s *Store) gone(node string) (found *claim.Record, err error) {
	for _, r := range s.known {
		if r.Name != node && r.ID.String() != node {
			continue
		}
		switch {
		case r == s.self:
			return nil, fmt.Errorf("%s is this node: tulle leave gives its subnet back", node)
		case s.lives.alive(r):
			return nil, fmt.Errorf("%s is alive (%s): end its daemon first, or let it go by itself with tulle leave there", node, r.Endpoint.Addr())
		case found != nil:
			return nil, fmt.Errorf("%s is the name of several nodes that are gone (IDs %s and %s): give the ID", node, found.ID, r.ID)
		}
		found = r
	}
	if found == nil {
		return nil, fmt.Errorf("no node %s is known: tulle peers lists them", node)
	}
	return found, nil
}

// Release gives this node's blocks back for good, and returns them. The node is to end then: it claims nothing more.
func (s *Store) Release(ctx context.Context) (blocks []netip.Prefix, err error) {
	err = s.between(ctx, func() error {
		s.mu.Lock()
		for _, c := range s.claimer.Claims() {
			blocks = append(blocks, c.Block)
		}
		s.machine.Release(s.now())
		s.mu.Unlock()
		s.disk.Claims = nil
		if s.save(); s.diskErr != nil {
			return s.diskErr
		}
		if err := s.renew(0); err != nil {
			return err
		}
		s.announce()
		return nil
	})
	return blocks, err
}

// between runs f between two turns of Run, and waits for it.
func (s *Store) between(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	select {
	case s.calls <- func() { done <- f() }:
		return <-done
	case <-ctx.Done():
		return errors.Join(errors.New("gossip does not run"), context.Cause(ctx))
	}
}
