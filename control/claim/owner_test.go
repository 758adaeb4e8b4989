package claim

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var testNetwork = netip.MustParsePrefix("10.244.0.0/20")

// genHolding draws a claim in a small network, so that claims meet: equal ones, and ones inside others.
func genHolding(t *rapid.T) holding {
	bits := rapid.IntRange(22, 25).Draw(t, "bits")
	a := rapid.Uint16Range(0, 1<<12-1).Draw(t, "address")
	return holding{
		Claim{
			Block:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(a >> 8), byte(a)}), bits).Masked(),
			Fence:  rapid.Uint64Range(0, 2).Draw(t, "fence"),
			Tenure: time.Duration(rapid.Int64Range(0, 3).Draw(t, "tenure")) * time.Second,
			State:  claimState(rapid.ByteRange(0, 2).Draw(t, "state")),
		},
		&Record{ID: NodeID{rapid.Byte().Draw(t, "node")}},
	}
}

// naiveOwner filters in the order of the rules.
func naiveOwner(block netip.Prefix, all []holding) *holding {
	left := slices.DeleteFunc(slices.Clone(all), func(h holding) bool {
		dead := slices.ContainsFunc(all, func(o holding) bool { return o.Block == h.Block && o.Fence > h.Fence })
		return dead || !h.Block.Overlaps(block) || h.State != Tentative && h.State != Confirmed
	})
	keep := func(best func(a, b holding) bool) {
		left = slices.DeleteFunc(slices.Clone(left), func(h holding) bool {
			return slices.ContainsFunc(left, func(o holding) bool { return best(o, h) })
		})
	}
	keep(func(a, b holding) bool { return a.State == Confirmed && b.State == Tentative })
	keep(func(a, b holding) bool { return a.Tenure > b.Tenure })
	keep(func(a, b holding) bool { return Weight(a.Of.ID, a.Block) < Weight(b.Of.ID, b.Block) })
	if len(left) == 0 {
		return nil
	}
	return &left[0]
}

func TestOwnerAgainstNaiveModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(genHolding), 0, 12).Draw(t, "claims")
		block := genHolding(t).Block
		got, want := Owner(block, all), naiveOwner(block, all)
		if want == nil {
			if got.Of != nil {
				t.Fatalf("owner of %s is %+v, want nobody", block, got)
			}
			return
		}
		if got.Of == nil || got.Of.ID != want.Of.ID || got.Claim != want.Claim {
			t.Fatalf("owner of %s is %+v, want %+v", block, got, *want)
		}
		indexed := Owner(block, NewIndex(slices.Values(all)).Overlapping(block))
		if indexed.Of == nil || indexed.Of.ID != got.Of.ID || indexed.Claim != got.Claim {
			t.Fatalf("owner of %s by index is %+v, want %+v", block, indexed, got)
		}
		again := Owner(block, rapid.Permutation(all).Draw(t, "order"))
		if again.Of.ID != got.Of.ID || again.Claim != got.Claim {
			t.Fatalf("owner of %s depends on the order: %+v and %+v", block, got, again)
		}
	})
}

func testPools(min, max string, bits int) Pools { return Pools{Claimed: testPool(min, max, bits)} }

func testPool(min, max string, bits int) Pool {
	return Pool{netip.MustParsePrefix("10.244.0.0/16"), bits, netip.MustParseAddr(min), netip.MustParseAddr(max)}
}

func TestPickAgainstNaiveModel(t *testing.T) {
	p := Pools{Claimed: Pool{testNetwork, 24, netip.MustParseAddr("10.244.2.0"), netip.MustParseAddr("10.244.13.0")}}
	rapid.Check(t, func(t *rapid.T) {
		var taken []netip.Prefix
		for _, h := range rapid.SliceOfN(rapid.Custom(genHolding), 0, 10).Draw(t, "taken") {
			taken = append(taken, h.Block)
		}
		id := NodeID{rapid.Byte().Draw(t, "node"), 1, 2, 3}
		var free []netip.Prefix
		for i := 2; i <= 13; i++ {
			block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24)
			if !slices.ContainsFunc(taken, block.Overlaps) {
				free = append(free, block)
			}
		}
		slices.SortFunc(free, func(a, b netip.Prefix) int {
			if Weight(id, a) > Weight(id, b) {
				return -1
			}
			return 1
		})
		got, ok := p.pick(id, taken)
		if ok != (len(free) > 0) || ok && got != free[0] {
			t.Fatalf("picked %s (%v), free in order of preference: %s", got, ok, free)
		}
	})
}

func TestPickSpreads(t *testing.T) {
	p := testPools("10.244.0.0", "10.244.255.0", 24)
	seen := map[netip.Prefix]int{}
	for i := range 256 {
		block, _ := p.pick(NodeID{byte(i), 42}, nil)
		seen[block]++
	}
	for block, n := range seen {
		if n > 8 {
			t.Errorf("%d of 256 nodes prefer %s", n, block)
		}
	}
}

func TestPickInALargeNetwork(t *testing.T) {
	for _, p := range []Pool{
		{netip.MustParsePrefix("0.0.0.0/1"), 30, netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("127.255.255.252")},
		{netip.MustParsePrefix("fd00::/56"), 120, netip.MustParseAddr("fd00::"), netip.MustParseAddr("fd00::ff:ffff:ffff:ffff:ff00")},           // 2^64 blocks
		{netip.MustParsePrefix("fd00::/8"), 126, netip.MustParseAddr("fd00::"), netip.MustParseAddr("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc")}, // 2^118
	} {
		block, ok := Pools{Claimed: p}.pick(NodeID{1}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
		if !ok || !p.Has(block) {
			t.Errorf("%s: %s %v", p, block, ok)
		}
	}
}

func TestPoolCheck(t *testing.T) {
	if err := testPool("10.244.0.0", "10.244.255.0", 24).check(); err != nil {
		t.Error(err)
	}
	for _, p := range []Pool{
		testPool("10.244.1.0", "10.244.0.0", 24),
		testPool("10.244.0.0", "10.245.0.0", 24),
		testPool("10.244.0.0", "10.244.1.1", 24),
		testPool("10.244.0.0", "10.244.1.0", 31),
		testPool("10.244.0.0", "10.244.0.0", 15),
		{},
	} {
		if err := p.check(); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}
