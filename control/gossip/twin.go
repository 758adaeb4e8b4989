package gossip

import (
	"fmt"
	"net/netip"
	"time"
)

// How long another node with this one's identity must stay before it is a copy and no memory of an earlier boot: the
// later boot gives way first.
const (
	laterGivesWay   = 10 * time.Second
	earlierGivesWay = time.Minute
	twinForgotten   = 2 * time.Minute // push/pull repeats what is still so
)

// twins is what this node hears of its own identity. The zero value is ready.
type twins struct {
	above *record // the highest record of another boot above this one
	live  map[netip.AddrPort]*twin
}

// A twin is a live node elsewhere with this node's identity.
type twin struct {
	boot        *record
	first, last time.Duration
}

// heard takes a verified record of this node's own identity.
func (t *twins) heard(r, self *record) {
	if r.leaving() {
		delete(t.live, r.endpoint)
	}
	if r.compareBoot(self) > 0 && (t.above == nil || r.compare(t.above) > 0) {
		t.above = r
	}
}

// met notes that a member with this node's identity is at another endpoint, and says whether that is news.
func (t *twins) met(r *record, now time.Duration) bool {
	if t.live == nil {
		t.live = map[netip.AddrPort]*twin{}
	}
	if known := t.live[r.endpoint]; known != nil && now-known.last < twinForgotten {
		known.boot, known.last = r, now
		return false
	}
	t.live[r.endpoint] = &twin{r, now, now}
	return true
}

// verdict says whether this node has to start again.
func (t *twins) verdict(self *record, now time.Duration) *rebirth {
	elsewhere := false
	for at, other := range t.live {
		if now-other.last >= twinForgotten {
			delete(t.live, at)
			continue
		}
		elsewhere = true
		patience := laterGivesWay
		if self.compareBoot(other.boot) < 0 {
			patience = earlierGivesWay
		}
		if other.last-other.first >= patience {
			return &rebirth{fmt.Sprintf("the node at %s has the same identity: a copied state directory", at), true, nil}
		}
	}
	if t.above != nil && !elsewhere {
		return &rebirth{fmt.Sprintf("the others know boot %d of this node, its disk knew %d: the disk is an old copy", t.above.epoch, self.epoch), false, t.above}
	}
	return nil
}

func clonedAt(at netip.AddrPort) string {
	return fmt.Sprintf("the node at %s has this node's identity, most likely from a copy of its state directory: the one that started later makes a new one", at)
}

// meet is met for a member that memberlist calls alive. It may be this node's own boot before it changed its address, for
// as long as it takes to find that dead.
func (s *Store) meet(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); s.twins.met(r, now) {
		s.refusals.add(refusedCloned, clonedAt(r.endpoint), now)
		s.dirty = true
	}
}

// twinVerdict is verdict for Run.
func (s *Store) twinVerdict(now time.Duration) *rebirth {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.twins.verdict(s.self, now)
}
