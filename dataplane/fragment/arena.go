package fragment

import "math/bits"

const (
	unit     = 256 // bytes of the smallest slot
	maxOrder = 9   // a slot of unit<<maxOrder bytes holds the largest frame
	chunk    = 1 << maxOrder
)

// An arena hands out slots of a fixed piece of memory, by the buddy system: a slot has a
// power of two of units and lies at a multiple of its size, so that two neighbours that were
// one are found by their address and become one again. Slots are named by their first unit.
type arena struct {
	mem   []byte
	units []unitState
	free  [maxOrder + 1]int // the first free slot of each order, -1 when there is none
}

// A unitState is valid iff a slot begins with the unit.
type unitState struct {
	order      uint8
	free       bool
	prev, next int // in the list of free slots, -1 at the ends; valid iff free
}

// newArena returns an arena of memory bytes, rounded down to whole chunks; at least one.
func newArena(memory int) arena {
	n := max(memory/(chunk*unit), 1) * chunk
	a := arena{mem: make([]byte, n*unit), units: make([]unitState, n)}
	for order := range a.free {
		a.free[order] = -1
	}
	for s := 0; s < n; s += chunk {
		a.push(s, maxOrder)
	}
	return a
}

// take returns a slot of at least n bytes; false when there is none.
func (a *arena) take(n int) (int, bool) {
	want := bits.Len(uint((n - 1) / unit))
	order := want
	for order <= maxOrder && a.free[order] < 0 {
		order++
	}
	if order > maxOrder {
		return 0, false
	}
	s := a.free[order]
	a.remove(s)
	for ; order > want; order-- {
		a.push(s+1<<(order-1), order-1)
	}
	a.units[s] = unitState{order: uint8(want)}
	return s, true
}

// give takes a slot back.
func (a *arena) give(s int) {
	order := int(a.units[s].order)
	for order < maxOrder {
		buddy := s ^ 1<<order
		if u := a.units[buddy]; !u.free || int(u.order) != order {
			break
		}
		a.remove(buddy)
		s &= buddy
		order++
	}
	a.push(s, order)
}

// bytes returns the memory of a slot that take returned.
func (a *arena) bytes(s int) []byte {
	from, to := s*unit, (s+1<<a.units[s].order)*unit
	return a.mem[from:to:to]
}

func (a *arena) push(s, order int) {
	first := a.free[order]
	if first >= 0 {
		a.units[first].prev = s
	}
	a.units[s] = unitState{order: uint8(order), free: true, prev: -1, next: first}
	a.free[order] = s
}

func (a *arena) remove(s int) {
	u := &a.units[s]
	if u.prev >= 0 {
		a.units[u.prev].next = u.next
	} else {
		a.free[u.order] = u.next
	}
	if u.next >= 0 {
		a.units[u.next].prev = u.prev
	}
	u.free = false
}
