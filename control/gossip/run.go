package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tulle-net/tulle/control/claim"
)

const (
	tick         = 250 * time.Millisecond // at most this long until a refusal is in the View
	minPause     = 20 * time.Millisecond  // between two looks, which cost the more the more nodes there are
	pauseEach    = 500 * time.Microsecond // is added for each node
	idleTurn     = time.Second            // at least this often the clock is looked at
	leaveTimeout = time.Second            // for each of the two messages of a node that goes
	saveInterval = 30 * time.Second       // of what is merely useful after a restart
)

// Run keeps the node in the network until ctx ends, then leaves it: the others drop its routes and keep its claim. update is
// called with the whole View after each change, coalesced, from one goroutine. Run returns nil at the end of ctx.
func (s *Store) Run(ctx context.Context, update func(View)) error {
	if s.list == nil {
		return errRan
	}
	defer s.shutdown()
	for {
		next, err := s.session(ctx, update)
		if err != nil || next == nil {
			return err
		}
		if err := s.reboot(next); err != nil {
			return err
		}
	}
}

// session runs one boot until ctx ends, or until the node has to start again.
func (s *Store) session(ctx context.Context, update func(View)) (*claim.Rebirth, error) {
	joinCtx, stop := context.WithCancel(ctx)
	var joins sync.WaitGroup
	joins.Go(func() { s.rejoin(joinCtx) })
	defer joins.Wait()
	defer s.stop() // cuts a dial that is under way
	defer stop()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	s.poke()
	var last, saved time.Duration
	for {
		select {
		case <-ctx.Done():
			s.leave()
			return nil, nil
		case f := <-s.calls:
			f()
		case <-s.wake:
		case <-ticker.C:
		}
		time.Sleep(last + s.pause() - s.now()) // news come in bursts
		now := s.now()
		if !s.due(now, last) {
			continue
		}
		last = now
		if next := s.twinVerdict(now); next != nil {
			return next, nil
		}
		if err := s.turn(now); err != nil {
			return nil, err
		}
		if now-saved >= saveInterval {
			saved = now
			s.saveNews()
		}
		if v, changed := s.look(now); changed {
			update(v)
		}
	}
}

// pause is how long a look takes effect at the latest after its cause: at 1,000 nodes half a second.
func (s *Store) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return minPause + time.Duration(len(s.known))*pauseEach
}

// due says whether there is anything to look at.
func (s *Store) due(now, last time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.dirty || now-last >= idleTurn || s.claimer.Claim.State == claim.Tentative && s.claimer.Claim.Block.IsValid()
	s.dirty = false
	return due
}

// turn lets the claimer decide, and makes its decision known: on disk first, then to the others.
func (s *Store) turn(now time.Duration) error {
	before := s.claimer.Lost
	situation := s.situation(now)
	if s.decide(situation) {
		if s.keep(s.claimer.Claim); s.diskErr == nil {
			s.claimer.Confirm(now)
		}
	}
	if s.claimer.Lost != before {
		s.config.Log.Warn("gossip: withdrew this node's subnet: it is another's", "times", s.claimer.Lost)
	}
	if !s.claimer.Claim.Block.IsValid() && len(s.disk.Claims) > 0 {
		s.disk.Claims = nil
		s.save()
	}
	if err := s.turnKeys(now); err != nil && s.diskErr == nil {
		s.diskErr = err
	}
	if !s.claimer.Stale(situation) {
		return nil
	}
	if err := s.renew(0); err != nil {
		return err
	}
	s.announce()
	return nil
}

// situation copies what the claimer has to know.
func (s *Store) situation(now time.Duration) claim.Situation {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lives.judge(s.known, s.id, now)
	out := claim.Situation{Now: now, Self: s.self, Ready: s.joined, Members: 1, Dead: map[claim.NodeID]bool{}, Live: []claim.NodeID{s.id}}
	var alive []*claim.Record
	for _, r := range s.known {
		switch {
		case r == s.self:
			alive = append(alive, r)
		case s.lives.alive(r):
			alive = append(alive, r)
			out.Members++
			out.Live = append(out.Live, r.ID)
		default:
			out.Dead[r.ID] = true
		}
	}
	if out.Barred = s.settle(alive); out.Barred != "" && s.claimer.Problem == "" {
		s.config.Log.Warn("gossip: refused by the others", "reason", out.Barred)
	}
	if s.config.Reserved != nil {
		out.Reserved = s.config.Reserved()
	}
	return out
}

// settle finds the nodes that are refused although they are alive, counts the new ones, and says why this node is one.
func (s *Store) settle(alive []*claim.Record) (barred string) {
	before := s.conflicts
	s.conflicts = conflicts(alive)
	for id, c := range s.conflicts {
		if before[id].reason != c.reason {
			s.refusals.add(c.reason, c.String(), s.now())
		}
	}
	if c, ok := s.conflicts[s.id]; ok {
		return fmt.Sprintf("this node is refused: %s: until one of the two has another or ends, this node gets no subnet and no traffic", c)
	}
	return ""
}

// keep writes the claim to disk as confirmed.
func (s *Store) keep(c claim.Claim) {
	s.disk.Claims = []diskClaim{toDisk(c)}
	s.save()
}

// saveNews saves when enough has changed since the last time to be worth a write.
func (s *Store) saveNews() {
	age, grown := s.claimer.Age(s.now()), time.Duration(0)
	if age > 0 && len(s.disk.Claims) > 0 {
		grown = age - time.Duration(s.disk.Claims[0].TenureMS)*time.Millisecond
	}
	live := s.liveEndpoints()
	s.mu.Lock()
	unsaved := s.unsaved
	s.unsaved = false
	s.mu.Unlock()
	moved := len(live) > 0 && !slices.Equal(live, s.disk.Endpoints)
	if moved || unsaved || s.diskErr != nil || grown >= time.Hour || grown >= time.Minute && 10*grown >= age {
		s.save()
	}
}

// save writes the state with what is known now. A failure is a problem, not an end.
func (s *Store) save() {
	if c := s.claimer.Claim; c.State == claim.Confirmed && len(s.disk.Claims) > 0 {
		c.Tenure = s.claimer.Age(s.now())
		s.disk.Claims[0] = toDisk(c)
	}
	if live := s.liveEndpoints(); len(live) > 0 {
		s.disk.Endpoints = live
	}
	s.mu.Lock()
	s.disk.remember(s.machine.Memory(netip.Prefix{}))
	s.mu.Unlock()
	s.diskErr = s.disk.save(s.config.StateDir)
}

func (s *Store) liveEndpoints() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var live []netip.AddrPort
	for _, r := range s.known {
		if r.ID != s.id && s.lives.alive(r) {
			live = append(live, r.Endpoint)
		}
	}
	slices.SortFunc(live, func(a, b netip.AddrPort) int {
		return cmp.Or(cmp.Compare(s.weightOf(a), s.weightOf(b)), a.Compare(b))
	})
	return live[:min(len(live), maxEndpoints)]
}

// weightOf makes the choice of the endpoints that are kept stable, and another one on each node.
func (s *Store) weightOf(at netip.AddrPort) uint64 {
	return claim.Weight(s.id, netip.PrefixFrom(at.Addr(), at.Addr().BitLen()))
}

// leave says goodbye: the record that says so directly to every member, so that routes go at once, then by gossip, then
// memberlist's own.
func (s *Store) leave() {
	s.save()
	s.claimer.Claim.Tenure = s.claimer.Age(s.now())
	if err := s.renew(claim.FlagLeaving); err != nil {
		s.config.Log.Warn("gossip: leave", "err", err)
	}
	for _, m := range s.list.Members() {
		if m.Name != claim.MemberName(s.id, s.disk.BootEpoch) {
			_ = s.list.SendBestEffort(m, s.self.Raw)
		}
	}
	if err := errors.Join(s.list.UpdateNode(leaveTimeout), s.list.Leave(leaveTimeout)); err != nil {
		s.config.Log.Debug("gossip: leave", "err", err)
	}
}

// reboot starts again under another name: as a new node, or as the same above everything that is known of it.
func (s *Store) reboot(next *claim.Rebirth) error {
	s.config.Log.Warn("gossip: the node starts again", "reason", next.Reason, "newIdentity", next.Fresh)
	if next.Fresh {
		s.leave() // tells the rightful holder that the identity is free
	}
	if err := s.shutdown(); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	if next.Fresh {
		key, err := newIdentity(s.config.StateDir)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.key = key
		s.mu.Unlock()
		former := s.id
		err = s.boot(0)
		s.claimer.Former = former
		return err
	}
	var kept []claim.Claim
	for _, d := range s.disk.Claims {
		if c, err := d.claim(); err == nil {
			kept = append(kept, c)
		}
	}
	s.claimer.Claim, s.disk.Claims = claim.Claim{}, nil
	for _, c := range s.machine.Reborn(next, kept) {
		s.disk.Claims = append(s.disk.Claims, toDisk(c))
	}
	s.save()
	return s.boot(next.Above.Epoch)
}
