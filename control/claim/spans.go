package claim

import (
	"net/netip"
	"slices"
)

// spans are disjoint ranges of addresses in order, those of IPv4 first.
type spans []span

type span struct{ first, last netip.Addr }

func spanOf(p netip.Prefix) span {
	first := p.Masked().Addr()
	hosts := uint128{0, 1}.shl(uint(first.BitLen() - p.Bits())).sub(uint128{0, 1})
	return span{first, toUint(first).add(hosts).addr(first.BitLen())}
}

func newSpans(prefixes []netip.Prefix) spans {
	var all spans
	for _, p := range prefixes {
		if p.IsValid() && !p.Addr().Is4In6() {
			all = append(all, spanOf(p))
		}
	}
	slices.SortFunc(all, func(a, b span) int { return a.first.Compare(b.first) })
	joined := all[:0]
	for _, s := range all {
		if n := len(joined); n > 0 && !joined[n-1].last.Less(s.first) {
			if joined[n-1].last.Less(s.last) {
				joined[n-1].last = s.last
			}
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// overlap says whether p has an address in any of the spans. The zero Prefix has none.
func (s spans) overlap(p netip.Prefix) bool {
	if !p.IsValid() {
		return false
	}
	want := spanOf(p)
	i, _ := slices.BinarySearchFunc(s, want.first, func(have span, first netip.Addr) int {
		if have.last.Less(first) {
			return -1
		}
		return 1
	})
	return i < len(s) && !want.last.Less(s[i].first)
}
