package conntrack

import "time"

// Insert makes a flow of a packet whose Lookup missed and that policy allows; the packet is its first, and its
// direction the original one. When the flow exists by now it is as if Lookup had found it.
func (t *Table) Insert(p *Packet, nat NAT, now time.Duration) (Hit, Result) {
	var k key
	a := t.setKey(&k, &p.Tuple)
	if a == nil || !nat.fits(&p.Tuple) {
		return Hit{}, Refused
	}
	e, ok := opening(p, &k, seconds(now))
	if !ok {
		return Hit{}, Refused
	}
	var hit Hit
	result := a.insert(&k, p, &e, &nat, &hit)
	return hit, result
}

// fits says whether the translation is of the flow's family.
func (n *NAT) fits(t *Tuple) bool {
	return (!n.Src.IsValid() || n.Src.Addr().Is4() == t.Src.Is4()) && (!n.Dst.IsValid() || n.Dst.Addr().Is4() == t.Src.Is4())
}

// opening returns the entry that a packet starts, without generation and home bits.
func opening(p *Packet, k *key, now uint32) (entry, bool) {
	e := entry{ctrl: uint64(k.proto) << protoShift, times: uint64(now)<<32 | uint64(now)}
	if k.swapped {
		e.ctrl |= swapped
	}
	if p.Proto != protoTCP {
		e.ctrl = withState(e.ctrl, Unreplied)
		return e, true
	}
	var c conn
	ok := c.open(&p.TCP)
	e.setConn(&c)
	return e, ok
}

// A placement is what one attempt to insert came to.
type placement uint8

const (
	placed placement = iota
	present
	noRoom
)

// attempts of an insert: other workers may take the room that it makes.
const attempts = 8

func (a *area) insert(k *key, p *Packet, e *entry, nat *NAT, hit *Hit) Result {
	now := e.lastSeen()
	for range attempts {
		s, result := a.place(k, e, nat, hit)
		switch result {
		case placed:
			a.stats.inserted.Add(1)
			return Inserted
		case present:
			if a.lookup(k, p, now, hit) {
				return Exists
			}
			a.replace(s, k, p, now)
		case noRoom:
			if !a.evict(a.home(k.hash), now) {
				a.stats.full.Add(1)
				return Full
			}
		}
	}
	a.stats.full.Add(1)
	return Full
}

// place puts a new entry into the first free slot of its probe sequence. Holding the home's lock it is the only one that can
// add or remove an entry of this home. If there is one of k, place returns its slot.
func (a *area) place(k *key, e *entry, nat *NAT, hit *Hit) (uint64, placement) {
	home := a.home(k.hash)
	h := a.lock(home)
	if s, _, ok := a.among(home, h, k); ok {
		a.release(home, h)
		return s, present
	}
	if a.count.Add(1) <= a.limit {
		for i := range probes {
			if s := a.probeAt(home, i); a.fill(s, i, home, &h, k, e, nat, hit) {
				a.release(home, h)
				return s, placed
			}
		}
	}
	a.count.Add(-1)
	a.release(home, h)
	return 0, noRoom
}

// fill writes the entry into slot s, number i of the home whose lock is held and whose control word is h, if it is free.
func (a *area) fill(s uint64, i int, home uint64, h *uint64, k *key, e *entry, nat *NAT, hit *Hit) bool {
	ctrl := *h
	if s != home {
		var ok bool
		if ctrl, ok = a.tryLock(s); !ok {
			return false
		}
	}
	if stateOf(ctrl) != free {
		if s != home {
			a.release(s, ctrl)
		}
		return false
	}
	a.write(s, k, e, nat, hit)
	ctrl |= e.ctrl
	if s == home {
		*h = bump(ctrl)
	} else {
		a.release(s, bump(ctrl))
		*h = bump(*h)
	}
	*h |= 1 << (homeBits + i)
	return true
}

// write fills a locked slot but for its control word, under the next generation, which is never 0.
func (a *area) write(s uint64, k *key, e *entry, nat *NAT, hit *Hit) {
	w := a.slot(s)
	generation := uint32(w[wGen].Load()>>32) + 1
	if generation == 0 {
		generation = 1
	}
	a.storeKey(s, k)
	a.storePorts(s, k, nat)
	w[wTimes].Store(e.times)
	w[wGen].Store(uint64(generation)<<32 | e.gen&0xffffffff)
	w[wSent0].Store(e.sent[0])
	w[wSent1].Store(e.sent[1])
	*hit = Hit{ID: a.id(s, generation), State: stateOf(e.ctrl), NAT: *nat}
}

// lock takes a slot's lock and returns its control word, unlocked. Nobody calls it holding a lock.
func (a *area) lock(s uint64) uint64 {
	for spin := 0; ; spin++ {
		if ctrl, ok := a.tryLock(s); ok {
			return ctrl
		}
		pause(spin)
	}
}

func (a *area) tryLock(s uint64) (uint64, bool) {
	w := &a.slot(s)[wCtrl]
	ctrl := w.Load()
	return ctrl, ctrl&locked == 0 && w.CompareAndSwap(ctrl, ctrl|locked)
}

// release gives a lock back: with the control word that lock returned if nothing changed, else with a later one.
func (a *area) release(s, ctrl uint64) { a.slot(s)[wCtrl].Store(ctrl) }
