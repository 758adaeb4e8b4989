package claim

import (
	"math"
	"math/big"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// dualPools are the pools of newCluster's dual-stack networks.
func dualPools(t testing.TB) Pools {
	t.Helper()
	p, err := NewPools(testPool("10.244.0.0", "10.244.255.0", 24),
		Pool{netip.MustParsePrefix("fd00:244::/48"), 64, netip.MustParseAddr("fd00:244::"), netip.MustParseAddr("fd00:244:0:ffff::")})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// bigOf and addrOf convert by way of math/big, which knows nothing of words and carries.
func bigOf(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

func addrOf(n *big.Int, bitLen int) netip.Addr {
	a, _ := netip.AddrFromSlice(n.FillBytes(make([]byte, bitLen/8)))
	return a
}

// genPool draws a pool of either family, of one block up to more than 2^64.
func genPool(t *rapid.T, v4 bool) Pool {
	bitLen, start := 128, netip.MustParseAddr("fd00:244:8000::")
	if v4 {
		bitLen, start = 32, netip.MustParseAddr("10.128.0.0")
	}
	network := netip.PrefixFrom(start, rapid.IntRange(1, bitLen-4).Draw(t, "network")).Masked()
	p := Pool{Network: network, Bits: rapid.IntRange(network.Bits(), bitLen-2).Draw(t, "bits")}
	blocks := new(big.Int).Lsh(big.NewInt(1), uint(p.Bits-network.Bits()))
	at := func(name string, from *big.Int) (*big.Int, netip.Addr) {
		room := new(big.Int).Sub(blocks, from)
		i := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
		if i.Mod(i, room).Add(i, from); rapid.Bool().Draw(t, name+" at an end") {
			i.Set(from)
		}
		offset := new(big.Int).Lsh(i, uint(bitLen-p.Bits))
		return i, addrOf(offset.Add(offset, bigOf(network.Addr())), bitLen)
	}
	first, min := at("min", new(big.Int))
	_, max := at("max", first)
	p.Min, p.Max = min, max
	return p
}

// Size, index and block against math/big.
func TestPoolAgainstBigNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genPool(t, rapid.Bool().Draw(t, "IPv4"))
		if err := p.check(); err != nil {
			t.Fatal(err)
		}
		blocks := new(big.Int).Sub(bigOf(p.Max), bigOf(p.Min))
		blocks.Rsh(blocks, p.hostBits()).Add(blocks, big.NewInt(1))
		want := uint64(math.MaxUint64)
		if blocks.IsUint64() {
			want = blocks.Uint64()
		}
		if got := p.size(); got != want {
			t.Fatalf("%+v: size %d, want %d", p, got, blocks)
		}
		i := rapid.OneOf(rapid.Uint64Range(0, want-1), rapid.Just(want-1), rapid.Just(uint64(0))).Draw(t, "i")
		offset := new(big.Int).Lsh(new(big.Int).SetUint64(i), p.hostBits())
		block := netip.PrefixFrom(addrOf(offset.Add(offset, bigOf(p.Min)), p.bitLen()), p.Bits)
		if got := p.Block(i); got != block || !p.Has(got) || p.index(got.Addr()) != (uint128{0, i}) {
			t.Fatalf("%+v: block %d is %s (%v, index %v), want %s", p, i, got, p.Has(got), p.index(got.Addr()), block)
		}
	})
}

// genPrefix draws one of few addresses of either family, so that prefixes meet.
func genPrefix(t *rapid.T) netip.Prefix {
	a := netip.AddrFrom4([4]byte{10, 244, rapid.ByteRange(0, 3).Draw(t, "third"), rapid.Byte().Draw(t, "fourth")})
	if rapid.Bool().Draw(t, "IPv6") {
		b := [16]byte{0xfd, 7: rapid.ByteRange(0, 3).Draw(t, "subnet"), 15: rapid.Byte().Draw(t, "host")}
		a = netip.AddrFrom16(b)
	}
	return netip.PrefixFrom(a, rapid.OneOf(rapid.IntRange(0, a.BitLen()), rapid.IntRange(a.BitLen()-10, a.BitLen())).Draw(t, "bits"))
}

// Spans against a list of prefixes, in both families at once.
func TestSpansAgainstNaiveModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Custom(genPrefix), 0, 8).Draw(t, "prefixes")
		s := newSpans(append(slices.Clone(list), netip.Prefix{}))
		for _, p := range rapid.SliceOfN(rapid.Custom(genPrefix), 1, 8).Draw(t, "asked") {
			if got, want := s.overlap(p), slices.ContainsFunc(list, p.Overlaps); got != want {
				t.Fatalf("%s overlaps %s: %v, want %v", p, list, got, want)
			}
		}
		if s.overlap(netip.Prefix{}) {
			t.Fatal("the zero prefix overlaps something")
		}
	})
}

// Every IPv4 block has its own IPv6 block, from which it can be told again; nothing else has one.
func TestPairing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Pools{genPool(t, true), genPool(t, false)}
		if p.Paired.size() < p.Claimed.size() {
			return
		}
		index := rapid.Uint64Range(0, p.Claimed.size()-1)
		i, j := index.Draw(t, "i"), index.Draw(t, "j")
		a, b := p.pair(p.Claimed.Block(i)), p.pair(p.Claimed.Block(j))
		if !p.Paired.Has(a) || (i == j) != a.Overlaps(b) || (i < j) != a.Addr().Less(b.Addr()) {
			t.Fatalf("%+v: blocks %d and %d have %s and %s", p, i, j, a, b)
		}
		if back := p.Claimed.Block(p.Paired.index(a.Addr()).lo); back != p.Claimed.Block(i) {
			t.Fatalf("%+v: %s goes with %s and comes from %s", p, a, p.Claimed.Block(i), back)
		}
		other := p.Claimed.Block(i)
		for _, block := range []netip.Prefix{netip.PrefixFrom(other.Addr(), other.Bits()+1), a, {}, netip.PrefixFrom(p.Claimed.Min.Prev(), p.Claimed.Bits)} {
			if got := p.pair(block); got.IsValid() {
				t.Fatalf("%+v: %s, none of the pool's, has %s", p, block, got)
			}
		}
		if got := (Pools{Claimed: p.Claimed}).pair(other); got.IsValid() {
			t.Fatalf("%s without IPv6 has %s", other, got)
		}
	})
}

// Nodes whose blocks overlap in either family, whatever their lengths, ask the same witnesses of something.
func TestOverlapMeansCommonWitnesses(t *testing.T) {
	p := dualPools(t)
	p.Claimed.Max = p.Claimed.Block(40).Addr()
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) []netip.Prefix {
			v4 := p.Claimed.Block(rapid.Uint64Range(0, 40).Draw(t, label))
			if rapid.Bool().Draw(t, label+" is of the pool") {
				return []netip.Prefix{v4, p.pair(v4)}
			}
			v4 = netip.PrefixFrom(v4.Addr(), rapid.IntRange(20, 30).Draw(t, label+" bits")).Masked()
			v6 := p.Paired.Block(rapid.Uint64Range(0, 60).Draw(t, label+" IPv6"))
			return []netip.Prefix{v4, netip.PrefixFrom(v6.Addr(), rapid.IntRange(59, 70).Draw(t, label+" IPv6 bits")).Masked()}
		}
		a, b := draw("a"), draw("b")
		common := slices.ContainsFunc(p.keys(a), func(key netip.Prefix) bool { return slices.Contains(p.keys(b), key) })
		if (flaws{}).meet(a, b) && !common {
			t.Fatalf("%v and %v: keys %v and %v", a, b, p.keys(a), p.keys(b))
		}
	})
}

// A block is free when both of its halves are.
func TestPickInBothFamilies(t *testing.T) {
	all := dualPools(t)
	all.Claimed.Max = netip.MustParseAddr("10.244.3.0")
	rapid.Check(t, func(t *rapid.T) {
		var taken []netip.Prefix
		for range rapid.IntRange(0, 4).Draw(t, "taken") {
			i := rapid.Uint64Range(0, 4).Draw(t, "block")
			block := rapid.SampledFrom([]netip.Prefix{all.Claimed.Block(i), all.Paired.Block(i), netip.PrefixFrom(all.Paired.Block(i).Addr().Next(), 128)}).Draw(t, "half")
			taken = append(taken, block)
		}
		free := map[netip.Prefix]bool{}
		for i := range uint64(4) {
			block := all.Claimed.Block(i)
			if !slices.ContainsFunc(taken, block.Overlaps) && !slices.ContainsFunc(taken, all.Paired.Block(i).Overlaps) {
				free[block] = true
			}
		}
		got, ok := all.pick(NodeID{rapid.Byte().Draw(t, "node")}, taken)
		if ok != (len(free) > 0) || ok && !free[got] {
			t.Fatalf("picked %s (%v) of %v with %s taken", got, ok, free, taken)
		}
	})
}

func BenchmarkPickLarge(b *testing.B) {
	for name, p := range map[string]Pool{
		"v4": {netip.MustParsePrefix("0.0.0.0/1"), 30, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("127.255.255.252")},
		"v6": {netip.MustParsePrefix("fd00::/8"), 64, netip.MustParseAddr("fd00::"), netip.MustParseAddr("fdff:ffff:ffff:ffff::")},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				Pools{Claimed: p}.pick(NodeID{1}, nil)
			}
		})
	}
}
