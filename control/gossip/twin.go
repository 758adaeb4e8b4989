package gossip

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/control/claim"
)

func clonedAt(at netip.AddrPort) string {
	return fmt.Sprintf("the node at %s has this node's identity, most likely from a copy of its state directory: the one that started later makes a new one", at)
}

// meet is met for a member that memberlist calls alive. It may be this node's own boot before it changed its address, for
// as long as it takes to find that dead.
func (s *Store) meet(r *claim.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); s.machine.Twins.Met(r, now) {
		s.refusals.add(refusedCloned, clonedAt(r.Endpoint), now)
		s.dirty = true
	}
}

// twinVerdict is verdict for Run.
func (s *Store) twinVerdict(now time.Duration) *claim.Rebirth {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machine.Twins.Verdict(s.self, now)
}
