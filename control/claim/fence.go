package claim

import (
	"math"
	"net/netip"
	"time"
)

// Quarantine is how long a block that was given back or taken away stays unused: nobody shall get packets that are meant for
// the pods of its former owner.
const Quarantine = 10 * time.Minute

// A Fence ends the claims on a block whose fence is below its number.
type Fence struct {
	Number uint64
	Served time.Duration // of the quarantine, over all restarts, at most Quarantine
}

// Fences is what is known of them. It only grows: merging takes the higher number, then the longer time served, so that it
// commutes. A fence is of claims on exactly one block and says nothing of larger or smaller ones: a claim is named by block
// and number, and who forgets the owner of a /24 must not end the claim of a /23 around it. What overlaps a block in quarantine
// is not free, whatever its size.
//
// Not safe for concurrent use.
type Fences map[netip.Prefix]Fence

// MaxFences bounds how many blocks with fences this node keeps track of, maxFence what the number of one can be.
const (
	MaxFences = 65536
	maxFence  = math.MaxInt64
)

// Dead says whether the claim has been ended.
func (f Fences) Dead(c Claim) bool { return c.Fence < f[c.Block].Number }

// Raise ends all claims on block below number. Its quarantine begins, if that is news.
func (f Fences) Raise(block netip.Prefix, number uint64) { f.Merge(block, Fence{Number: number}) }

// Merge takes in what another node knows of a block, and says whether it ends more claims.
func (f Fences) Merge(block netip.Prefix, other Fence) (news bool) {
	known, ok := f[block]
	if other.Number > maxFence || !ok && len(f) >= MaxFences {
		return false
	}
	if other.Number > known.Number || other.Number == known.Number && other.Served > known.Served {
		f[block] = other
	}
	return other.Number > known.Number
}

// observe learns of what claims say. A claim above the fence raises it, with a quarantine, which counts if the claim goes without a word:
// a node that takes its former self's block over may die of it.
func (f Fences) observe(claims []Claim) {
	for _, c := range claims {
		switch {
		case c.State == Released && c.Fence < maxFence:
			f.Raise(c.Block, c.Fence+1)
		case c.Fence > f[c.Block].Number:
			f.Raise(c.Block, c.Fence)
		}
	}
}

// grow lets time pass.
func (f Fences) grow(passed, quarantine time.Duration) {
	for block, one := range f {
		if one.Served < quarantine {
			one.Served = min(one.Served+passed, quarantine)
			f[block] = one
		}
	}
}

// quarantined returns the blocks that may not be claimed yet.
func (f Fences) quarantined(quarantine time.Duration) (blocks []netip.Prefix) {
	for block, one := range f {
		if one.Number > 0 && one.Served < quarantine {
			blocks = append(blocks, block)
		}
	}
	return blocks
}
