package conntrack

import (
	"sync/atomic"

	"github.com/tulle-net/tulle/dataplane/word"
)

// A quota bounds the flows of each source: the address that a flow's first packet came from. Flows are counted in two rows of cells which
// a keyed hash chooses. A source has no more flows than either of its cells says, so that the bound is never passed; one that shares both
// cells with others meets it early, and with n sources besides those others have to be among n/65536 of them, twice. The zero value
// bounds nothing.
type quota struct {
	most  int32
	cells [2][]atomic.Int32 // nil without a bound
}

const quotaBits = 16

func newQuota(most int) quota {
	q := quota{most: int32(most)}
	for row := range q.cells {
		if most > 0 {
			q.cells[row] = make([]atomic.Int32, 1<<quotaBits)
		}
	}
	return q
}

// take counts a flow of the source with that hash, unless it is one too many.
func (q *quota) take(source uint64) bool {
	if q.most == 0 || q.count(source, 1) <= q.most {
		return true
	}
	q.count(source, -1)
	return false
}

// count adds to a source's flows, and returns how many it has at most.
func (q *quota) count(source uint64, change int32) int32 {
	if q.most == 0 {
		return 0
	}
	const mask = 1<<quotaBits - 1
	return min(q.cells[0][source&mask].Add(change), q.cells[1][source>>quotaBits&mask].Add(change))
}

// source is the hash of the address that sent the first packet of a flow with this key and control word.
func (a *area) source(k *key, ctrl uint64) uint64 {
	if a.quota.most == 0 {
		return 0
	}
	second := ctrl&swapped != 0
	if a.size == slotLen4 {
		if second {
			return word.Mix(k.addr[0]&0xffffffff^a.key[0], a.key[1])
		}
		return word.Mix(k.addr[0]>>32^a.key[0], a.key[1])
	}
	if second {
		return word.Mix(k.addr[1]^a.key[0], k.addr[3]^a.key[1])
	}
	return word.Mix(k.addr[0]^a.key[0], k.addr[2]^a.key[1])
}
