package gossip

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// A pool is the blocks that nodes choose from: every block of length bits from min to max.
type pool struct {
	network  netip.Prefix
	bits     int
	min, max netip.Addr // first addresses of the first and the last block
}

// maxLooked bounds how many blocks a choice looks at, from a start that depends on the node: some 150 ms.
const maxLooked = 1 << 22

func (p pool) check() error {
	switch {
	case !p.network.Addr().Is4() || p.network != p.network.Masked():
		return fmt.Errorf("network %s: a masked IPv4 prefix is needed", p.network)
	case p.bits < p.network.Bits() || p.bits > 30:
		return fmt.Errorf("subnet length %d in %s: %d to 30 is possible", p.bits, p.network, p.network.Bits())
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
	return block.Bits() == p.bits && a.Is4() && p.aligned(a) && !a.Less(p.min) && !p.max.Less(a)
}

// size returns the number of blocks.
func (p pool) size() uint64 { return (toUint(p.max)-toUint(p.min))>>(32-p.bits) + 1 }

// String describes the pool in messages.
func (p pool) String() string {
	return fmt.Sprintf("%d /%d subnets from %s to %s", p.size(), p.bits, p.min, p.max)
}

// pick returns the free block with the highest weight for the node: nodes that start at the same time hardly ever
// choose the same, and a node that lost its disk is likely to find its old block again once that is free.
func (p pool) pick(id nodeID, taken []netip.Prefix) (best netip.Prefix, ok bool) {
	gaps := newSpans(taken)
	n := p.size()
	start := uint64(0)
	if n > maxLooked {
		start = mix(binary.BigEndian.Uint64(id[:8])) % n
	}
	var highest uint64
	for i := range min(n, maxLooked) {
		block := p.block((start + i) % n)
		w := weight(id, block)
		if (!ok || w > highest) && !gaps.overlap(block) {
			best, highest, ok = block, w, true
		}
	}
	return best, ok
}

func (p pool) block(i uint64) netip.Prefix {
	return netip.PrefixFrom(fromUint(toUint(p.min)+i<<(32-p.bits)), p.bits)
}

func toUint(a netip.Addr) uint64 {
	b := a.As4()
	return uint64(binary.BigEndian.Uint32(b[:]))
}

func fromUint(v uint64) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(v))))
}

// spans are disjoint ranges of IPv4 addresses in order.
type spans []span

type span struct{ first, last uint64 }

func spanOf(p netip.Prefix) span {
	first := toUint(p.Masked().Addr())
	return span{first, first + 1<<(32-p.Bits()) - 1}
}

func newSpans(prefixes []netip.Prefix) spans {
	var all spans
	for _, p := range prefixes {
		if p.IsValid() && p.Addr().Is4() {
			all = append(all, spanOf(p))
		}
	}
	slices.SortFunc(all, func(a, b span) int { return int(int64(a.first) - int64(b.first)) })
	joined := all[:0]
	for _, s := range all {
		if n := len(joined); n > 0 && s.first <= joined[n-1].last {
			joined[n-1].last = max(joined[n-1].last, s.last)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// overlap says whether p has an address in any of the spans.
func (s spans) overlap(p netip.Prefix) bool {
	want := spanOf(p)
	i, _ := slices.BinarySearchFunc(s, want.first, func(have span, first uint64) int {
		if have.last < first {
			return -1
		}
		return 1
	})
	return i < len(s) && s[i].first <= want.last
}
