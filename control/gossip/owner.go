package gossip

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
)

// records is what this node knows: the newest record of every node. Merging is commutative, associative and
// idempotent, so that nodes that can talk come to the same map. Not safe for concurrent use.
type records map[nodeID]*record

// merge takes a verified record in, and says whether it was news.
func (m records) merge(r *record) bool {
	if known, ok := m[r.id]; ok && r.compare(known) <= 0 {
		return false
	}
	m[r.id] = r
	return true
}

// A holding is a claim with the node whose claim it is.
type holding struct {
	claim
	of *record
}

// holdings yields every claim inside the networks, and what goes with it: all that a new claim must not overlap.
func holdings(p pools, known iter.Seq[*record]) iter.Seq[holding] {
	return func(yield func(holding) bool) {
		for r := range known {
			for c := range p.claims(r) {
				if !yield(holding{c, r}) {
					return
				}
			}
		}
	}
}

// claims yields what the record's claims mean in the networks. A node whose IPv6 subnet does not go with its IPv4 one,
// both being given, claims it too.
func (p pools) claims(r *record) iter.Seq[claim] {
	return func(yield func(claim) bool) {
		both := claimsIPv6(r)
		for _, c := range r.claims {
			if p.contain(c.block) && !yield(c) {
				return
			}
			second := c
			second.block = p.pair(c.block)
			if !both && second.block.IsValid() && !yield(second) {
				return
			}
		}
	}
}

func claimsIPv6(r *record) bool {
	return slices.ContainsFunc(r.claims, func(c claim) bool { return c.block.Addr().Is6() })
}

// subnets returns the subnets that the record's node has confirmed, the zero Prefix for a family in which it has none.
func (p pools) subnets(r *record) (v4, v6 netip.Prefix) {
	for _, c := range r.claims {
		switch {
		case c.state != confirmed:
		case c.block.Addr().Is4() && !v4.IsValid():
			v4 = c.block
		case c.block.Addr().Is6() && !v6.IsValid():
			v6 = c.block
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

// owner returns who owns block: the best of the valid claims that overlap it. It is a pure function of the holdings,
// whatever their order. The holding's record is nil when nobody does.
func owner(block netip.Prefix, all []holding) (best holding) {
	for _, h := range all {
		if h.state > confirmed || !h.block.Overlaps(block) || fenced(h, all) {
			continue
		}
		if best.of == nil || h.before(best) {
			best = h
		}
	}
	return best
}

// An index finds the holdings that overlap a block without a look at all of them.
type index struct {
	at      map[netip.Prefix][]holding
	sorted  []holding // by first address
	lengths []int     // prefix lengths that occur
}

func newIndex(all iter.Seq[holding]) *index {
	x := &index{at: map[netip.Prefix][]holding{}}
	for h := range all {
		x.at[h.block] = append(x.at[h.block], h)
		x.sorted = append(x.sorted, h)
		if !slices.Contains(x.lengths, h.block.Bits()) {
			x.lengths = append(x.lengths, h.block.Bits())
		}
	}
	slices.SortFunc(x.sorted, func(a, b holding) int { return a.block.Addr().Compare(b.block.Addr()) })
	return x
}

// overlapping returns every holding whose block overlaps block: those around it, and those inside it.
func (x *index) overlapping(block netip.Prefix) (found []holding) {
	for _, bits := range x.lengths {
		if bits <= block.Bits() {
			found = append(found, x.at[netip.PrefixFrom(block.Addr(), bits).Masked()]...)
		}
	}
	i, _ := slices.BinarySearchFunc(x.sorted, block.Addr(), func(h holding, a netip.Addr) int { return h.block.Addr().Compare(a) })
	for ; i < len(x.sorted) && block.Contains(x.sorted[i].block.Addr()); i++ {
		if x.sorted[i].block.Bits() > block.Bits() {
			found = append(found, x.sorted[i])
		}
	}
	return found
}

// fenced says whether another claim on the same block has a higher fence.
func fenced(h holding, all []holding) bool {
	for _, other := range all {
		if other.block == h.block && other.fence > h.fence {
			return true
		}
	}
	return false
}

// before says whether h wins over other: confirmed before tentative, then the longer tenure, then the lower hash.
func (h holding) before(other holding) bool {
	return cmp.Or(
		cmp.Compare(other.state, h.state),
		cmp.Compare(other.tenure, h.tenure),
		cmp.Compare(weight(h.of.id, h.block), weight(other.of.id, other.block)),
		h.of.id.compare(other.of.id),
		h.block.Compare(other.block),
	) < 0
}

// weight is hash(node, block): spreads the nodes' first choices over the blocks, and breaks ties the same way everywhere.
// It is no secret and need not be hard to find; it must be cheap, since a large network has millions of blocks.
func weight(id nodeID, block netip.Prefix) uint64 {
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
