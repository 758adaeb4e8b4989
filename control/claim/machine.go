package claim

import (
	"iter"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

// A Machine is one node's part in the protocol from one boot to the next: everything it knows, and what it decides of that.
// Not safe for concurrent use. NewMachine makes it.
type Machine struct {
	Pools   Pools
	ID      NodeID
	Self    *Record // the newest own record, set by the caller after each that it signed
	Known   Records // Self too
	Fences  Fences
	Claimer Claimer
	Twins   Twins

	// ReclaimAfter is how long a node must be gone, as far as this one could see, before its blocks are taken away; zero: never.
	ReclaimAfter time.Duration

	forks      map[NodeID]*Record // another boot of the newest epoch: the sign of a disk that was rolled back
	gone       map[NodeID]time.Duration
	locks      []lock
	epoch      uint64
	booted     time.Duration
	aged       time.Duration // when absences were counted
	passed     time.Duration // when quarantines were counted
	quarantine time.Duration
	flaws      flaws
}

// A Memory is what a node has to know after a restart.
type Memory struct {
	Last   LastWords
	Known  []*Record // of other nodes, as far as they have a claim: when all restart at different times, nobody else knows of those who come last
	Fences Fences
	Gone   map[NodeID]time.Duration
}

// LastWords say which was the newest own record when the disk was written, and which block it had, zero for none. The disk is written
// before a record with another block goes out: who hears of one has a disk that was rolled back.
type LastWords struct {
	Epoch, Nonce, Seq uint64
	Block             netip.Prefix
}

func (l LastWords) contradicts(r *Record) bool {
	c, _ := r.ConfirmedClaim()
	return r.Epoch == l.Epoch && r.Nonce == l.Nonce && r.Seq > l.Seq && c.Block != l.Block
}

// NewMachine begins the boot epoch, which the caller has written to disk.
func NewMachine(id NodeID, p Pools, epoch uint64, kept Memory, now time.Duration) *Machine {
	m := &Machine{
		Pools: p, ID: id, Known: Records{}, Fences: Fences{}, Claimer: Claimer{ID: id, Pools: p}, forks: map[NodeID]*Record{}, gone: map[NodeID]time.Duration{},
		epoch: epoch, booted: now, aged: now, passed: now, quarantine: Quarantine,
	}
	m.Twins.Last = kept.Last
	maps.Copy(m.Fences, kept.Fences)
	maps.Copy(m.gone, kept.Gone)
	for _, r := range kept.Known {
		if r.ID != id {
			m.Known.Merge(r)
		}
	}
	return m
}

// Memory returns what to write to disk together with the claim on block, the zero Prefix for none.
func (m *Machine) Memory(block netip.Prefix) Memory {
	last := LastWords{Block: block}
	if m.Self != nil {
		last.Epoch, last.Nonce, last.Seq = m.Self.Epoch, m.Self.Nonce, m.Self.Seq
	}
	var known []*Record
	for id, r := range m.Known {
		if id != m.ID && slices.ContainsFunc(r.Claims, func(c Claim) bool { return c.State != Released && !m.Fences.Dead(c) }) {
			known = append(known, r)
		}
	}
	slices.SortFunc(known, func(a, b *Record) int { return a.ID.Compare(b.ID) })
	return Memory{last, known, maps.Clone(m.Fences), maps.Clone(m.gone)}
}

// Hear takes a verified record, and says whether it was news.
func (m *Machine) Hear(r *Record, now time.Duration) (news bool) {
	if r.ID == m.ID {
		if !m.flaws.diskTrusted {
			m.Twins.Heard(r, m.Self)
		}
		return false
	}
	known := m.Known[r.ID]
	if known == r {
		return false
	}
	m.fork(known, r)
	m.pass(now)
	m.Fences.observe(r.Claims)
	return m.Known.Merge(r)
}

// fork keeps the record of a boot that merging would lose: two boots of one epoch are a copied or a rolled-back disk, and the node
// itself has to know of both.
func (m *Machine) fork(known, r *Record) {
	switch {
	case known == nil || r.Epoch < known.Epoch:
	case r.Epoch > known.Epoch:
		delete(m.forks, r.ID)
	case r.Nonce != known.Nonce:
		lower := r
		if r.compareBoot(known) > 0 {
			lower = known
		}
		if other := m.forks[r.ID]; other == nil || other.compare(lower) < 0 {
			m.forks[r.ID] = lower
		}
	}
}

// Records returns all that other nodes may have to hear.
func (m *Machine) Records() []*Record {
	return slices.AppendSeq(slices.Collect(maps.Values(m.Known)), maps.Values(m.forks))
}

// HearFences takes what another node knows of blocks, and says whether it was news.
func (m *Machine) HearFences(f Fences, now time.Duration) (news bool) {
	m.pass(now)
	for block, one := range f {
		news = m.Fences.Merge(block, one) || news
	}
	return news
}

// Holdings yields the claims of nodes that no fence has ended.
func (m *Machine) Holdings(known iter.Seq[*Record]) iter.Seq[holding] {
	return m.flaws.holdings(m.Pools, m.Fences, known)
}

// pass lets time pass for the fences. It comes before each that is heard of: what others have counted is not counted again.
func (m *Machine) pass(now time.Duration) {
	m.Fences.grow(now-m.passed, m.quarantine)
	m.passed = now
}

// Turn lets time pass and decides. Situation's Others, Fences and Quarantined are filled in here. The caller sends the letters, and
// if confirm is true writes the claim to disk and calls Claimer.Confirm.
func (m *Machine) Turn(s Situation) (confirm bool, letters []Letter) {
	m.age(s)
	s.Others = slices.AppendSeq(make([]holding, 0, len(m.Known)), m.flaws.holdings(m.Pools, m.Fences, m.others()))
	s.Self, s.Fences, s.Quarantined = m.Self, m.Fences, m.Fences.quarantined(m.quarantine)
	m.Claimer.flaws = m.flaws
	confirm = m.Claimer.Turn(s)
	return confirm, m.Claimer.ask(s)
}

// others yields the records of all other nodes.
func (m *Machine) others() iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		for id, r := range m.Known {
			if id != m.ID && !yield(r) {
				return
			}
		}
	}
}

// age lets fences and absences grow, and takes the blocks of nodes that are gone for too long. It is done by those who see more than
// half of all nodes: whoever is cut off must not end the claims of everybody else.
func (m *Machine) age(s Situation) {
	passed := s.Now - m.aged
	m.aged = s.Now
	m.pass(s.Now)
	for id, r := range m.Known {
		if id == m.ID || !s.Dead[id] || len(r.Claims) == 0 {
			delete(m.gone, id)
		} else {
			m.gone[id] += passed
		}
	}
	if m.ReclaimAfter == 0 || 2*s.Members <= len(m.Known) {
		return
	}
	for id, long := range m.gone {
		if long >= m.ReclaimAfter {
			m.Forget(id, s.Now)
		}
	}
}

// Forget ends the claims of a node. Done twice or on two nodes at once it is the same. The caller writes Memory to disk before it says
// that it is done.
func (m *Machine) Forget(id NodeID, now time.Duration) {
	m.pass(now)
	if r := m.Known[id]; r != nil {
		for _, c := range r.Claims {
			if c.Fence == math.MaxUint64 {
				continue // never one of this protocol's
			}
			m.Fences.Raise(c.Block, c.Fence+1)
		}
	}
}

// Release gives the node's block back, for good: the next record says so.
func (m *Machine) Release(now time.Duration) {
	m.pass(now)
	released := m.Claimer.Claims()
	for i := range released {
		released[i].State = Released
	}
	m.Claimer.withdraw()
	m.Claimer.ended, m.Claimer.Released = Claim{}, released
	m.Fences.observe(m.Claimer.Released)
}

// Answered takes a witness's word.
func (m *Machine) Answered(a Answer, now time.Duration) { m.Claimer.answer(a, now) }

// Witness answers a request, and keeps the block for who asks if it says yes. dead are the nodes that are not alive.
func (m *Machine) Witness(q Request, dead map[NodeID]bool, now time.Duration) Answer {
	a := Answer{From: m.ID, Attempt: q.Attempt}
	if m.epoch > 1 && now-m.booted < lockTime { // an earlier boot may have said yes to somebody else
		return a
	}
	asker := m.Known[q.By]
	if asker == nil { // whom it succeeds is not known yet
		return a
	}
	if h, ok := m.inTheWay(q, asker); ok {
		switch {
		case !sameNode(asker, h.Of):
			a.Verdict, a.Holder, a.Of = No, h.Claim, h.Of.ID
			return a
		case !dead[h.Of.ID]: // or not found dead yet
			return a
		}
	}
	m.locks = slices.DeleteFunc(m.locks, func(l lock) bool { return l.By == q.By || now >= l.until || m.lapsed(l) })
	for _, l := range m.locks {
		if m.flaws.meet(l.blocks(), q.blocks()) {
			a.Verdict, a.Holder, a.Of = No, l.Claim, l.By
			return a
		}
	}
	m.locks = append(m.locks, lock{q, now + lockTime})
	a.Verdict = Yes
	return a
}

// lapsed says whether who has the lock has said since that it wants another block, or has this one: then its record speaks.
func (m *Machine) lapsed(l lock) bool {
	r := m.Known[l.By]
	return r != nil && r.Seq > l.Seq && !slices.ContainsFunc(r.Claims, func(c Claim) bool { return c.Block == l.Claim.Block && c.State == Tentative })
}

// inTheWay returns a claim that goes before the requested one, first of all one of another node than the asker's former self.
func (m *Machine) inTheWay(q Request, asker *Record) (found holding, ok bool) {
	mine := holding{q.Claim, asker}
	for h := range m.flaws.holdings(m.Pools, m.Fences, maps.Values(m.Known)) {
		if h.Of.ID == q.By || !m.flaws.meet([]netip.Prefix{h.Block}, q.blocks()) || !h.before(mine, m.flaws) {
			continue
		}
		if found, ok = h, true; !sameNode(asker, h.Of) {
			break
		}
	}
	return found, ok
}

// sameNode says whether two identities are of one node, of which the older one is gone with its disk.
func sameNode(a, b *Record) bool { return a.Name == b.Name && a.Endpoint == b.Endpoint }

// succeeds says whether a node is one that came back without its disk: it has the name and the endpoint of one that is gone.
func succeeds(r, old *Record, dead map[NodeID]bool) bool {
	return dead[old.ID] && r.ID != old.ID && sameNode(r, old)
}

// Reborn returns the claims to begin the next boot with, of those on disk. What the others hold of this node at this place is newer
// than a disk that was rolled back, also if it is nothing; what a copy of it elsewhere said is not this node's.
func (m *Machine) Reborn(next *Rebirth, disk []Claim) []Claim {
	if next.Fresh || next.Above.Endpoint != m.Self.Endpoint {
		return disk
	}
	if c, ok := next.Above.ConfirmedClaim(); ok {
		return []Claim{c}
	}
	return nil
}
