package gossip

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/control/claim"
)

const (
	// stormWindow: deaths closer together than this are one event.
	stormWindow = 30 * time.Second
	// silence without any answer to a probe means that it is this node that does not hear.
	silence = 5 * probeInterval
)

// A life is what the failure detector says of a node's newest boot.
type life struct {
	epoch uint64
	alive bool
	kept  bool          // dead, but believed to be out of reach for this node only
	since time.Duration // of the last change, monotonic
	seen  time.Time     // last sign of life
	id    string        // the node's, as text; may be empty
	meta  []byte        // what memberlist tells others of the boot; valid iff alive
}

// lives follows the members. Not safe for concurrent use.
type lives struct {
	of        map[claim.NodeID]*life
	lastAck   time.Duration // last probe that anybody answered
	cutOff    bool
	lost, all int // valid iff cutOff: peers that fell silent together, of how many
}

func (l *lives) joined(id claim.NodeID, epoch uint64, now time.Duration) {
	known := l.of[id]
	if known == nil || epoch > known.epoch {
		l.of[id] = &life{epoch: epoch, alive: true, since: now, seen: time.Now()}
		return
	}
	if epoch == known.epoch {
		known.seen = time.Now()
		if !known.alive {
			known.alive, known.kept, known.since = true, false, now
		}
	}
}

func (l *lives) left(id claim.NodeID, epoch uint64, now time.Duration) {
	if known := l.of[id]; known != nil && known.epoch == epoch && known.alive {
		known.alive, known.since = false, now
	}
}

func (l *lives) acked(id claim.NodeID, now time.Duration) {
	l.lastAck = now
	if known := l.of[id]; known != nil {
		known.seen = time.Now()
	}
}

// told says whether memberlist carries the record in its own part of a push/pull.
func (l *lives) told(r *claim.Record) bool {
	known := l.of[r.ID]
	return known != nil && known.alive && known.epoch == r.Epoch && string(known.meta) == string(r.Raw)
}

// alive says whether the boot that the record is of is a live member that does not leave.
func (l *lives) alive(r *claim.Record) bool {
	known := l.of[r.ID]
	return known != nil && known.alive && known.epoch == r.Epoch && !r.Leaving()
}

// again says whether the record's node is alive in another boot than the record's: it has come back, and its record and its
// membership do not arrive at the same moment. Nothing says that it is dead.
func (l *lives) again(r *claim.Record) bool {
	known := l.of[r.ID]
	return known != nil && known.alive && known.epoch != r.Epoch && !r.Leaving()
}

// judge decides whether the dead are dead or this node is cut off: more than half of the peers fell silent together, or
// nobody answers any more. The dead of a storm are kept until most of them are back.
func (l *lives) judge(known claim.Records, self claim.NodeID, now time.Duration) {
	var storm []*life
	living := 0
	for id, r := range known {
		switch one := l.of[id]; {
		case id == self || one == nil || r.Leaving():
		case l.alive(r):
			living++
		case !one.alive && one.epoch == r.Epoch && (one.kept || now-one.since < stormWindow):
			storm = append(storm, one)
		}
	}
	deaf := living > 0 && now-l.lastAck > silence
	l.lost, l.all = len(storm), living+len(storm)
	l.cutOff = l.lost > 0 && (2*l.lost > l.all || deaf)
	for _, one := range storm {
		one.kept = l.cutOff
	}
}

// A conflict is why a node is refused although it is alive.
type conflict struct {
	reason string // refusal reason: name or endpoint
	of     *claim.Record
	with   *claim.Record
}

// String says it in words.
func (c conflict) String() string {
	what := "name"
	if c.reason == refusedEndpoint {
		what = "public IP"
	}
	return fmt.Sprintf("the %s of %s is that of %s", what, c.of, c.with)
}

// conflicts finds live nodes that cannot both be: two with one name or one public IP. The one with the longest confirmed
// tenure stays, then the one with the lower ID; everybody comes to the same result.
func conflicts(alive []*claim.Record) map[claim.NodeID]conflict {
	found := map[claim.NodeID]conflict{}
	contend(alive, refusedName, func(r *claim.Record) string { return r.Name }, found)
	contend(alive, refusedEndpoint, func(r *claim.Record) netip.Addr { return r.Endpoint.Addr() }, found)
	return found
}

// contend finds those of which another one has the same key.
func contend[K comparable](alive []*claim.Record, reason string, key func(*claim.Record) K, found map[claim.NodeID]conflict) {
	winners := make(map[K]*claim.Record, len(alive))
	for _, r := range alive {
		if w := winners[key(r)]; w == nil || senior(r, w) {
			winners[key(r)] = r
		}
	}
	if len(winners) == len(alive) {
		return
	}
	for _, r := range alive {
		if w := winners[key(r)]; w != r {
			found[r.ID] = conflict{reason, r, w}
		}
	}
}

// senior says whether a has the better right to a name or an address.
func senior(a, b *claim.Record) bool {
	ca, aok := a.ConfirmedClaim()
	cb, bok := b.ConfirmedClaim()
	if aok != bok {
		return aok
	}
	return cmp.Or(cmp.Compare(cb.Tenure, ca.Tenure), a.ID.Compare(b.ID)) < 0
}
