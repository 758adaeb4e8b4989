package gossip

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// A claimer decides what this node claims. It is the pure part: everything it knows, the time included, comes in with
// each turn. Not safe for concurrent use.
type claimer struct {
	id     nodeID
	pools  pools
	given  netip.Prefix // valid iff the subnet is given instead of claimed
	given6 netip.Prefix // valid iff dual stack and the IPv6 subnet is given too

	claim  claim           // valid iff block is; its tenure is the one that others were told
	rivals map[nodeID]bool // nodes that claim the block too, as of the last turn
	base   time.Duration
	since  time.Duration // confirmed: when in this run
	decide time.Duration // tentative: when to ask who owns the block

	barredAt time.Duration // valid iff problem is of being barred: since when
	barred   bool
	lost     uint64 // confirmed claims withdrawn because somebody else owned the block
	problem  string // why there is no confirmed claim; "" while one is under way
}

// barredClaim is how long a confirmed claim outlasts the node being barred: as long as it takes to find out that whoever has
// its name or address is a memory of an earlier boot.
const barredClaim = 15 * time.Second

// A situation is what a turn depends on. Not changed by it.
type situation struct {
	now      time.Duration // since the start, monotonic
	self     *record
	others   []holding // of every other node, dead ones too
	reserved []netip.Prefix
	members  int             // live ones with this node
	ready    bool            // the first attempt to join is over
	barred   string          // why this node may have no subnet; "" when it may
	dead     map[nodeID]bool // nodes that are not alive
}

// adopt takes over a confirmed claim that was kept on disk.
func (c *claimer) adopt(kept claim, now time.Duration) {
	c.claim, c.base, c.since = kept, kept.tenure, now
}

// fits says whether a kept claim is still one that this node would make.
func (c *claimer) fits(kept claim) bool {
	if c.given.IsValid() {
		return kept.block == c.given
	}
	return c.pools.claimed.has(kept.block)
}

// turn looks at the situation. It says whether the claim is to be confirmed now: the caller persists that and calls
// confirm.
func (c *claimer) turn(s situation) (confirmNow bool) {
	c.refresh(s)
	if c.claim.block.IsValid() {
		c.defend(s)
	}
	if c.bar(s) {
		return false
	}
	if c.claim.block.IsValid() {
		return c.claim.state == tentative && s.now >= c.decide
	}
	if s.ready {
		c.choose(s)
	}
	return false
}

// bar says whether the node may not claim now. It withdraws what it has, a confirmed claim after a while.
func (c *claimer) bar(s situation) bool {
	if s.barred == "" {
		if c.barred {
			c.problem = ""
		}
		c.barred = false
		return false
	}
	if !c.barred {
		c.barred, c.barredAt = true, s.now
	}
	c.problem = s.barred
	if c.claim.state != confirmed || s.now-c.barredAt >= barredClaim {
		c.withdraw()
	}
	return true
}

// age returns how long the claim has been confirmed, over all boots.
func (c *claimer) age(now time.Duration) time.Duration {
	if c.claim.state != confirmed {
		return 0
	}
	return (c.base + now - c.since).Truncate(time.Millisecond)
}

// refresh brings the tenure up to date, with which the claim is told to others: for each new rival once, since what others
// know of it may be old, and now and then. It is not done more often, and the claim is defended with the tenure
// that was told: two nodes agree on the owner only when they compare the same two numbers.
func (c *claimer) refresh(s situation) {
	age := c.age(s.now)
	grown := age - c.claim.tenure
	if c.challenged(s.others) || grown >= 10*time.Second && 2*grown >= age || grown >= time.Hour {
		c.claim.tenure = age
	}
}

// challenged says whether a node claims the block, or what goes with it, that did not before.
func (c *claimer) challenged(others []holding) (news bool) {
	rivals := map[nodeID]bool{}
	for _, h := range others {
		if c.claim.block.IsValid() && (h.block.Overlaps(c.claim.block) || h.block.Overlaps(c.paired())) {
			rivals[h.of.id] = true
			news = news || !c.rivals[h.of.id]
		}
	}
	c.rivals = rivals
	return news
}

// paired returns the IPv6 block that goes with the claim, the zero Prefix when none does.
func (c *claimer) paired() netip.Prefix {
	if c.given6.IsValid() {
		return c.given6
	}
	return c.pools.pair(c.claim.block)
}

// claims returns what the node's record says: the claim, and a second one if the other nodes cannot tell from the first
// what the IPv6 block is.
func (c *claimer) claims() []claim {
	switch {
	case !c.claim.block.IsValid():
		return nil
	case c.paired() == c.pools.pair(c.claim.block):
		return []claim{c.claim}
	}
	second := c.claim
	second.block = c.paired()
	return []claim{c.claim, second}
}

// defend withdraws the claim when somebody else owns the block, or the one that goes with it.
func (c *claimer) defend(s situation) {
	mine := slices.Collect(holdings(c.pools, slices.Values([]*record{{id: s.self.id, claims: c.claims()}})))
	all := append(slices.Clone(s.others), mine...)
	for _, h := range mine {
		if owner(h.block, all).of != h.of {
			if c.claim.state == confirmed { // of two that choose at once, one loses: nothing to note
				c.lost++
			}
			c.withdraw()
			return
		}
	}
}

func (c *claimer) withdraw() { c.claim, c.base = claim{}, 0 }

// stale says whether the others should get a new record.
func (c *claimer) stale(s situation) bool {
	if len(s.self.claims) == 0 {
		return c.claim.block.IsValid()
	}
	return s.self.claims[0] != c.claim
}

// confirm makes the tentative claim one to use.
func (c *claimer) confirm(now time.Duration) {
	c.claim.state, c.base, c.since, c.problem = confirmed, 0, now, ""
}

// choose announces a block, or says why there is none.
func (c *claimer) choose(s situation) {
	block := c.given
	if block.IsValid() {
		for _, block := range []netip.Prefix{block, cmp.Or(c.given6, c.pools.pair(block))} {
			if h, ok := overlapping(block, s.others); ok {
				c.problem = fmt.Sprintf("subnet %s is given, but %s holds %s: give another one, or stop that node", block, h.of, h.block)
				return
			}
		}
	} else if b, ok := c.pools.pick(c.id, takenBy(s)); ok {
		block = b
	} else {
		c.problem = c.exhausted(s)
		return
	}
	c.problem = ""
	c.claim = claim{block: block}
	c.decide = s.now + claimWait(s.members)
}

// exhausted explains a pool without a free block.
func (c *claimer) exhausted(s situation) string {
	nodes, dead := map[nodeID]bool{}, 0
	for _, h := range s.others {
		if !nodes[h.of.id] && s.dead[h.of.id] {
			dead++
		}
		nodes[h.of.id] = true
	}
	return fmt.Sprintf("no free subnet: %s in %s are all taken, by %d other nodes (%d of them not alive) and %d reserved prefixes: "+
		"widen SubnetMin and SubnetMax, or take nodes away", c.pools.claimed, c.pools.claimed.network, len(nodes), dead, len(s.reserved))
}

func overlapping(block netip.Prefix, all []holding) (holding, bool) {
	i := slices.IndexFunc(all, func(h holding) bool { return h.block.Overlaps(block) })
	if i < 0 {
		return holding{}, false
	}
	return all[i], true
}

func takenBy(s situation) []netip.Prefix {
	taken := slices.Clone(s.reserved)
	for _, h := range s.others {
		taken = append(taken, h.block)
	}
	return taken
}

// Bounds of the time in which others may object to a tentative claim.
const (
	minClaimWait = time.Second
	maxClaimWait = 30 * time.Second
)

// claimWait returns how long news take to every member and back, with room for a lost message.
func claimWait(members int) time.Duration {
	rounds := math.Ceil(math.Log2(float64(max(members, 1))) / 2) // log4
	wait := 3*gossipInterval*time.Duration(rounds) + probeTimeout
	return min(max(wait, minClaimWait), maxClaimWait)
}
