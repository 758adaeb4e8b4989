package fragment

import (
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A held is a copy of a fragment that waits for its datagram's first.
type held struct {
	frame    packet.Frame
	slot     int // in the arena
	deadline time.Duration
	verdict  packet.Verdict // valid iff lost
	datagram *datagram
	sibling  *held // the next one of its datagram

	prev, next *held // in its list
}

// A list is a doubly linked list of held fragments. The zero value is empty.
type list struct{ first, last *held }

func (l *list) push(h *held) {
	h.prev, h.next = l.last, nil
	if l.last != nil {
		l.last.next = h
	} else {
		l.first = h
	}
	l.last = h
}

func (l *list) remove(h *held) {
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		l.first = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	} else {
		l.last = h.prev
	}
}

// A hold is the memory of fragments that wait. Each one is in one list.
type hold struct {
	arena   arena
	unused  []held // never used yet: taken last, so that they cost no resident memory before
	free    list
	waiting list // in the order of arrival, and so of deadlines
	lost    list // to be returned by Expire
	out     list // returned, in use until Recycle
}

func newHold(frames, memory int) hold {
	return hold{arena: newArena(memory), unused: make([]held, frames)}
}

// keep holds a copy of the frame; it reports false when there is no room.
func (h *hold) keep(d *datagram, f *packet.Frame, deadline time.Duration) bool {
	if h.free.first == nil && len(h.unused) == 0 {
		return false
	}
	slot, ok := h.arena.take(packet.SlotSize(f.Len()))
	if !ok {
		return false
	}
	e := h.entry()
	f.CopyTo(&e.frame, h.arena.bytes(slot))
	e.slot, e.deadline, e.datagram, e.sibling = slot, deadline, d, nil
	if d.held == nil {
		d.held = e
	} else {
		d.heldLast.sibling = e
	}
	d.heldLast = e
	h.waiting.push(e)
	return true
}

// entry takes one that is free. There must be one.
func (h *hold) entry() *held {
	e := h.free.first
	if e == nil {
		e, h.unused = &h.unused[0], h.unused[1:]
		return e
	}
	h.free.remove(e)
	return e
}

// release returns the datagram's first fragment that waits; nil when none does.
func (h *hold) release(d *datagram) *held {
	e := h.pop(d)
	if e != nil {
		h.out.push(e)
	}
	return e
}

// doom gives up all fragments of the datagram that wait.
func (h *hold) doom(d *datagram, v packet.Verdict) {
	for e := h.pop(d); e != nil; e = h.pop(d) {
		e.verdict = v
		h.lost.push(e)
	}
}

// pop takes the datagram's first fragment off the waiting list.
func (h *hold) pop(d *datagram) *held {
	e := d.held
	if e != nil {
		d.held = e.sibling
		h.waiting.remove(e)
	}
	return e
}

// expire gives up those that waited long enough. The one that waited longest is the first of
// its datagram too.
func (h *hold) expire(now time.Duration) {
	for e := h.waiting.first; e != nil && now >= e.deadline; e = h.waiting.first {
		h.pop(e.datagram)
		e.verdict = packet.DropFragmentOrphan
		h.lost.push(e)
	}
}

// takeLost returns the next one given up; nil when there is none.
func (h *hold) takeLost() *held {
	e := h.lost.first
	if e != nil {
		h.lost.remove(e)
		h.out.push(e)
	}
	return e
}

func (h *hold) deadline() (time.Duration, bool) {
	switch {
	case h.lost.first != nil:
		return 0, true // overdue
	case h.waiting.first != nil:
		return h.waiting.first.deadline, true
	}
	return 0, false
}

func (h *hold) segments() int {
	n := 0
	for _, l := range []*list{&h.waiting, &h.lost} {
		for e := l.first; e != nil; e = e.next {
			n += e.frame.Segments
		}
	}
	return n
}

func (h *hold) recycle() {
	for e := h.out.first; e != nil; e = h.out.first {
		h.out.remove(e)
		h.arena.give(e.slot)
		h.free.push(e)
	}
}
