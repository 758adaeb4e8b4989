package claim

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

// Twins is what this node hears of its own identity. The zero value is ready.
type Twins struct {
	Last  LastWords // of the boot before
	above *Record   // the highest record of another boot above this one
	live  map[netip.AddrPort]*twin
}

// A twin is a live node elsewhere with this node's identity.
type twin struct {
	boot        *Record
	first, last time.Duration
}

// Heard takes a verified record of this node's own identity.
func (t *Twins) Heard(r, self *Record) {
	if r.Leaving() {
		delete(t.live, r.Endpoint)
	}
	other := r.compareBoot(self) > 0 || r.Epoch == self.Epoch && r.Nonce != self.Nonce || t.Last.contradicts(r)
	if other && (t.above == nil || r.compare(t.above) > 0) {
		t.above = r
	}
}

// Met notes that a member with this node's identity is at another endpoint, and says whether that is news.
func (t *Twins) Met(r *Record, now time.Duration) bool {
	if t.live == nil {
		t.live = map[netip.AddrPort]*twin{}
	}
	if known := t.live[r.Endpoint]; known != nil && now-known.last < twinForgotten {
		known.boot, known.last = r, now
		return false
	}
	t.live[r.Endpoint] = &twin{r, now, now}
	return true
}

// Verdict says whether this node has to start again.
func (t *Twins) Verdict(self *Record, now time.Duration) *Rebirth {
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
			return &Rebirth{Reason: fmt.Sprintf("the node at %s has the same identity: a copied state directory", at), Fresh: true}
		}
	}
	if t.above != nil && !elsewhere {
		return &Rebirth{fmt.Sprintf("the others know boot %d of this node, its disk knew %d: the disk is an old copy", t.above.Epoch, self.Epoch), false, t.above}
	}
	return nil
}

// A Rebirth is why and how a node starts again under another name.
type Rebirth struct {
	Reason string
	Fresh  bool    // with a new identity
	Above  *Record // valid iff not fresh: the record that the others hold of this node
}
