package gossip

import (
	"cmp"
	"math"
	"slices"

	"github.com/tulle-net/tulle/control/claim"
)

// Rumors spread new records beside memberlist's own queue, which loses messages: after it has run empty it gives out its
// numbers again, and of two messages of one length and number the older vanishes (memberlist v0.7.0, queue.go, deleteItem
// and addItem; its issue 263). Records are almost all of one length. What both lose comes with the next push/pull.
//
// Not safe for concurrent use. The zero value is ready.
type rumors struct {
	of map[claim.NodeID]*rumor
}

// A rumor is a record to be sent some more times.
type rumor struct {
	raw  []byte
	left int // times
}

// rumorMult times the decimal logarithm of the number of nodes is how often a node passes a record on, as with memberlist's
// RetransmitMult.
const rumorMult = 4

// maxRumors bounds how many there are: where everything is news, as when all nodes start, they cannot be faster than the push/pull
// that brings it all, and each packet costs a look at each of them.
const maxRumors = 128

// spread passes a record on, in place of an older one of its node.
func (r *rumors) spread(rec *claim.Record, nodes int) {
	if r.of == nil {
		r.of = map[claim.NodeID]*rumor{}
	}
	if r.of[rec.ID] == nil && len(r.of) >= maxRumors {
		r.dropOldest()
	}
	r.of[rec.ID] = &rumor{rec.Raw, rumorMult * int(math.Ceil(math.Log10(float64(nodes+1))))}
}

// dropOldest forgets the rumor that was sent most often.
func (r *rumors) dropOldest() {
	var oldest claim.NodeID
	least := math.MaxInt
	for id, one := range r.of {
		if one.left < least {
			oldest, least = id, one.left
		}
	}
	delete(r.of, oldest)
}

// take returns what to send in one packet of limit bytes, with overhead bytes for each message: those that were sent least
// often first.
func (r *rumors) take(overhead, limit int) [][]byte {
	if len(r.of) == 0 {
		return nil
	}
	ids := make([]claim.NodeID, 0, len(r.of))
	for id := range r.of {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b claim.NodeID) int { return cmp.Compare(r.of[b].left, r.of[a].left) })
	var messages [][]byte
	for _, id := range ids {
		next := r.of[id]
		if limit -= overhead + len(next.raw); limit < 0 {
			break
		}
		messages = append(messages, next.raw)
		if next.left--; next.left <= 0 {
			delete(r.of, id)
		}
	}
	return messages
}
