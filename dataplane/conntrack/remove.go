package conntrack

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A reason to remove an entry. It must hold when both locks are held, as the flow may have moved on meanwhile.
type reason uint8

const (
	asked    reason = iota // Delete
	timedOut               // by Sweep or by an insert that met it
	closed                 // re-opened by a SYN
	forRoom                // evicted
)

func (e *entry) due(why reason, now uint32) bool {
	switch why {
	case timedOut:
		return e.expired(now)
	case closed:
		return stateOf(e.ctrl) == TimeWait || stateOf(e.ctrl) == Close
	case forRoom:
		return !assured(stateOf(e.ctrl), e.ctrl&replied != 0)
	}
	return true
}

func (c *counters) removed(why reason) *atomic.Uint64 {
	switch why {
	case asked:
		return &c.deleted
	case forRoom:
		return &c.evicted
	}
	return &c.expired
}

// Delete removes a flow, and says whether it was there.
func (t *Table) Delete(id ID) bool {
	a, s, generation := t.locate(id)
	return s < a.slots && a.remove(s, generation, asked, 0)
}

// Sweep looks at so many slots from where the last one stopped, frees those of flows that have timed out, and
// returns how many. It stops nobody: it locks one flow at a time.
func (t *Table) Sweep(now time.Duration, maxSlots int) int {
	total := t.v4.slots + t.v6.slots
	n := min(uint64(max(maxSlots, 0)), total)
	from := t.cursor.Add(n) - n
	freed := 0
	for i := uint64(0); i < n; i++ {
		a, s := &t.v4, (from+i)%total
		if s >= t.v4.slots {
			a, s = &t.v6, s-t.v4.slots
		}
		if next := a.emptyUntil(s); next > s {
			i += next - s - 1
			continue
		}
		if e, ok := a.peek(s); ok && e.expired(seconds(now)) && a.remove(s, e.generation(), timedOut, seconds(now)) {
			freed++
		}
	}
	return freed
}

// peek returns a consistent copy of the entry in a slot, and false and the control word alone if the slot is free.
func (a *area) peek(s uint64) (entry, bool) {
	w := a.slot(s)
	for spin := 0; ; spin++ {
		ctrl := w[wCtrl].Load()
		if ctrl&locked == 0 {
			if stateOf(ctrl) == free {
				return entry{ctrl: ctrl}, false
			}
			if e := read(w, ctrl); w[wCtrl].Load() == ctrl {
				return e, true
			}
		}
		pause(spin)
	}
}

// remove frees a slot if it still holds that generation and the reason still holds.
func (a *area) remove(s uint64, generation uint32, why reason, now uint32) bool {
	for spin := 0; ; spin++ {
		e, ok := a.peek(s)
		if !ok || e.generation() != generation || !e.due(why, now) {
			return false
		}
		k := a.loadKey(s, e.ctrl) // of this generation or of no use
		if removed, done := a.removeFrom(a.home(k.hash), s, generation, why, now); done {
			return removed
		}
		pause(spin)
	}
}

// removeFrom frees a slot whose entry has that home, unless the slot is locked or its entry has another home by now: then done
// is false.
func (a *area) removeFrom(home, s uint64, generation uint32, why reason, now uint32) (removed, done bool) {
	h := a.lock(home)
	ctrl, ok := h, true
	if s != home {
		ctrl, ok = a.tryLock(s)
	}
	if !ok {
		a.release(home, h)
		return false, false
	}
	bit, listed := a.homeBit(home, h, s)
	e := read(a.slot(s), ctrl)
	if removed = listed && e.generation() == generation && stateOf(ctrl) != free && e.due(why, now); removed {
		a.stats.removed(why).Add(1)
		h, ctrl = bump(h)&^bit, bump(ctrl)&^entryMask
	}
	k := a.loadKey(s, e.ctrl)
	if s != home {
		a.release(s, ctrl)
	} else if removed {
		h &^= entryMask
	}
	a.release(home, h)
	if removed { // only now, so that there are never more entries than are counted
		a.quota.count(a.source(&k, e.ctrl), -1)
		a.count.Add(-1)
		a.occupied(s, -1)
	}
	return removed, listed
}

// homeBit returns the bit of a home's control word that stands for slot s, if it is set.
func (a *area) homeBit(home, h, s uint64) (bit uint64, listed bool) {
	for rest := h >> homeBits; rest != 0; rest &= rest - 1 {
		if i := bits.TrailingZeros64(rest); a.probeAt(home, i) == s {
			return 1 << (homeBits + i), true
		}
	}
	return 0, false
}

// replace removes the entry of k in slot s that lookup took for absent: it has timed out, or p is the SYN
// of the next connection.
func (a *area) replace(s uint64, k *key, p *Packet, now uint32) {
	e, ok := a.peek(s)
	if !ok || !a.slot(s).holds(e.ctrl, k, a.size) || a.slot(s)[wCtrl].Load() != e.ctrl {
		return // changed meanwhile: the next attempt sees to it
	}
	why := timedOut
	if kind, _ := p.TCP.kind(); p.Proto == protoTCP && kind == kindSYN && !e.expired(now) {
		why = closed
	}
	a.remove(s, e.generation(), why, now)
}

// evict makes room in a home's probe sequence: it removes an entry that has timed out, else the one of those that are not
// assured which was idle for longest. It returns false if there is neither.
func (a *area) evict(home uint64, now uint32) bool {
	var victim uint64
	var oldest entry
	for i := range probes {
		s := a.probeAt(home, i)
		e, ok := a.peek(s)
		switch {
		case !ok:
		case e.expired(now):
			a.remove(s, e.generation(), timedOut, now)
			return true
		case e.due(forRoom, now) && (oldest.ctrl == 0 || e.lastSeen() < oldest.lastSeen()):
			victim, oldest = s, e
		}
	}
	if oldest.ctrl == 0 {
		return false
	}
	a.remove(victim, oldest.generation(), forRoom, now)
	return true
}
