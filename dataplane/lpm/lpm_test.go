package lpm_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/tulle-net/tulle/dataplane/lpm"
)

// addrOf draws from few addresses, so that prefixes nest and lookups hit, in all of their bits.
func addrOf(r *rand.Rand, v6 bool) netip.Addr {
	var b [16]byte
	for range 1 + r.IntN(4) {
		b[r.IntN(16)] |= 1 << r.IntN(8)
	}
	if v6 {
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte(b[:4]))
}

func lengthOf(r *rand.Rand, most int, lengths []int) int {
	if len(lengths) > 0 {
		return min(lengths[r.IntN(len(lengths))], most)
	}
	return r.IntN(most + 1)
}

// TestLookup compares with a list, and with another library's table, of few prefixes and of many, of some lengths and of all.
func TestLookup(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range 400 {
		var lengths []int
		for range r.IntN(6) {
			lengths = append(lengths, r.IntN(129))
		}
		seen, prefixes, oracle := map[netip.Prefix]bool{}, []netip.Prefix(nil), bart.Table[int]{}
		for range r.IntN(1 << r.IntN(12)) {
			a := addrOf(r, r.IntN(2) == 0)
			p := netip.PrefixFrom(a, lengthOf(r, a.BitLen(), lengths)).Masked()
			if !seen[p] {
				seen[p] = true
				oracle.Insert(p, len(prefixes))
				prefixes = append(prefixes, p)
			}
		}
		table := lpm.New(prefixes)
		for range 300 {
			a := addrOf(r, r.IntN(2) == 0)
			want, ok := oracle.Lookup(a)
			if !ok {
				want = lpm.None
			}
			if got := table.Lookup(a); got != want || want != longest(prefixes, a) {
				t.Fatalf("round %d: %s among %v: prefix %d, want %d", round, a, prefixes, got, want)
			}
		}
		for i, p := range prefixes {
			if got := table.Lookup(p.Addr()); got != longest(prefixes, p.Addr()) {
				t.Fatalf("round %d: the address of prefix %d, %s, is in %d", round, i, p, got)
			}
		}
	}
}

func longest(prefixes []netip.Prefix, a netip.Addr) int {
	best := lpm.None
	for i, p := range prefixes {
		if p.Contains(a) && (best == lpm.None || p.Bits() > prefixes[best].Bits()) {
			best = i
		}
	}
	return best
}

func TestEmpty(t *testing.T) {
	for _, table := range []*lpm.Table{{}, lpm.New(nil)} {
		for _, a := range []netip.Addr{{}, netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("::ffff:1.2.3.4"), netip.MustParseAddr("fe80::1%z")} {
			if i := table.Lookup(a); i != lpm.None {
				t.Errorf("%s is in prefix %d of none", a, i)
			}
		}
	}
}

// TestTouch touches whatever addresses of tables of all sizes: nothing comes of it.
func TestTouch(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for _, size := range []int{0, 1, 10, 1 << 14} {
		var prefixes []netip.Prefix
		for i := range size {
			prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(i >> 8), byte(i)}), 64))
		}
		table := lpm.New(prefixes)
		if want := size == 1<<14; table.Large() != want {
			t.Errorf("%d prefixes: large %t", len(prefixes), !want)
		}
		addrs := make([]netip.Addr, 1, 1000) // an invalid one
		for len(addrs) < cap(addrs) {
			addrs = append(addrs, addrOf(r, r.IntN(2) == 0))
		}
		table.Touch(addrs)
		table.Touch(nil)
		for i, p := range prefixes {
			if got := table.Lookup(p.Addr()); got != i {
				t.Fatalf("%d prefixes: %s is in %d, want %d", len(prefixes), p, got, i)
			}
		}
	}
}
