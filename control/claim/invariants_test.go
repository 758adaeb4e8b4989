package claim

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

func (w *world) overlap(a, b []netip.Prefix) bool { return flaws{}.meet(a, b) }

// clocksDiffer is by how much those of nodes do, at most, in the time of a quarantine.
const clocksDiffer = time.Second

// calm says whether for so long nothing kept news from travelling.
func (w *world) calm(d time.Duration) bool { return w.now-w.disturbed >= d }

func (w *world) liveCount() (n int) {
	for _, one := range w.nodes {
		n += b2i(one.running())
	}
	return n
}

// confirmed checks I0, I3 and I5 where they can break.
func (w *world) confirmed(n *simNode) {
	c := n.m.Claimer.Claim
	w.note("%s confirms %s fence %d, tenure %s", n.name, c.Block, c.Fence, n.age())
	if len(n.disk.claims) == 0 || n.disk.claims[0].Block != c.Block || n.disk.claims[0].State != Confirmed {
		w.violated("I3", "%s uses %s, its disk has %v", n.name, c.Block, n.disk.claims)
	}
	for _, other := range w.nodes {
		o := other.m
		if other == n || !other.up || o.Claimer.Claim.State != Confirmed || other.id == n.id || !w.overlap(other.blocks(o.Claimer.Claim), n.blocks(c)) {
			continue
		}
		if !w.majority && w.parted > 0 && w.now-w.parted < 40*time.Second || w.liveCount() < witnessCount || other.adopted && w.now-other.since < 5*time.Second || o.Fences.Dead(o.Claimer.Claim) {
			continue
		}
		if claim := o.Claimer.Claim; w.majority && w.raised[claim.Block].number > claim.Fence {
			continue // somebody forgot a node that is cut off, which has not heard of it
		}
		w.violated("I0", "%s confirms %s, which %s has", n.name, c.Block, other.name)
	}
	for block, r := range w.raised {
		if w.overlap([]netip.Prefix{block}, n.blocks(c)) && !n.succeeded(c) && w.now-r.at < w.quarantine-clocksDiffer && w.now-w.parted > 40*time.Second && w.remembered(n, block, r) {
			w.violated("I5", "%s confirms %s %s after %s was given back", n.name, c.Block, w.now-r.at, block)
		}
	}
}

// succeeded says whether the node had the block before it lost its disk.
func (n *simNode) succeeded(c Claim) bool {
	for id, r := range n.m.Known {
		if id != n.id && sameNode(r, n.m.Self) && slices.ContainsFunc(r.Claims, func(o Claim) bool { return o.Block == c.Block && o.Fence < c.Fence }) {
			return true
		}
	}
	return false
}

// remembered says whether a node that n can talk to knows of the fence: all who do may have gone, or lost their disks.
func (w *world) remembered(n *simNode, block netip.Prefix, r raised) bool {
	return slices.ContainsFunc(w.nodes, func(o *simNode) bool {
		return o != n && o.running() && w.now-o.since > 5*time.Second && o.m.Fences[block].Number >= r.number
	})
}

// lookAtLoss checks I6: who withdraws has had its block for a shorter time.
func (n *simNode) lookAtLoss(before Claim) {
	w := n.w
	if before.State != Confirmed || n.m.Claimer.Claim.Block.IsValid() {
		return
	}
	w.note("%s withdraws %s", n.name, before.Block)
	if n.m.Claimer.Lost == 0 && n.m.Claimer.Released == nil {
		w.violated("I3", "%s withdrew %s and does not say so", n.name, before.Block)
	}
	if n.m.Fences.Dead(before) || n.gone || w.rolledBackLately(n) {
		return
	}
	for h := range n.m.Holdings(maps.Values(n.m.Known)) { // that of a node that is down counts too
		if h.Of.ID != n.id && h.State == Confirmed && w.overlap([]netip.Prefix{h.Block}, n.blocks(before)) && h.Tenure+3*time.Second >= before.Tenure {
			return
		}
	}
	var winner *simNode
	for _, other := range w.nodes {
		if c := other.m.Claimer.Claim; other != n && other.up && c.State == Confirmed && w.overlap(other.blocks(c), n.blocks(before)) {
			winner = other
			if other.age()+3*time.Second >= before.Tenure {
				return
			}
		}
	}
	if winner != nil {
		w.violated("I6", "%s gives %s (%s) up for %s, which has had %s for %s", n.name, before.Block, before.Tenure, winner.name, winner.m.Claimer.Claim.Block, winner.age())
	}
}

func (w *world) rolledBackLately(n *simNode) bool {
	return n.expect.why == "rollback" && w.now < n.expect.by
}

// check looks at what has to hold at all times.
func (w *world) check() {
	if w.now%(5*simStep) != 0 {
		return
	}
	for block, r := range w.raised {
		if !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.running() && n.m.Fences[block].Number >= r.number }) {
			r.unknown = w.now
			w.raised[block] = r
		}
	}
	for i, n := range w.nodes {
		c := n.m.Claimer.Claim
		for block, f := range n.m.Fences {
			if r := w.raised[block]; n.up && f.Number > r.number {
				w.raised[block] = raised{f.Number, w.now, w.now}
			}
		}
		if !n.running() || c.State != Confirmed {
			continue
		}
		if !w.flaws.neverYields && n.had.Block == c.Block && (len(n.disk.claims) == 0 || n.disk.claims[0].Block != c.Block) {
			w.violated("I3", "%s uses %s, its disk has %v", n.name, c.Block, n.disk.claims)
		}
		if !w.calm(5 * time.Second) {
			continue
		}
		if r := w.raised[c.Block]; c.Fence < r.number && w.now-r.unknown > 5*time.Second && w.remembered(n, c.Block, r) {
			w.violated("I5", "%s has %s with fence %d, which ended below %d", n.name, c.Block, c.Fence, r.number)
		}
		for _, other := range w.nodes[:i] {
			if o := other.m.Claimer.Claim; other.running() && o.State == Confirmed && w.overlap(other.blocks(o), n.blocks(c)) && other.id != n.id {
				w.violated("I1", "%s and %s have %s and %s, all links up for %s", n.name, other.name, c.Block, o.Block, w.now-w.disturbed)
			}
		}
	}
	for _, n := range w.nodes {
		if e := n.expect; e.block.IsValid() && n.running() && w.now >= e.by {
			n.expect = expectation{}
			if c := n.m.Claimer.Claim; c.Block != e.block && w.raised[e.block].number <= e.fence {
				w.violated("I2", "%s had %s before its restart (%s) and has %s", n.name, e.block, e.why, c.Block)
			}
		}
	}
}
