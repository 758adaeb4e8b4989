package conntrack

import (
	"net/netip"
	"time"
)

// Insert makes a flow of a packet whose Lookup missed and that policy allows; the packet is its first, and its
// direction the original one. When the flow exists by now it is as if Lookup had found it.
func (t *Table) Insert(p *Packet, nat NAT, now time.Duration) (hit Hit, result Result) {
	d := draft{packet: p, nat: &nat}
	a := t.setKey(&d.key, &p.Tuple)
	if a == nil || !nat.fits(&p.Tuple) || !d.open(seconds(now)) {
		return Hit{}, Refused
	}
	result = a.insert(&d, &hit)
	return hit, result
}

// A draft is a flow on its way into the table.
type draft struct {
	key    key
	entry  entry // without generation and home bits
	packet *Packet
	nat    *NAT
}

// fits says whether the translation is of the flow's family.
func (n *NAT) fits(t *Tuple) bool { return fits(n.Src, t) && fits(n.Dst, t) }

func fits(to netip.AddrPort, t *Tuple) bool {
	return to == netip.AddrPort{} || to.IsValid() && to.Addr().Is4() == t.Src.Is4() && !to.Addr().IsUnspecified()
}

// open makes the entry that the packet starts, and returns false if it starts none.
func (d *draft) open(now uint32) bool {
	e := entry{ctrl: uint64(d.key.proto) << protoShift, times: uint64(now)<<32 | uint64(now)}
	if d.key.swapped {
		e.ctrl |= swapped
	}
	if d.key.proto != protoTCP {
		e.ctrl = withState(e.ctrl, Unreplied)
		d.entry = e
		return true
	}
	var c conn
	ok := c.open(&d.packet.TCP)
	e.setConn(&c)
	d.entry = e
	return ok
}

// A placement is what one attempt to insert came to.
type placement uint8

const (
	placed placement = iota
	present
	noRoom
	overQuota
)

// attempts of an insert: other workers may take the room that it makes.
const attempts = 8

// insert fills hit, which is zero, with the new flow or the one that exists.
func (a *area) insert(d *draft, hit *Hit) Result {
	now := d.entry.lastSeen()
	for range attempts {
		switch s, result := a.place(d, hit); result {
		case placed:
			a.stats.inserted.Add(1)
			return Inserted
		case present:
			if a.lookup(&d.key, d.packet, now, hit) {
				return Exists
			}
			a.replace(s, &d.key, d.packet, now)
		case overQuota:
			a.stats.overQuota.Add(1)
			return OverQuota
		case noRoom:
			if !a.evict(a.home(d.key.hash), now) {
				a.stats.full.Add(1)
				return Full
			}
		}
	}
	a.stats.full.Add(1)
	return Full
}

// place puts a new entry into the first free slot of its probe sequence. Holding the home's lock it is the only one that can
// add or remove an entry of this home. If there is one of the draft's key, place returns its slot.
func (a *area) place(d *draft, hit *Hit) (uint64, placement) {
	home := a.home(d.key.hash)
	h := a.lock(home)
	s, _, found := a.among(home, h, &d.key)
	if found {
		a.release(home, h)
		return s, present
	}
	source := a.source(&d.key, d.entry.ctrl)
	if !a.quota.take(source) {
		a.release(home, h)
		return 0, overQuota
	}
	if a.count.Add(1) <= a.limit {
		for i := range probes {
			if a.fill(home, i, &h, d, hit) {
				a.release(home, h)
				return 0, placed
			}
		}
	}
	a.count.Add(-1)
	a.quota.count(source, -1)
	a.release(home, h)
	return 0, noRoom
}

// fill puts the draft into slot number i of a home's probe sequence, if that is free. The home's lock is held; h, its
// control word, is brought up to date.
func (a *area) fill(home uint64, i int, h *uint64, d *draft, hit *Hit) bool {
	s := a.probeAt(home, i)
	if s == home {
		if stateOf(*h) != free {
			return false
		}
		a.occupied(s, 1)
		a.write(s, d, hit)
		*h = bump(*h) | d.entry.ctrl | 1<<(homeBits+i)
		return true
	}
	if stateOf(a.slot(s)[wCtrl].Load()) != free {
		return false
	}
	ctrl, ok := a.tryLock(s)
	if !ok {
		return false
	}
	if stateOf(ctrl) != free {
		a.release(s, ctrl)
		return false
	}
	a.occupied(s, 1)
	a.write(s, d, hit)
	a.release(s, bump(ctrl)|d.entry.ctrl)
	*h = bump(*h) | 1<<(homeBits+i)
	return true
}

// write fills a locked slot but for its control word, under the next generation, which is never 0.
func (a *area) write(s uint64, d *draft, hit *Hit) {
	w := a.slot(s)
	generation := uint32(w[wGen].Load()>>32) + 1
	if generation == 0 {
		generation = 1
	}
	w.storeKey(a.size, &d.key)
	w.storePorts(a.size, &d.key, d.nat)
	w[wTimes].Store(d.entry.times)
	w[wGen].Store(uint64(generation)<<32 | d.entry.gen&0xffffffff)
	w[wSent0].Store(d.entry.sent[0])
	w[wSent1].Store(d.entry.sent[1])
	*hit = Hit{ID: a.id(s, generation), State: stateOf(d.entry.ctrl), NAT: *d.nat}
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
