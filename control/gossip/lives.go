package gossip

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// memberName is a boot's name in memberlist: a boot that comes back is a new member, and nothing that is said of the old
// one can hurt it.
func memberName(id nodeID, epoch uint64) string {
	return id.String() + "." + strconv.FormatUint(epoch, 10)
}

// parseMember is memberName's inverse.
func parseMember(name string) (id nodeID, epoch uint64, ok bool) {
	text, number, _ := strings.Cut(name, ".")
	raw, err := idEncoding.DecodeString(text)
	epoch, err2 := strconv.ParseUint(number, 10, 64)
	if err != nil || err2 != nil || len(raw) != len(id) {
		return id, 0, false
	}
	id = nodeID(raw)
	return id, epoch, memberName(id, epoch) == name
}

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
}

// lives follows the members. Not safe for concurrent use.
type lives struct {
	of        map[nodeID]*life
	lastAck   time.Duration // last probe that anybody answered
	cutOff    bool
	lost, all int // valid iff cutOff: peers that fell silent together, of how many
}

func (l *lives) joined(id nodeID, epoch uint64, now time.Duration) {
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

func (l *lives) left(id nodeID, epoch uint64, now time.Duration) {
	if known := l.of[id]; known != nil && known.epoch == epoch && known.alive {
		known.alive, known.since = false, now
	}
}

func (l *lives) acked(id nodeID, now time.Duration) {
	l.lastAck = now
	if known := l.of[id]; known != nil {
		known.seen = time.Now()
	}
}

// alive says whether the boot that the record is of is a live member that does not leave.
func (l *lives) alive(r *record) bool {
	known := l.of[r.id]
	return known != nil && known.alive && known.epoch == r.epoch && !r.leaving()
}

// again says whether the record's node is alive in another boot than the record's: it has come back, and its record and its
// membership do not arrive at the same moment. Nothing says that it is dead.
func (l *lives) again(r *record) bool {
	known := l.of[r.id]
	return known != nil && known.alive && known.epoch != r.epoch && !r.leaving()
}

// judge decides whether the dead are dead or this node is cut off: more than half of the peers fell silent together, or
// nobody answers any more. The dead of a storm are kept until most of them are back.
func (l *lives) judge(known records, self nodeID, now time.Duration) {
	var storm []*life
	living := 0
	for id, r := range known {
		switch one := l.of[id]; {
		case id == self || one == nil || r.leaving():
		case l.alive(r):
			living++
		case !one.alive && one.epoch == r.epoch && (one.kept || now-one.since < stormWindow):
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
	of     *record
	with   *record
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
func conflicts(alive []*record) map[nodeID]conflict {
	found := map[nodeID]conflict{}
	for _, key := range []struct {
		reason string
		of     func(*record) string
	}{
		{refusedName, func(r *record) string { return r.name }},
		{refusedEndpoint, func(r *record) string { return r.endpoint.Addr().String() }},
	} {
		winners := map[string]*record{}
		for _, r := range alive {
			if w := winners[key.of(r)]; w == nil || senior(r, w) {
				winners[key.of(r)] = r
			}
		}
		for _, r := range alive {
			if w := winners[key.of(r)]; w != r {
				found[r.id] = conflict{key.reason, r, w}
			}
		}
	}
	return found
}

// senior says whether a has the better right to a name or an address.
func senior(a, b *record) bool {
	ca, aok := a.confirmedClaim()
	cb, bok := b.confirmedClaim()
	if aok != bok {
		return aok
	}
	return cmp.Or(cmp.Compare(cb.tenure, ca.tenure), a.id.compare(b.id)) < 0
}
