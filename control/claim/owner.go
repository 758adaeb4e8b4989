package claim

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
)

// Records is what this node knows: the newest record of every node. Merging is commutative, associative and
// idempotent, so that nodes that can talk come to the same map. Not safe for concurrent use.
type Records map[NodeID]*Record

// Merge takes a verified record in, and says whether it was news.
func (m Records) Merge(r *Record) bool {
	if known, ok := m[r.ID]; ok && r.compare(known) <= 0 {
		return false
	}
	m[r.ID] = r
	return true
}

// A holding is a claim with the node whose claim it is.
type holding struct {
	Claim
	Of *Record
}

// Holdings yields every claim inside the networks, and what goes with it: all that a new claim must not overlap.
func Holdings(p Pools, known iter.Seq[*Record]) iter.Seq[holding] {
	return flaws{}.holdings(p, nil, known)
}

// holdings leaves out what fences have ended.
func (f flaws) holdings(p Pools, fences Fences, known iter.Seq[*Record]) iter.Seq[holding] {
	return func(yield func(holding) bool) {
		for r := range known {
			for c := range p.claimsAbove(r, fences, f) {
				if !yield(holding{c, r}) {
					return
				}
			}
		}
	}
}

// Claims yields what the record's claims mean in the networks. A node whose IPv6 subnet does not go with its IPv4 one,
// both being given, claims it too.
func (p Pools) Claims(r *Record) iter.Seq[Claim] { return p.claimsAbove(r, nil, flaws{}) }

func (p Pools) claimsAbove(r *Record, fences Fences, f flaws) iter.Seq[Claim] {
	return func(yield func(Claim) bool) {
		both := claimsIPv6(r)
		for _, c := range r.Claims {
			if f.dead(fences, c) {
				continue
			}
			if p.Contain(c.Block) && !yield(c) {
				return
			}
			second := c
			second.Block = p.pair(c.Block)
			if !both && second.Block.IsValid() && !yield(second) {
				return
			}
		}
	}
}

func claimsIPv6(r *Record) bool {
	return slices.ContainsFunc(r.Claims, func(c Claim) bool { return c.Block.Addr().Is6() })
}

// Subnets returns the subnets that the record's node has confirmed, the zero Prefix for a family in which it has none.
func (p Pools) Subnets(r *Record) (v4, v6 netip.Prefix) {
	for _, c := range r.Claims {
		switch {
		case c.State != Confirmed:
		case c.Block.Addr().Is4() && !v4.IsValid():
			v4 = c.Block
		case c.Block.Addr().Is6() && !v6.IsValid():
			v6 = c.Block
		}
	}
	if !claimsIPv6(r) {
		v6 = p.pair(v4)
	}
	return v4, v6
}

// inside says whether a claim on block means anything in the network.
func inside(network, block netip.Prefix) bool {
	return block.Bits() >= network.Bits() && network.Contains(block.Addr())
}

// Owner returns who owns block: the best of the valid claims that overlap it. It is a pure function of the holdings,
// whatever their order. The holding's record is nil when nobody does.
func Owner(block netip.Prefix, all []holding) (best holding) { return flaws{}.owner(block, all) }

func (f flaws) owner(block netip.Prefix, all []holding) (best holding) {
	for _, h := range all {
		if h.State > Confirmed || !f.overlap(h.Block, block) || !f.fenceIgnored && fenced(h, all) {
			continue
		}
		if best.Of == nil || h.before(best, f) {
			best = h
		}
	}
	return best
}

// An Index finds the holdings that overlap a block without a look at all of them.
type Index struct {
	at      map[netip.Prefix][]holding
	sorted  []holding // by first address
	lengths []int     // prefix lengths that occur
}

func NewIndex(all iter.Seq[holding]) *Index {
	x := &Index{at: map[netip.Prefix][]holding{}}
	for h := range all {
		x.at[h.Block] = append(x.at[h.Block], h)
		x.sorted = append(x.sorted, h)
		if !slices.Contains(x.lengths, h.Block.Bits()) {
			x.lengths = append(x.lengths, h.Block.Bits())
		}
	}
	slices.SortFunc(x.sorted, func(a, b holding) int { return a.Block.Addr().Compare(b.Block.Addr()) })
	return x
}

// Overlapping returns every holding whose block overlaps block: those around it, and those inside it.
func (x *Index) Overlapping(block netip.Prefix) (found []holding) {
	for _, bits := range x.lengths {
		if bits <= block.Bits() {
			found = append(found, x.at[netip.PrefixFrom(block.Addr(), bits).Masked()]...)
		}
	}
	i, _ := slices.BinarySearchFunc(x.sorted, block.Addr(), func(h holding, a netip.Addr) int { return h.Block.Addr().Compare(a) })
	for ; i < len(x.sorted) && block.Contains(x.sorted[i].Block.Addr()); i++ {
		if x.sorted[i].Block.Bits() > block.Bits() {
			found = append(found, x.sorted[i])
		}
	}
	return found
}

// fenced says whether another claim on the same block has a higher fence.
func fenced(h holding, all []holding) bool {
	for _, other := range all {
		if other.Block == h.Block && other.Fence > h.Fence {
			return true
		}
	}
	return false
}

// before says whether h wins over other: confirmed before tentative, then the longer tenure, then the lower hash.
func (h holding) before(other holding, f flaws) bool {
	if f.tenureReversed {
		h.Tenure, other.Tenure = other.Tenure, h.Tenure
	}
	return cmp.Or(
		cmp.Compare(other.State, h.State),
		cmp.Compare(other.Tenure, h.Tenure),
		cmp.Compare(Weight(h.Of.ID, h.Block), Weight(other.Of.ID, other.Block)),
		h.Of.ID.Compare(other.Of.ID),
		h.Block.Compare(other.Block),
	) < 0
}

// Weight is hash(node, block): spreads the nodes' first choices over the blocks, and breaks ties the same way everywhere.
// It is no secret and need not be hard to find; it must be cheap, since a large network has millions of blocks.
func Weight(id NodeID, block netip.Prefix) uint64 {
	a := block.Addr().As16()
	v := binary.BigEndian.Uint64(id[:8])
	for _, w := range [...]uint64{binary.BigEndian.Uint64(id[8:]), binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]), uint64(block.Bits())} {
		v = mix(v ^ w)
	}
	return v
}

// mix is the finalizer of SplitMix64.
func mix(v uint64) uint64 {
	v += 0x9e3779b97f4a7c15
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}
