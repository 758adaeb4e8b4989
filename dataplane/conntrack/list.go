package conntrack

import (
	"iter"
	"time"
)

// Flows returns the live flows, each a consistent copy at the moment that it is yielded. Flows that come or go meanwhile may
// be there or not.
func (t *Table) Flows(now time.Duration) iter.Seq[Flow] {
	return func(yield func(Flow) bool) {
		for _, a := range []*area{&t.v4, &t.v6} {
			for s := uint64(0); s < a.slots; {
				if next := a.emptyUntil(s); next > s {
					s = next
					continue
				}
				if flow, _, ok := a.flow(s, seconds(now)); ok && !yield(flow) {
					return
				}
				s++
			}
		}
	}
}

// flow returns a consistent copy of a slot's flow, if there is a live one, and the control word that the answer is of.
func (a *area) flow(s uint64, now uint32) (flow Flow, ctrl uint64, live bool) {
	w := a.slot(s)
	for spin := 0; ; spin++ {
		e, ok := a.peek(s)
		if !ok || e.expired(now) {
			return Flow{}, e.ctrl, false
		}
		k := a.loadKey(s, e.ctrl)
		flow := Flow{
			ID: a.id(s, e.generation()), Tuple: a.tuple(&k, e.ctrl&swapped != 0),
			State: stateOf(e.ctrl), Replied: e.ctrl&replied != 0,
			Created: fromSeconds(e.created()), LastSeen: fromSeconds(e.lastSeen()), Expires: fromSeconds(e.lastSeen() + e.timeout()),
		}
		w.loadNAT(a.size, &flow.NAT)
		if w[wCtrl].Load() == e.ctrl {
			return flow, e.ctrl, true
		}
		pause(spin)
	}
}

func fromSeconds(s uint32) time.Duration { return time.Duration(s) * time.Second }
