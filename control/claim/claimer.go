// Package claim owns which subnet is whose: the records that nodes sign of themselves, how they are merged, and what this
// node claims of the network. It is the protocol as a state machine: records, messages and the time go in, records, messages
// and decisions come out.
//
// It has no clock, no goroutine, no file and no socket, and knows of no failure detector but what it is told: control/gossip
// carries its messages and keeps its state.
package claim

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// A Claimer decides what this node claims. It is the pure part: everything it knows, the time included, comes in with
// each turn. Not safe for concurrent use.
type Claimer struct {
	ID     NodeID
	Pools  Pools
	Given  netip.Prefix // valid iff the subnet is given instead of claimed
	Given6 netip.Prefix // valid iff dual stack and the IPv6 subnet is given too
	// Nodes is how many there are at most, of which more than half have to be seen for a block to be claimed: never two sides of a partition
	// claim one then. Zero: any number claims.
	Nodes int

	Claim  Claim                 // valid iff block is; its tenure is the one that others were told
	fence6 uint64                // of the claim on Given6
	rivals map[NodeID]claimState // nodes that claim the block too, and how far they were in the last turn
	base   time.Duration
	since  time.Duration // confirmed: when in this run
	decide time.Duration // tentative: when to ask who owns the block

	// Former is the identity that the node gave up, being a copy of another one: it does not succeed that one.
	Former NodeID
	// ended is a claim that a fence ended, as released, until the quarantine is over. The record carries it, so that nobody hears that the
	// block is free before hearing why.
	ended Claim
	// Released is what the node gave back for good; it claims nothing more.
	Released []Claim

	vote    ballot                         // valid iff tentative
	busy    map[netip.Prefix]time.Duration // blocks that others were faster at, and until when to leave them alone
	inherit time.Duration                  // tentative: the tenure of the claim that it succeeds
	flaws   flaws

	barredAt time.Duration // valid iff problem is of being barred: since when
	barred   bool
	Lost     uint64 // confirmed claims withdrawn because somebody else owned the block
	Problem  string // why there is no confirmed claim; "" while one is under way
}

// barredClaim is how long a confirmed claim outlasts the node being barred: as long as it takes to find out that whoever has
// its name or address is a memory of an earlier boot.
const barredClaim = 15 * time.Second

// A Situation is what a turn depends on. Not changed by it.
type Situation struct {
	Now      time.Duration // since the start, monotonic
	Self     *Record
	Others   []holding // of every other node, dead ones too
	Reserved []netip.Prefix
	Members  int             // live ones with this node
	Ready    bool            // the first attempt to join is over
	Barred   string          // why this node may have no subnet; "" when it may
	Dead     map[NodeID]bool // nodes that are not alive
	Live     []NodeID        // nodes that may be asked, this one too; nil: nobody is

	Fences      Fences         // filled in by Machine.Turn, as is Quarantined
	Quarantined []netip.Prefix // blocks that are not free yet
}

// Adopt takes over a confirmed claim that was kept on disk, with the fences.
func (c *Claimer) Adopt(kept Claim, fences Fences, now time.Duration) {
	c.Claim, c.base, c.since = kept, kept.Tenure, now
	c.fence6 = fences[c.Given6].Number
}

// Fits says whether a kept claim is still one that this node would make.
func (c *Claimer) Fits(kept Claim) bool {
	if c.Given.IsValid() {
		return kept.Block == c.Given
	}
	return c.Pools.Claimed.Has(kept.Block)
}

// Turn looks at the situation. It says whether the claim is to be confirmed now: the caller persists that and calls
// confirm.
func (c *Claimer) Turn(s Situation) (confirmNow bool) {
	c.refresh(s)
	if !slices.Contains(s.Quarantined, c.ended.Block) {
		c.ended = Claim{}
	}
	if c.Claim.Block.IsValid() {
		c.defend(s)
	}
	if c.bar(s) {
		return false
	}
	if c.Claim.State == Confirmed && c.Claim.Block.IsValid() || !s.Ready || c.Released != nil {
		return false
	}
	if few := c.tooFew(s); few != "" {
		c.withdraw()
		c.Problem = few
		return false
	}
	if c.Claim.Block.IsValid() {
		return c.decided(s)
	}
	c.choose(s)
	return false
}

// tooFew says why the nodes in sight may not claim; "" when they may.
func (c *Claimer) tooFew(s Situation) string {
	if 2*s.Members > c.Nodes {
		return ""
	}
	return fmt.Sprintf("%d of %d nodes are in sight (--majority): no subnet is claimed until it is more than half", s.Members, c.Nodes)
}

// bar says whether the node may not claim now. It withdraws what it has, a confirmed claim after a while.
func (c *Claimer) bar(s Situation) bool {
	if s.Barred == "" {
		if c.barred {
			c.Problem = ""
		}
		c.barred = false
		return false
	}
	if !c.barred {
		c.barred, c.barredAt = true, s.Now
	}
	c.Problem = s.Barred
	if c.Claim.State != Confirmed || s.Now-c.barredAt >= barredClaim {
		c.withdraw()
	}
	return true
}

// Age returns how long the claim has been confirmed, over all boots.
func (c *Claimer) Age(now time.Duration) time.Duration {
	if c.Claim.State != Confirmed {
		return 0
	}
	return (c.base + now - c.since).Truncate(time.Millisecond)
}

// refresh brings the tenure up to date, with which the claim is told to others: for each new rival once, since what others
// know of it may be old, and now and then. It is not done more often, and the claim is defended with the tenure
// that was told: two nodes agree on the owner only when they compare the same two numbers.
func (c *Claimer) refresh(s Situation) {
	age := c.Age(s.Now)
	grown := age - c.Claim.Tenure
	if c.challenged(s.Others, age) || grown >= c.firstRetell() && 2*grown >= age || grown >= time.Hour {
		c.Claim.Tenure = age
	}
}

// firstRetell is how old a claim is when it is told again without a reason: 10 to 20 s, on each node another time. Each later time is at
// twice the age, so that nodes that started together do not tell together, which would be more news at once than reach everybody.
func (c *Claimer) firstRetell() time.Duration {
	return 10*time.Second + time.Duration(mix(binary.BigEndian.Uint64(c.ID[:8]))%uint64(10*time.Second))
}

// tellAgain is by how much a claim must be the older one to be told again. Less than what news need, and two of one age would
// overtake each other for ever.
const tellAgain = 2 * time.Second

// challenged says whether a node claims the block, or what goes with it, that did not before, or has confirmed it since, or leads only because it told its tenure
// later: where links are cut in one direction, one side tells long before the other hears.
func (c *Claimer) challenged(others []holding, age time.Duration) (news bool) {
	rivals := map[NodeID]claimState{}
	for _, h := range others {
		if c.Claim.Block.IsValid() && (c.flaws.overlap(h.Block, c.Claim.Block) || c.flaws.overlap(h.Block, c.paired())) {
			rivals[h.Of.ID] = h.State
			before, known := c.rivals[h.Of.ID]
			late := h.State == Confirmed && h.Tenure > c.Claim.Tenure && age >= h.Tenure+tellAgain
			news = news || !known || before != h.State || late
		}
	}
	c.rivals = rivals
	return news
}

// paired returns the IPv6 block that goes with the claim, the zero Prefix when none does.
func (c *Claimer) paired() netip.Prefix {
	if c.Given6.IsValid() {
		return c.Given6
	}
	return c.Pools.pair(c.Claim.Block)
}

// Claims returns what the node's record says: the claim, a second one if the other nodes cannot tell from the first
// what the IPv6 block is, and what the node had and gave back or lost to a fence.
func (c *Claimer) Claims() []Claim {
	var claims []Claim
	if c.Claim.Block.IsValid() {
		claims = append(claims, c.Claim)
		if second := c.paired(); second != c.Pools.pair(c.Claim.Block) {
			claims = append(claims, Claim{second, c.fence6, c.Claim.Tenure, c.Claim.State})
		}
	}
	if c.ended.Block.IsValid() {
		claims = append(claims, c.ended)
	}
	return append(claims, c.Released...)
}

// defend withdraws the claim when somebody else owns the block, or the one that goes with it.
func (c *Claimer) defend(s Situation) {
	if c.flaws.neverYields {
		return
	}
	mine := slices.Collect(Holdings(c.Pools, slices.Values([]*Record{{ID: s.Self.ID, Claims: c.Claims()}})))
	all := append(slices.Clone(s.Others), mine...)
	dead := c.flaws.dead(s.Fences, c.Claim)
	dead6 := c.Given6.IsValid() && c.flaws.dead(s.Fences, Claim{Block: c.Given6, Fence: c.fence6})
	for _, h := range mine {
		if h.State > Confirmed {
			continue
		}
		if dead || dead6 || c.flaws.owner(h.Block, all).Of != h.Of {
			if c.Claim.State == Confirmed { // of two that choose at once, one loses: nothing to note
				c.Lost++
			}
			if dead {
				c.ended = Claim{c.Claim.Block, c.Claim.Fence, 0, Released}
			}
			c.withdraw()
			return
		}
	}
}

func (c *Claimer) withdraw() { c.Claim, c.base, c.inherit = Claim{}, 0, 0 }

// Stale says whether the others should get a new record.
func (c *Claimer) Stale(s Situation) bool {
	claims := c.Claims()
	if len(s.Self.Claims) == 0 || len(claims) == 0 {
		return len(s.Self.Claims) != len(claims)
	}
	return s.Self.Claims[0] != claims[0]
}

// Confirm makes the tentative claim one to use.
func (c *Claimer) Confirm(now time.Duration) {
	c.Claim.State, c.base, c.since, c.Problem = Confirmed, c.inherit, now, ""
}

// choose announces a block, or says why there is none.
func (c *Claimer) choose(s Situation) {
	block := c.Given
	if block.IsValid() {
		for _, block := range []netip.Prefix{block, cmp.Or(c.Given6, c.Pools.pair(block))} {
			if h, ok := c.overlapping(block, s); ok {
				c.Problem = fmt.Sprintf("subnet %s is given, but %s holds %s: give another one, or stop that node", block, h.Of, h.Block)
				return
			}
			if slices.ContainsFunc(s.Quarantined, block.Overlaps) {
				c.Problem = fmt.Sprintf("subnet %s is given, but was taken from its owner in the last %s: it is free after that", block, Quarantine)
				return
			}
		}
	} else if old, ok := c.predecessor(s); ok {
		c.begin(Claim{Block: old.Block, Fence: old.Fence + 1}, s)
		c.inherit = old.Tenure
		return
	} else if b, ok := c.Pools.pick(c.ID, c.takenBy(s)); ok {
		block = b
	} else {
		c.Problem = c.exhausted(s)
		return
	}
	fence := s.Fences[block].Number
	c.fence6 = s.Fences[c.Given6].Number
	for _, h := range s.Others { // of the node that this one succeeds: anybody else's would not be free
		switch h.Block {
		case block:
			fence, c.inherit = max(fence, h.Fence+1), h.Tenure
		case c.Given6:
			c.fence6 = max(c.fence6, h.Fence+1)
		}
	}
	c.begin(Claim{Block: block, Fence: fence}, s)
}

// begin makes a claim tentative.
func (c *Claimer) begin(claim Claim, s Situation) {
	c.Problem, c.Claim = "", claim
	c.decide = s.Now + claimWait(s.Members)
	c.openBallot(s.Now)
}

// predecessor returns the claim of the node that this one was before it lost its disk: gone, with the same name and endpoint.
func (c *Claimer) predecessor(s Situation) (holding, bool) {
	for _, h := range s.Others {
		if s.Self != nil && h.State <= Confirmed && h.Of.ID != c.Former && succeeds(s.Self, h.Of, s.Dead) && c.Pools.Claimed.Has(h.Block) && c.busy[h.Block] <= s.Now {
			if c.flaws.owner(h.Block, s.Others).Of == h.Of {
				return h, true
			}
		}
	}
	return holding{}, false
}

// exhausted explains a pool without a free block.
func (c *Claimer) exhausted(s Situation) string {
	nodes, dead := map[NodeID]bool{}, 0
	for _, h := range s.Others {
		if !nodes[h.Of.ID] && s.Dead[h.Of.ID] {
			dead++
		}
		nodes[h.Of.ID] = true
	}
	return fmt.Sprintf("no free subnet: %s in %s are all taken, by %d other nodes (%d of them not alive) and %d reserved prefixes: "+
		"widen SubnetMin and SubnetMax, or take nodes away", c.Pools.Claimed, c.Pools.Claimed.Network, len(nodes), dead, len(s.Reserved))
}

func (c *Claimer) overlapping(block netip.Prefix, s Situation) (holding, bool) {
	i := slices.IndexFunc(s.Others, func(h holding) bool {
		return c.flaws.overlap(h.Block, block) && (h.Block != block || !succeeds(s.Self, h.Of, s.Dead))
	})
	if i < 0 {
		return holding{}, false
	}
	return s.Others[i], true
}

func (c *Claimer) takenBy(s Situation) []netip.Prefix {
	taken := append(slices.Clone(s.Reserved), s.Quarantined...)
	for block, until := range c.busy {
		if until > s.Now {
			taken = append(taken, block)
		}
	}
	for _, h := range s.Others {
		if !c.flaws.overlapByEquality || c.Pools.Claimed.Has(h.Block) {
			taken = append(taken, h.Block)
		}
	}
	return taken
}

// Timing of the failure detector and of what is passed on.
const (
	GossipInterval = 200 * time.Millisecond
	ProbeTimeout   = 300 * time.Millisecond
)

// Bounds of the time in which others may object to a tentative claim.
const (
	minClaimWait = time.Second
	maxClaimWait = 30 * time.Second
)

// claimWait returns how long news take to every member and back, with room for a lost message.
func claimWait(members int) time.Duration {
	rounds := math.Ceil(math.Log2(float64(max(members, 1))) / 2) // log4
	wait := 3*GossipInterval*time.Duration(rounds) + ProbeTimeout
	return min(max(wait, minClaimWait), maxClaimWait)
}
