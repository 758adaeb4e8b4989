package conntrack

import "sync/atomic"

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

// take counts a flow of the source with that hash, unless it is one too many. Both cells are counted before either is looked at: of flows
// that are taken at the same time the one that was counted last sees all of them, whatever the order of its cells. At the bound each of them may be
// refused for the others.
func (q *quota) take(source uint64) bool {
	if q.most == 0 {
		return true
	}
	q.count(source, 1)
	if first, second := q.of(source); min(first.Load(), second.Load()) <= q.most {
		return true
	}
	q.count(source, -1)
	return false
}

// count adds to a source's flows.
func (q *quota) count(source uint64, change int32) {
	if q.most == 0 {
		return
	}
	first, second := q.of(source)
	first.Add(change)
	second.Add(change)
}

// of returns the cells of a source, if there is a bound.
func (q *quota) of(source uint64) (first, second *atomic.Int32) {
	const mask = 1<<quotaBits - 1
	return &q.cells[0][source&mask], &q.cells[1][source>>quotaBits&mask]
}

// source is the hash of the address that sent the first packet of a flow with this key and control word.
func (a *area) source(k *key, ctrl uint64) uint64 {
	if a.quota.most == 0 {
		return 0
	}
	second := ctrl&swapped != 0
	switch {
	case a.size == slotLen4 && second:
		return a.key.hashAddr(0, k.addr[0]&0xffffffff)
	case a.size == slotLen4:
		return a.key.hashAddr(0, k.addr[0]>>32)
	case second:
		return a.key.hashAddr(k.addr[3], k.addr[1])
	}
	return a.key.hashAddr(k.addr[2], k.addr[0])
}
