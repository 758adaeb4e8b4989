package gossip

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
)

// A pool is the blocks of one family that nodes choose from: every block of length bits from min to max.
type pool struct {
	network  netip.Prefix
	bits     int
	min, max netip.Addr // first addresses of the first and the last block
}

func (p pool) check() error {
	addr := p.network.Addr()
	switch {
	case !addr.IsValid() || addr.Is4In6() || p.network != p.network.Masked():
		return fmt.Errorf("network %s: a masked IPv4 or IPv6 prefix is needed", p.network)
	case p.bits < p.network.Bits() || p.bits > addr.BitLen()-2:
		return fmt.Errorf("subnet length %d in %s: %d to %d is possible", p.bits, p.network, p.network.Bits(), addr.BitLen()-2)
	case !p.network.Contains(p.min) || !p.network.Contains(p.max) || p.max.Less(p.min):
		return fmt.Errorf("subnets from %s to %s: both inside %s and in this order are needed", p.min, p.max, p.network)
	case !p.aligned(p.min) || !p.aligned(p.max):
		return fmt.Errorf("subnets from %s to %s: neither may be inside a /%d", p.min, p.max, p.bits)
	}
	return nil
}

func (p pool) aligned(a netip.Addr) bool { return netip.PrefixFrom(a, p.bits).Masked().Addr() == a }

// has says whether block is one of the pool's.
func (p pool) has(block netip.Prefix) bool {
	a := block.Addr()
	return block.Bits() == p.bits && a.BitLen() == p.bitLen() && p.aligned(a) && !a.Less(p.min) && !p.max.Less(a)
}

func (p pool) bitLen() int { return p.network.Addr().BitLen() }

// hostBits returns the number of address bits inside a block.
func (p pool) hostBits() uint { return uint(p.bitLen() - p.bits) }

// size returns the number of blocks, 2^64-1 when there are more: nobody gets to those behind.
func (p pool) size() uint64 {
	last := p.index(p.max)
	if last.hi > 0 || last.lo == math.MaxUint64 {
		return math.MaxUint64
	}
	return last.lo + 1
}

// index returns the number of the block that begins at a; the first has 0.
func (p pool) index(a netip.Addr) uint128 { return toUint(a).sub(toUint(p.min)).shr(p.hostBits()) }

// block returns the block of number i.
func (p pool) block(i uint64) netip.Prefix {
	return netip.PrefixFrom(toUint(p.min).add(uint128{0, i}.shl(p.hostBits())).addr(p.bitLen()), p.bits)
}

// String describes the pool in messages.
func (p pool) String() string {
	if p.size() == math.MaxUint64 {
		return fmt.Sprintf("2^64 or more /%d subnets from %s to %s", p.bits, p.min, p.max)
	}
	return fmt.Sprintf("%d /%d subnets from %s to %s", p.size(), p.bits, p.min, p.max)
}

// pools is what nodes share out. In a dual-stack network a node claims an IPv4 block, and the IPv6 block of the same
// number is its too (flannel's allocator walks both pools in step): no two IPv4 blocks have the same, so that one
// claim is enough for both.
type pools struct {
	claimed pool // IPv4, or IPv6 in a network without IPv4
	paired  pool // IPv6; valid iff dual
}

func newPools(c Config) (pools, error) {
	v4, v6 := pool{c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax}, pool{c.IPv6Network, c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax}
	if !c.IPv6Network.IsValid() {
		return pools{claimed: v4}, v4.check()
	}
	if err := v6.check(); err != nil || !c.Network.IsValid() {
		return pools{claimed: v6}, err
	}
	if err := v4.check(); err != nil {
		return pools{}, err
	}
	if v6.size() < v4.size() {
		return pools{}, fmt.Errorf("IPv6Network %s has %s, Network %s has %s: each node gets one of both: widen IPv6Network, or take a longer IPv6SubnetLen or a lower SubnetMax",
			v6.network, v6, v4.network, v4)
	}
	return pools{v4, v6}, nil
}

// String names the networks in messages.
func (p pools) String() string {
	if !p.dual() {
		return p.claimed.network.String()
	}
	return fmt.Sprintf("%s and %s", p.claimed.network, p.paired.network)
}

func (p pools) dual() bool { return p.paired.network.IsValid() }

// pair returns the IPv6 block that goes with an IPv4 block, the zero Prefix when none does.
func (p pools) pair(block netip.Prefix) netip.Prefix {
	if !p.dual() || !p.claimed.has(block) {
		return netip.Prefix{}
	}
	return p.paired.block(p.claimed.index(block.Addr()).lo)
}

// contain says whether a claim on block means anything in the networks.
func (p pools) contain(block netip.Prefix) bool {
	return inside(p.claimed.network, block) || p.dual() && inside(p.paired.network, block)
}

// maxLooked bounds how many blocks a choice looks at, from a start that depends on the node: some 150 ms, in IPv6 half as much again.
const maxLooked = 1 << 22

// pick returns the block with the highest weight for the node among those that are free in both families: nodes that
// start at the same time hardly ever choose the same, and a node that lost its disk is likely to find its old block
// again once that is free.
func (p pools) pick(id nodeID, taken []netip.Prefix) (best netip.Prefix, ok bool) {
	gaps := newSpans(taken)
	n := p.claimed.size()
	at := uint64(0)
	if n > maxLooked {
		at = mix(binary.BigEndian.Uint64(id[:8])) % n
	}
	var highest uint64
	for range min(n, maxLooked) {
		block := p.claimed.block(at)
		w := weight(id, block)
		if (!ok || w > highest) && !gaps.overlap(block) && !gaps.overlap(p.pair(block)) {
			best, highest, ok = block, w, true
		}
		if at++; at == n {
			at = 0
		}
	}
	return best, ok
}
