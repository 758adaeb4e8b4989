package conntrack

import (
	"math/bits"
	"runtime"
	"time"
)

// Lookup finds the packet's flow and advances it by the packet. It misses when there is none, when it has timed out,
// and when the packet is the SYN of the next connection after one that was closed: then the caller asks its policy
// and calls Insert.
func (t *Table) Lookup(p *Packet, now time.Duration) (hit Hit, found bool) {
	var k key
	if a := t.setKey(&k, &p.Tuple); a != nil {
		found = a.lookup(&k, p, seconds(now), &hit)
	}
	return hit, found
}

// Find looks up a flow by the tuple of one of its directions, and changes nothing: it is for the packets that
// ICMP errors quote.
func (t *Table) Find(tuple Tuple, now time.Duration) (Flow, bool) {
	var k key
	a := t.setKey(&k, &tuple)
	if a == nil {
		return Flow{}, false
	}
	for spin := 0; ; spin++ {
		s, ctrl, ok := a.find(&k)
		if !ok {
			return Flow{}, false
		}
		if flow, at, live := a.flow(s, seconds(now)); at == ctrl {
			return flow, live
		}
		pause(spin)
	}
}

// pause is between two attempts. A lock is held for some ten stores; only when its holder has lost the CPU is there
// something to wait for.
func pause(spin int) {
	if spin&63 == 63 {
		runtime.Gosched()
	}
}

// find returns the slot of k and its control word from before the key was compared: what is read of the slot is k's
// iff the control word is unlocked and still the same afterwards. When find returns false, k was absent at some moment
// of the call, and nothing needs to be checked: the home's bits change only with an entry, an entry keeps its slot, and
// k is there from the moment that its home's lock is released.
func (a *area) find(k *key) (s, ctrl uint64, ok bool) {
	home := a.home(k.hash)
	return a.among(home, a.slot(home)[wCtrl].Load(), k)
}

// among looks for k in the slots that a home's control word names.
func (a *area) among(home, h uint64, k *key) (s, ctrl uint64, ok bool) {
	for rest := h >> homeBits; rest != 0; rest &= rest - 1 {
		s = a.probeAt(home, bits.TrailingZeros64(rest))
		w := a.slot(s)
		ctrl = w[wCtrl].Load()
		if w.begins(ctrl, k) && (a.size == slotLen4 || w.wide().holdsRest(k)) { // holds
			return s, ctrl, true
		}
	}
	return 0, 0, false
}

// lookup fills hit, which is zero, if k has a live flow. It and what it calls are written so that most of it is inlined: each call is 1 ns of
// some 40.
func (a *area) lookup(k *key, p *Packet, now uint32, hit *Hit) bool {
	home := a.home(k.hash)
	for spin := 0; ; spin++ {
		s, ctrl, ok := a.among(home, a.slot(home)[wCtrl].Load(), k) // find
		if !ok {
			return false
		}
		if ctrl&locked == 0 {
			if live, done := a.advance(s, ctrl, k, p, now, hit); done {
				return live
			}
			*hit = Hit{}
		}
		pause(spin)
	}
}

// advance lets the packet act on the entry that was found under ctrl. done is false if the slot changed meanwhile.
func (a *area) advance(s, ctrl uint64, k *key, p *Packet, now uint32, hit *Hit) (live, done bool) {
	w := a.slot(s)
	e := entry{ctrl: ctrl, times: w[wTimes].Load(), gen: w[wGen].Load()}
	if e.expired(now) {
		return false, w[wCtrl].Load() == ctrl
	}
	reply := k.swapped != (ctrl&swapped != 0)
	var result outcome
	var changed bool
	if p.Proto == protoTCP {
		result, changed = e.seeTCP(w, reply, &p.TCP, now)
	} else {
		changed = e.see(reply, now)
	}
	if result == reopened {
		return false, w[wCtrl].Load() == ctrl
	}
	hit.ID, hit.State, hit.Reply, hit.OutOfWindow = a.id(s, e.generation()), stateOf(e.ctrl), reply, result == refused
	if a.size != slotLen4 || w[wAddr2].Load() != 0 { // else there is none
		w.loadNAT(a.size, &hit.NAT)
	}
	if changed {
		return true, w.commit(ctrl, &e)
	}
	return true, w[wCtrl].Load() == ctrl
}

// see advances the flow of a protocol without states by a packet, and says whether that changes the entry.
func (e *entry) see(reply bool, now uint32) bool {
	old := e.times
	e.touch(now)
	if reply && e.ctrl&replied == 0 {
		e.ctrl = withState(e.ctrl|replied, Replied)
		return true
	}
	return e.times != old
}

// seeTCP reads what else the slot holds of the connection and advances it by a segment.
func (e *entry) seeTCP(w *slot, reply bool, s *Segment, now uint32) (result outcome, changed bool) {
	e.sent = [2]uint64{w[wSent0].Load(), w[wSent1].Load()}
	old, c, from := *e, e.conn(), 0
	if reply {
		from = 1
	}
	if result = c.track(from, s); result != accepted {
		return result, false
	}
	e.setConn(&c)
	if reply {
		e.ctrl |= replied
	}
	e.touch(now)
	return accepted, *e != old
}

// commit makes e the slot's entry, unless its control word is no longer ctrl. It stores only what differs: a store costs
// as much as ten loads.
func (w *slot) commit(ctrl uint64, e *entry) bool {
	if !w[wCtrl].CompareAndSwap(ctrl, ctrl|locked) {
		return false
	}
	w.update(wTimes, e.times)
	w.update(wGen, e.gen)
	if protoOf(ctrl) == protoTCP {
		w.update(wSent0, e.sent[0])
		w.update(wSent1, e.sent[1])
	}
	w[wCtrl].Store(bump(e.ctrl))
	return true
}

func (w *slot) update(i int, v uint64) {
	if w[i].Load() != v {
		w[i].Store(v)
	}
}

// conn unpacks the connection.
func (e *entry) conn() conn {
	return conn{
		state:   stateOf(e.ctrl),
		liberal: e.ctrl&liberal != 0,
		peers: [2]peer{
			{uint32(e.sent[0] >> 32), uint32(e.sent[1]), unpackWindow(e.gen >> 16), uint8(e.ctrl >> scaleShift0 & 0xf)},
			{uint32(e.sent[1] >> 32), uint32(e.sent[0]), unpackWindow(e.gen), uint8(e.ctrl >> scaleShift1 & 0xf)},
		},
	}
}

// setConn packs the connection.
func (e *entry) setConn(c *conn) {
	p, q := &c.peers[0], &c.peers[1]
	e.sent[0] = uint64(p.end)<<32 | uint64(q.maxEnd)
	e.sent[1] = uint64(q.end)<<32 | uint64(p.maxEnd)
	e.gen = e.gen&^0xffffffff | packWindow(p.maxWin)<<16 | packWindow(q.maxWin)
	e.ctrl = withState(e.ctrl, c.state) &^ (0xff<<scaleShift0 | liberal)
	e.ctrl |= uint64(p.scale)<<scaleShift0 | uint64(q.scale)<<scaleShift1
	if c.liberal {
		e.ctrl |= liberal
	}
}
