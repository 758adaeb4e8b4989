package claim

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

const (
	witnessCount = 3
	// lockTime is how long a witness keeps a block for whom it said yes to, without a word to anybody.
	lockTime = 30 * time.Second
	// voteTime is how long the asker counts on a yes, from when it asked: well below lockTime.
	voteTime = 20 * time.Second
	// askPause is between two questions to a witness that has not answered.
	askPause = 500 * time.Millisecond
	// minBallot is how long a claim without everybody's yes is announced at least.
	minBallot = 2 * time.Second
	// maxKeys bounds the pool blocks of a larger given one whose witnesses are asked.
	maxKeys = 64
)

// A Request asks a witness to keep blocks for a node.
type Request struct {
	By      NodeID
	Attempt uint64 // grows with each claim of the node
	Seq     uint64 // of the node's record when it asked
	Claim   Claim
	Second  netip.Prefix // what goes with it in IPv6; may be zero
}

// An Answer is a witness's word on a Request.
type Answer struct {
	From    NodeID
	Attempt uint64
	Verdict Verdict
	Holder  Claim  // valid iff No: what is in the way
	Of      NodeID // valid iff No: whose it is
}

// A Verdict is yes, no, or nothing, from a witness that may have forgotten a yes.
type Verdict uint8

const (
	Abstain Verdict = iota
	Yes
	No
)

// A Letter is a Request with its receiver.
type Letter struct {
	To NodeID
	Request
}

// A lock is a witness's yes.
type lock struct {
	Request
	until time.Duration
}

func (r Request) blocks() []netip.Prefix {
	if r.Second.IsValid() {
		return []netip.Prefix{r.Claim.Block, r.Second}
	}
	return []netip.Prefix{r.Claim.Block}
}

func (f flaws) meet(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool {
		return slices.ContainsFunc(b, func(q netip.Prefix) bool { return f.overlap(p, q) })
	})
}

// touched returns the pool's blocks that block touches.
func (p Pool) touched(block netip.Prefix) (all []netip.Prefix) {
	if block.Bits() >= p.Bits {
		return []netip.Prefix{netip.PrefixFrom(block.Addr(), p.Bits).Masked()}
	}
	step := uint128{0, 1}.shl(p.hostBits())
	for at := toUint(block.Addr()); len(all) < maxKeys && block.Contains(at.addr(p.bitLen())); at = at.add(step) {
		all = append(all, netip.PrefixFrom(at.addr(p.bitLen()), p.Bits))
	}
	return all
}

// keys returns the pool blocks that blocks touch, an IPv6 block by the IPv4 one that it goes with: nodes that claim overlapping blocks
// of different lengths have one in common, and so the same witnesses.
func (p Pools) keys(blocks []netip.Prefix) (keys []netip.Prefix) {
	for _, block := range blocks {
		pool := p.Claimed
		if p.Dual() && block.Addr().BitLen() == p.Paired.bitLen() {
			pool = p.Paired
		}
		for _, key := range pool.touched(block) {
			if pool == p.Paired {
				key = p.unpair(key)
			}
			if !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// unpair returns the IPv4 block that a block of the paired pool goes with, the block itself if it goes with none.
func (p Pools) unpair(block netip.Prefix) netip.Prefix {
	if i := p.Paired.index(block.Addr()); p.Paired.Has(block) && i.hi == 0 && i.lo < p.Claimed.size() {
		return p.Claimed.Block(i.lo)
	}
	return block
}

// witnesses returns whom to ask of blocks: of each key the three nodes with the highest weight. The asker may be one of them: two
// that ask must come to the same three.
func (p Pools) witnesses(blocks []netip.Prefix, live []NodeID) (chosen []NodeID) {
	for _, key := range p.keys(blocks) {
		best := slices.SortedFunc(slices.Values(live), func(a, b NodeID) int {
			return cmp.Or(cmp.Compare(Weight(b, key), Weight(a, key)), a.Compare(b))
		})
		for _, id := range best[:min(witnessCount, len(best))] {
			if !slices.Contains(chosen, id) {
				chosen = append(chosen, id)
			}
		}
	}
	return chosen
}

// A ballot is what witnesses said of the tentative claim.
type ballot struct {
	attempt uint64
	asked   map[NodeID]time.Duration // when last
	yes     map[NodeID]time.Duration // when it was asked that it answered so
	none    map[NodeID]bool          // who abstained last
	rtt     time.Duration            // the longest
	chosen  time.Duration            // when the block was
	all     time.Duration            // when everybody had said yes; -1: not yet
}

func (c *Claimer) openBallot(now time.Duration) {
	c.vote = ballot{
		attempt: c.vote.attempt + 1, asked: map[NodeID]time.Duration{}, yes: map[NodeID]time.Duration{}, none: map[NodeID]bool{}, chosen: now, all: -1,
	}
}

// ask returns the questions to send now.
func (c *Claimer) ask(s Situation) (letters []Letter) {
	if !c.Claim.Block.IsValid() || c.Claim.State != Tentative || c.flaws.noWitnesses {
		return nil
	}
	question := Request{c.ID, c.vote.attempt, s.Self.Seq, c.Claim, c.paired()}
	for _, id := range c.Pools.witnesses(question.blocks(), s.Live) {
		since := askPause
		if _, ok := c.vote.yes[id]; ok {
			since = voteTime / 2
		}
		if at, ok := c.vote.asked[id]; ok && s.Now-at < since {
			continue
		}
		c.vote.asked[id] = s.Now
		letters = append(letters, Letter{id, question})
	}
	return letters
}

// answer counts a witness's word. A no from somebody who goes first makes the node choose another block; other ones that are in the
// way hear a no themselves.
func (c *Claimer) answer(a Answer, now time.Duration) {
	asked, ok := c.vote.asked[a.From]
	if !ok || a.Attempt != c.vote.attempt || c.Claim.State != Tentative || !c.Claim.Block.IsValid() {
		return
	}
	c.vote.none[a.From] = a.Verdict == Abstain
	switch a.Verdict {
	case Yes:
		c.vote.yes[a.From] = asked
		c.vote.rtt = max(c.vote.rtt, now-asked)
	case No:
		delete(c.vote.yes, a.From)
		mine := holding{c.Claim, &Record{ID: c.ID}}
		if (holding{a.Holder, &Record{ID: a.Of}}).before(mine, c.flaws) {
			c.avoid(c.Claim.Block, now)
			c.withdraw()
		}
	}
}

// avoid keeps a block out of the choice for as long as its lock may last.
func (c *Claimer) avoid(block netip.Prefix, now time.Duration) {
	if c.busy == nil {
		c.busy = map[netip.Prefix]time.Duration{}
	}
	c.busy[block] = now + lockTime
}

// decided says whether nobody objects to the tentative claim: all witnesses agree, and their word had time to be
// overtaken by older news; or most of those who say something do, and it was announced for as long as news may take; or there is nobody to ask.
func (c *Claimer) decided(s Situation) bool {
	witnesses := c.Pools.witnesses(Request{Claim: c.Claim, Second: c.paired()}.blocks(), s.Live)
	if len(witnesses) < 2 || c.flaws.noWitnesses {
		return s.Now >= c.decide
	}
	yes, none := 0, 0
	for _, id := range witnesses {
		if c.vote.none[id] {
			none++
		}
		if at, ok := c.vote.yes[id]; ok && s.Now-at < voteTime {
			yes++
		}
	}
	if yes < len(witnesses) {
		c.vote.all = -1
		most := 2*yes > len(witnesses)-none || none == len(witnesses)
		return most && s.Now >= max(c.vote.chosen+minBallot, c.decide) || s.Now >= c.vote.chosen+maxClaimWait
	}
	if c.vote.all < 0 {
		c.vote.all = s.Now
	}
	return s.Now >= c.vote.all+2*c.vote.rtt
}
