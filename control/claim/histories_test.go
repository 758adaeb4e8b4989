package claim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var (
	histories = flag.Int("histories", 400, "how many histories TestHistories goes through")
	firstSeed = flag.Uint64("seed", 1, "of the first history; the others follow")
)

func newWorld(seed uint64, f flaws) *world {
	rng := rand.New(rand.NewPCG(seed, 0))
	w := &world{seed: seed, rng: rng, flaws: f, cut: map[[2]int]bool{}, raised: map[netip.Prefix]raised{}, quarantine: 20 * time.Second}
	count := 3 + rng.IntN(8)
	if rng.IntN(8) == 0 {
		count = 3 + rng.IntN(48)
	}
	w.severe, w.copies = rng.IntN(2) == 0, rng.IntN(4) == 0
	blocks := count + 1 + rng.IntN(count)
	if w.severe && rng.IntN(2) == 0 { // few to choose from on either side of a partition
		blocks = count
	}
	w.pools = Pools{Claimed: Pool{netip.MustParsePrefix("10.244.0.0/16"), 24, netip.MustParseAddr("10.244.0.0"), netip.AddrFrom4([4]byte{10, 244, byte(blocks - 1), 0})}}
	if rng.IntN(3) == 0 { // dual stack
		w.pools.Paired = Pool{netip.MustParsePrefix("fd00:244::/48"), 64, netip.MustParseAddr("fd00:244::"), block6(blocks, 64).Addr()}
	}
	w.loss, w.twice = rng.Float64()*0.3, rng.Float64()*0.2
	w.delay = 20*time.Millisecond + time.Duration(rng.IntN(400))*time.Millisecond
	if rng.IntN(4) == 0 {
		w.reclaim = 25 * time.Second
	}
	if !w.severe { // links are up, but slow
		w.loss, w.delay = rng.Float64()*0.5, w.delay+time.Duration(rng.IntN(800))*time.Millisecond
	}
	for i := range count {
		n := &simNode{w: w, slot: i, name: fmt.Sprint("n", i), endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7946)}
		n.m = NewMachine(NodeID{}, w.pools, 0, Memory{}, 0)
		if rng.IntN(12) == 0 { // some are given blocks of other lengths
			n.given = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(rng.IntN(blocks)), 0}), 22+rng.IntN(4)).Masked()
		}
		if w.pools.Dual() && n.given.IsValid() && (rng.IntN(2) == 0 || !w.pools.Claimed.Has(n.given)) {
			n.given6 = block6(rng.IntN(blocks+1), 62+rng.IntN(4))
		}
		w.nodes = append(w.nodes, n)
	}
	return w
}

// block6 is the IPv6 block of number i, or one around it or in it.
func block6(i, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 2, 0x44, 7: byte(i)}), bits).Masked()
}

// disturb notes that news may not have reached everybody.
func (w *world) disturb() { w.disturbed = max(w.disturbed, w.now) }

// part notes that links were cut, so that what is confirmed now may be doubled. Nobody is expected to keep a block over that.
func (w *world) part() {
	w.disturb()
	w.parted = w.now
	for _, n := range w.nodes {
		n.expect = expectation{}
	}
}

// fault lets something go wrong.
func (w *world) fault() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	kind := w.rng.IntN(12)
	switch {
	case !n.up && !n.gone:
		w.disturb()
		n.boot()
	case !n.up:
	case kind < 3:
		w.crash(n)
	case kind < 4 && n.had.State == Confirmed:
		w.release(n)
	case kind < 5:
		w.forget(n)
	case kind < 6 && w.copies:
		w.clone(n)
	case !w.severe:
	case kind < 7:
		w.part()
		n.frozen = w.now + time.Duration(1+w.rng.IntN(20))*time.Second
		n.suspended = w.rng.IntN(2) == 0
		w.note("%s stands still until %s, its clock too: %v", n.name, n.frozen, n.suspended)
	case kind < 10:
		w.partition()
		for range w.rng.IntN(4) { // joins on both sides
			if n := w.nodes[w.rng.IntN(len(w.nodes))]; !n.up && !n.gone {
				w.steps(time.Duration(w.rng.IntN(15000)) * time.Millisecond)
				n.boot()
			}
		}
	default:
		w.heal()
	}
}

func (w *world) partition() {
	w.part()
	side, oneWay := w.rng.Uint64(), w.rng.IntN(2) == 0
	for i := range w.nodes {
		for j := range w.nodes {
			if side>>i&1 == 0 && side>>j&1 == 1 {
				w.cut[[2]int{i, j}] = true
				if !oneWay {
					w.cut[[2]int{j, i}] = true
				}
			}
		}
	}
	w.note("partition %b, one way: %v", side&(1<<len(w.nodes)-1), oneWay)
}

func (w *world) heal() {
	if len(w.cut) > 0 {
		w.part()
		w.note("all links are up again")
	}
	clear(w.cut)
}

// crash stops the node, and sometimes takes its disk or puts an old one in.
func (w *world) crash(n *simNode) {
	w.disturb()
	had := n.had
	settled := had.State == Confirmed && !n.given.IsValid() && n.age() > 10*time.Second && w.now-n.since > 10*time.Second &&
		w.parted == 0 && !w.copies && w.othersHold(n, had.Block) && !n.m.Fences.Dead(had)
	why := "disk kept"
	switch w.rng.IntN(4) {
	case 0:
		why = "disk lost"
	case 1:
		why = "rollback"
	}
	n.up, n.expect = false, expectation{}
	if settled {
		n.expect = expectation{had.Block, had.Fence, 1 << 62, why}
	}
	switch {
	case why == "disk lost":
		n.disk, n.old = nil, nil
	case why == "rollback" && len(n.old) > 0:
		back := n.old[w.rng.IntN(len(n.old))]
		n.disk, n.old = &back, nil
	case why == "rollback":
		n.expect.why = "disk kept"
	}
	w.note("%s crashes: %s, had %v", n.name, why, had)
}

// othersHold says whether some live node knows that n has what it has.
func (w *world) othersHold(n *simNode, block netip.Prefix) bool {
	holders := 0
	for _, other := range w.nodes {
		if r := other.m.Known[n.id]; other != n && other.running() && r != nil && len(r.Claims) > 0 && r.Claims[0].State == Confirmed && r.Claims[0].Block == block {
			holders++
		}
	}
	return holders > len(w.nodes)/2
}

func (w *world) release(n *simNode) {
	w.disturb()
	w.note("%s gives %s back and leaves", n.name, n.had.Block)
	n.m.Release(n.clock())
	n.renew(FlagLeaving)
	for _, other := range w.nodes {
		w.send(n.slot, other.slot, n.state(), true)
	}
	w.raised[n.had.Block] = raised{n.m.Fences[n.had.Block].Number, w.now, w.now}
	n.disk.claims, n.up, n.gone, n.had = nil, false, true, Claim{}
}

// forget lets one or two nodes take the blocks of one that they find dead.
func (w *world) forget(n *simNode) {
	for _, id := range sortedIDs(n.m.Known) {
		if !n.situation().Dead[id] || len(n.m.Known[id].Claims) == 0 {
			continue
		}
		w.disturb()
		for _, other := range []*simNode{n, w.nodes[w.rng.IntN(len(w.nodes))]} {
			if other.running() && other.m.Known[id] != nil && other.situation().Dead[id] {
				w.note("%s forgets %s, which had %v", other.name, other.m.Known[id].Name, other.m.Known[id].Claims)
				other.m.Forget(id, other.clock())
				other.save(other.disk.claims)
			}
		}
		for _, other := range w.nodes {
			if other.expect.block.IsValid() && n.m.Known[id].Name == other.name {
				other.expect = expectation{}
			}
		}
		return
	}
}

// clone starts a copy of a node's disk in the place of one that is down.
func (w *world) clone(n *simNode) {
	for _, other := range w.nodes {
		if !other.up && !other.gone && n.disk != nil && other.disk == nil {
			w.part()
			w.disturbed += 100 * time.Second // until it has found out
			copied := *n.disk
			copied.claims = slices.Clone(copied.claims)
			other.disk, other.old = &copied, nil
			w.note("%s is a copy of %s", other.name, n.name)
			other.boot()
			return
		}
	}
}

// run goes through one history: nodes start, faults happen, all heals.
func (w *world) run() {
	starts := 2 + w.rng.IntN(15)
	if w.severe && w.rng.IntN(3) == 0 { // two halves begin apart, and at different times
		w.partition()
		starts *= 10
	}
	for _, n := range w.nodes {
		if w.rng.IntN(6) > 2*b2i(w.severe) {
			at := time.Duration(w.rng.IntN(starts)) * 100 * time.Millisecond
			for w.now < at && w.rng.IntN(2) == 0 {
				w.tick()
			}
			w.disturb()
			n.boot()
		}
	}
	w.steps(15 * time.Second)
	for range 6 + w.rng.IntN(10) {
		w.fault()
		w.steps(time.Duration(100+w.rng.IntN(9000)) * time.Millisecond)
	}
	w.heal()
	for _, n := range w.nodes {
		if !n.up && !n.gone {
			w.disturb()
			n.boot()
		}
	}
	w.steps(40 * time.Second)
	if w.disturbed > w.now {
		w.steps(w.disturbed - w.now + 20*time.Second)
	}
}

func (w *world) steps(d time.Duration) {
	for end := w.now + d; w.now < end && w.bad == ""; {
		w.tick()
	}
}

func (w *world) tick() {
	for _, n := range w.nodes { // a restart has 30 s to get the old block back
		if n.up && n.expect.by == 1<<62 {
			n.expect.by = max(n.since, w.disturbed) + 30*time.Second
		}
	}
	if len(w.cut) > 0 || slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.frozen > w.now }) {
		w.disturbed, w.parted = max(w.disturbed, w.now), w.now
	}
	w.step()
}

// TestHistories: with every fault that the world has, no invariant breaks.
// A history is gone through again with -seed S -histories 1.
func TestHistories(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+uint64(*histories); seed++ {
		w := newWorld(seed, flaws{})
		w.wordy = *histories == 1
		w.run()
		if w.bad != "" {
			if *histories > 1 {
				t.Errorf("seed %d: %s", seed, w.bad)
				continue
			}
			t.Errorf("%s", w.history())
		}
	}
}

// TestMajority: where only more than half of the nodes claim, what one confirms is nobody else's, during a partition too.
func TestMajority(t *testing.T) {
	late := 0
	for seed := *firstSeed; seed < *firstSeed+uint64(*histories); seed++ {
		w := newWorld(seed, flaws{})
		w.majority, w.severe, w.copies = true, true, false
		if w.run(); w.bad != "" {
			t.Errorf("%s", w.history())
		}
		for _, n := range w.nodes {
			if n.up && n.m.Claimer.Claim.State == Confirmed {
				late++
			}
		}
	}
	if late == 0 {
		t.Error("nobody has a block at the end")
	}
}

// TestMutantsAreFound breaks the protocol in six ways: each has to be found.
func TestMutantsAreFound(t *testing.T) {
	for name, f := range map[string]flaws{
		"witnesses off":                     {noWitnesses: true},
		"tenure compared the wrong way":     {tenureReversed: true},
		"fence ignored":                     {fenceIgnored: true},
		"yield skipped":                     {neverYields: true},
		"overlap by equality":               {overlapByEquality: true},
		"disk state trusted after rollback": {diskTrusted: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := *firstSeed; seed < *firstSeed+uint64(*histories); seed++ {
				w := newWorld(seed, f)
				if w.run(); w.bad != "" {
					t.Logf("seed %d: %s", seed, w.bad)
					return
				}
			}
			t.Errorf("not found in %d histories", *histories)
		})
	}
}
