package claim

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// A simNode is a machine with a network address: the node's Store without sockets and files.
type simNode struct {
	w        *world
	slot     int
	name     string
	endpoint netip.AddrPort
	given    netip.Prefix
	given6   netip.Prefix

	up        bool
	since     time.Duration // of the boot
	origin    time.Duration // what its clock showed then
	drift     float64       // by how much its clock is too fast
	stopped   time.Duration // for how long its clock has stood still since
	frozen    time.Duration // until when it stands still
	suspended bool          // its clock stands still with it
	joined    bool
	m         *Machine
	id        NodeID
	disk      *simDisk
	old       []simDisk // earlier states of the disk
	seen      map[NodeID]time.Duration
	next      time.Duration
	had       Claim // confirmed as of the last look
	gone      bool  // released
	expect    expectation
	adopted   bool // its claim is from its disk
}

// An expectation is the block that a node has to have again after a restart.
type expectation struct {
	block netip.Prefix
	fence uint64
	by    time.Duration
	why   string
}

type simDisk struct {
	id     NodeID
	epoch  uint64
	claims []Claim
	memory Memory
}

// boot starts the node from its disk, or from an empty one.
func (n *simNode) boot() {
	w := n.w
	if n.expect.why != "disk kept" && n.expect.block.IsValid() && !w.othersHold(n, n.expect.block) {
		n.expect = expectation{} // who knew of it has gone since
	}
	if n.disk == nil {
		n.disk = &simDisk{id: NodeID{byte(w.rng.Uint32()), byte(w.rng.Uint32()), byte(w.rng.Uint32()), byte(n.slot)}}
	}
	n.start(n.disk.epoch, n.disk.claims)
	w.note("%s boots: id %.4s epoch %d, disk has %v", n.name, n.id, n.disk.epoch, n.disk.claims)
}

func (n *simNode) start(least uint64, claims []Claim) {
	w := n.w
	n.disk.epoch = max(n.disk.epoch, least) + 1
	n.disk.claims = claims
	n.id, n.up, n.since, n.joined = n.disk.id, true, w.now, false
	n.origin, n.drift, n.stopped = time.Duration(w.rng.Int64N(int64(1000*time.Hour))), (w.rng.Float64()-0.5)*2*maxDrift, 0
	n.adopted = false
	n.seen, n.next = map[NodeID]time.Duration{}, w.now
	n.m = NewMachine(n.id, w.pools, n.disk.epoch, n.disk.memory, n.clock())
	n.m.flaws, n.m.quarantine, n.m.Claimer.Given, n.m.Claimer.Given6 = w.flaws, w.quarantine, n.given, n.given6
	n.m.Claimer.flaws, n.m.ReclaimAfter = w.flaws, w.reclaim
	if w.majority {
		n.m.Claimer.Nodes = len(w.nodes)
	}
	if len(claims) > 0 && n.m.Claimer.Fits(claims[0]) {
		n.m.Claimer.Adopt(claims[0], n.m.Fences, n.clock())
		n.adopted = true
	}
	n.m.Self = &Record{ID: n.id, Epoch: n.disk.epoch, Nonce: w.rng.Uint64(), Name: n.name, Endpoint: n.endpoint}
	n.disk.memory.Last = LastWords{Epoch: n.disk.epoch, Nonce: n.m.Self.Nonce}
	if len(claims) > 0 {
		n.disk.memory.Last.Block = claims[0].Block
	}
	n.renew(0)
	n.had = n.m.Claimer.Claim
}

// maxDrift is by how much a clock is too fast or too slow: what a computer's without NTP may be.
const maxDrift = 500e-6

// clock is the node's own: monotonic within a boot, begun anywhere, neither of the right speed nor going while the machine is suspended.
func (n *simNode) clock() time.Duration {
	run := n.w.now - n.since - n.stopped
	return n.origin + run + time.Duration(float64(run)*n.drift)
}

// age is how long the node has had its block, by its own clock.
func (n *simNode) age() time.Duration { return n.m.Claimer.Age(n.clock()) }

// blocks are what a claim of the node is of.
func (n *simNode) blocks(c Claim) []netip.Prefix {
	if n.given6.IsValid() && c.Block.IsValid() {
		return []netip.Prefix{c.Block, n.given6}
	}
	return []netip.Prefix{c.Block, n.w.pools.pair(c.Block)}
}

func (n *simNode) renew(flags uint64) {
	next := *n.m.Self
	next.Seq++
	next.Flags, next.Claims = flags, n.m.Claimer.Claims()
	n.m.Self = &next
	n.m.Known[n.id] = n.m.Self
}

// save writes the disk; copies of some of its states are kept to be put back.
func (n *simNode) save(claims []Claim) {
	if n.w.rng.IntN(3) == 0 {
		n.old = append(n.old, *n.disk)
	}
	block := netip.Prefix{}
	if len(claims) > 0 {
		block = claims[0].Block
	}
	n.disk.claims, n.disk.memory = claims, n.m.Memory(block)
}

func (n *simNode) state() mail { return mail{records: n.m.Records(), fences: maps.Clone(n.m.Fences)} }

// live says whom the failure detector takes for alive: whom it heard in the last three seconds.
func (n *simNode) live(id NodeID) bool {
	at, ok := n.seen[id]
	return ok && n.w.now-at < 3*time.Second
}

func (n *simNode) running() bool { return n.up && n.w.now >= n.frozen }

// situation is what the transport tells the machine.
func (n *simNode) situation() Situation {
	s := Situation{Now: n.clock(), Ready: n.joined, Members: 1, Dead: map[NodeID]bool{}, Live: []NodeID{n.id}}
	for _, id := range sortedIDs(n.m.Known) {
		r := n.m.Known[id]
		if id == n.id {
			continue
		}
		if n.live(id) && !r.Leaving() {
			s.Members++
			s.Live = append(s.Live, id)
		} else {
			s.Dead[id] = true
		}
	}
	return s
}

func sortedIDs(m Records) []NodeID { return slices.SortedFunc(maps.Keys(m), NodeID.Compare) }

// turn is Store.turn.
func (n *simNode) turn() {
	w := n.w
	if next := n.m.Twins.Verdict(n.m.Self, n.clock()); next != nil {
		n.reborn(next)
		return
	}
	s := n.situation()
	before := n.m.Claimer.Claim
	before.Tenure = n.age()
	confirm, letters := n.m.Turn(s)
	n.lookAtLoss(before)
	if confirm {
		c := n.m.Claimer.Claim
		c.State = Confirmed
		n.save([]Claim{c})
		n.m.Claimer.Confirm(n.clock())
		n.adopted = false
		w.confirmed(n)
	}
	c := n.m.Claimer.Claim
	if !c.Block.IsValid() && len(n.disk.claims) > 0 {
		n.save(nil)
	}
	if c.State == Confirmed && w.rng.IntN(40) == 0 {
		c.Tenure = n.age()
		n.save([]Claim{c})
	}
	if n.m.Claimer.Stale(s2(s, n.m.Self)) {
		n.renew(0)
		for _, other := range w.nodes {
			w.send(n.slot, other.slot, mail{records: []*Record{n.m.Self}}, false)
		}
	}
	for _, l := range letters {
		if l.To == n.id {
			n.m.Answered(n.m.Witness(l.Request, s.Dead, n.clock()), n.clock())
			continue
		}
		if r := n.m.Known[l.To]; r != nil {
			w.send(n.slot, int(r.Endpoint.Addr().As4()[3]), mail{ask: &l.Request, id: l.To}, false)
		}
	}
	n.had = n.m.Claimer.Claim
}

func s2(s Situation, self *Record) Situation { s.Self = self; return s }

func (n *simNode) reborn(next *Rebirth) {
	w := n.w
	w.note("%s is reborn: %s", n.name, next.Reason)
	w.disturb()
	if next.Fresh {
		n.renew(FlagLeaving)
		for _, other := range w.nodes {
			w.send(n.slot, other.slot, mail{records: []*Record{n.m.Self}}, true)
		}
		former := n.id
		n.disk, n.old, n.expect = nil, nil, expectation{}
		n.boot()
		n.m.Claimer.Former = former
		return
	}
	claims := n.m.Reborn(next, n.disk.claims)
	n.save(claims)
	n.start(next.Above.Epoch, claims)
	w.note("%s goes on above epoch %d with %v", n.name, next.Above.Epoch, n.disk.claims)
}

func (n *simNode) receive(m mail) {
	w := n.w
	from := w.nodes[m.from]
	for _, r := range m.records {
		n.m.Hear(r, n.clock())
		if r.ID == n.id && r.Endpoint != n.endpoint && from.endpoint == r.Endpoint && from.up && !r.Leaving() {
			n.m.Twins.Met(r, n.clock())
		}
	}
	if n.m.HearFences(m.fences, n.clock()) {
		n.save(n.disk.claims)
	}
	switch {
	case m.ask != nil && m.id == n.id:
		a := n.m.Witness(*m.ask, n.situation().Dead, n.clock())
		if w.wordy {
			w.note("%s answers %s about %s: %s %s of %.4s", n.name, from.name, m.ask.Claim.Block, [...]string{"nothing", "yes", "no"}[a.Verdict], a.Holder.Block, a.Of)
		}
		w.send(n.slot, m.from, mail{answer: &a, id: m.ask.By}, false)
	case m.answer != nil && m.id == n.id:
		n.m.Answered(*m.answer, n.clock())
	}
}

// join is the first push/pull: by TCP, so that it is lost only where a link is cut.
func (n *simNode) join() {
	if n.joined {
		return
	}
	for _, i := range n.w.rng.Perm(len(n.w.nodes)) {
		if other := n.w.nodes[i]; other != n && other.running() && other.joined && n.w.linked(n.slot, i) && n.w.linked(i, n.slot) {
			for _, m := range []struct{ from, to *simNode }{{other, n}, {n, other}} {
				mail := m.from.state()
				mail.from, mail.to = m.from.slot, m.to.slot
				m.to.receive(mail)
			}
			n.joined = true
			return
		}
	}
	n.joined = n.w.now-n.since >= 2*time.Second || n.slot == 0
}
