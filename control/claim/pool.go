package claim

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
)

// A Pool is the blocks of one family that nodes choose from: every block of length bits from min to max.
type Pool struct {
	Network  netip.Prefix
	Bits     int
	Min, Max netip.Addr // first addresses of the first and the last block
}

func (p Pool) check() error {
	addr := p.Network.Addr()
	switch {
	case !addr.IsValid() || addr.Is4In6() || p.Network != p.Network.Masked():
		return fmt.Errorf("network %s: a masked IPv4 or IPv6 prefix is needed", p.Network)
	case p.Bits < p.Network.Bits() || p.Bits > addr.BitLen()-2:
		return fmt.Errorf("subnet length %d in %s: %d to %d is possible", p.Bits, p.Network, p.Network.Bits(), addr.BitLen()-2)
	case !p.Network.Contains(p.Min) || !p.Network.Contains(p.Max) || p.Max.Less(p.Min):
		return fmt.Errorf("subnets from %s to %s: both inside %s and in this order are needed", p.Min, p.Max, p.Network)
	case !p.aligned(p.Min) || !p.aligned(p.Max):
		return fmt.Errorf("subnets from %s to %s: neither may be inside a /%d", p.Min, p.Max, p.Bits)
	}
	return nil
}

func (p Pool) aligned(a netip.Addr) bool { return netip.PrefixFrom(a, p.Bits).Masked().Addr() == a }

// Has says whether block is one of the pool's.
func (p Pool) Has(block netip.Prefix) bool {
	a := block.Addr()
	return block.Bits() == p.Bits && a.BitLen() == p.bitLen() && p.aligned(a) && !a.Less(p.Min) && !p.Max.Less(a)
}

func (p Pool) bitLen() int { return p.Network.Addr().BitLen() }

// hostBits returns the number of address bits inside a block.
func (p Pool) hostBits() uint { return uint(p.bitLen() - p.Bits) }

// size returns the number of blocks, 2^64-1 when there are more: nobody gets to those behind.
func (p Pool) size() uint64 {
	last := p.index(p.Max)
	if last.hi > 0 || last.lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return last.lo + 1
}

// index returns the number of the block that begins at a; the first has 0.
func (p Pool) index(a netip.Addr) uint128 { return toUint(a).sub(toUint(p.Min)).shr(p.hostBits()) }

// Block returns the block of number i.
func (p Pool) Block(i uint64) netip.Prefix {
	return netip.PrefixFrom(toUint(p.Min).add(uint128{0, i}.shl(p.hostBits())).addr(p.bitLen()), p.Bits)
}

// String describes the pool in messages.
func (p Pool) String() string {
	if p.size() == math.MaxUint64 {
		return fmt.Sprintf("2^64 or more /%d subnets from %s to %s", p.Bits, p.Min, p.Max)
	}
	return fmt.Sprintf("%d /%d subnets from %s to %s", p.size(), p.Bits, p.Min, p.Max)
}

// Pools is what nodes share out. In a dual-stack network a node claims an IPv4 block, and the IPv6 block of the same
// number is its too (flannel's allocator walks both pools in step): no two IPv4 blocks have the same, so that one
// claim is enough for both.
type Pools struct {
	Claimed Pool // IPv4, or IPv6 in a network without IPv4
	Paired  Pool // IPv6; valid iff dual
}

// NewPools checks the pools of the two families, of which one may be the zero pool.
func NewPools(v4, v6 Pool) (Pools, error) {
	if !v6.Network.IsValid() {
		return Pools{Claimed: v4}, v4.check()
	}
	if err := v6.check(); err != nil || !v4.Network.IsValid() {
		return Pools{Claimed: v6}, err
	}
	if err := v4.check(); err != nil {
		return Pools{}, err
	}
	if v6.size() < v4.size() {
		return Pools{}, fmt.Errorf("IPv6Network %s has %s, Network %s has %s: each node gets one of both: widen IPv6Network, or take a longer IPv6SubnetLen or a lower SubnetMax",
			v6.Network, v6, v4.Network, v4)
	}
	return Pools{v4, v6}, nil
}

// String names the networks in messages.
func (p Pools) String() string {
	if !p.Dual() {
		return p.Claimed.Network.String()
	}
	return fmt.Sprintf("%s and %s", p.Claimed.Network, p.Paired.Network)
}

func (p Pools) Dual() bool { return p.Paired.Network.IsValid() }

// pair returns the IPv6 block that goes with an IPv4 block, the zero Prefix when none does.
func (p Pools) pair(block netip.Prefix) netip.Prefix {
	if !p.Dual() || !p.Claimed.Has(block) {
		return netip.Prefix{}
	}
	return p.Paired.Block(p.Claimed.index(block.Addr()).lo)
}

// Contain says whether a claim on block means anything in the networks.
func (p Pools) Contain(block netip.Prefix) bool {
	return inside(p.Claimed.Network, block) || p.Dual() && inside(p.Paired.Network, block)
}

// maxLooked bounds how many blocks a choice looks at, from a start that depends on the node: some 150 ms, in IPv6 half as much again.
const maxLooked = 1 << 22

// pick returns the block with the highest weight for the node among those that are free in both families: nodes that
// start at the same time hardly ever choose the same, and a node that lost its disk is likely to find its old block
// again once that is free.
func (p Pools) pick(id NodeID, taken []netip.Prefix) (best netip.Prefix, ok bool) {
	gaps := newSpans(taken)
	n := p.Claimed.size()
	at := uint64(0)
	if n > maxLooked {
		at = mix(binary.BigEndian.Uint64(id[:8])) % n
	}
	var highest uint64
	for range min(n, maxLooked) {
		block := p.Claimed.Block(at)
		w := Weight(id, block)
		if (!ok || w > highest) && !gaps.overlap(block) && !gaps.overlap(p.pair(block)) {
			best, highest, ok = block, w, true
		}
		if at++; at == n {
			at = 0
		}
	}
	return best, ok
}
