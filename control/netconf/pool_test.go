package netconf

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func toInt(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

// toAddr is the address i of the family of like.
func toAddr(i *big.Int, like netip.Prefix) netip.Addr {
	a, ok := netip.AddrFromSlice(i.FillBytes(make([]byte, like.Addr().BitLen()/8)))
	if !ok {
		panic("no address: " + i.String())
	}
	return a
}

func sum(a, b *big.Int) *big.Int { return new(big.Int).Add(a, b) }

func shifted(n int) *big.Int { return new(big.Int).Lsh(big.NewInt(1), uint(n)) }

func subnetSize(p pool) *big.Int { return shifted(p.network.Addr().BitLen() - p.length) }

// enumerate lists the subnets of a network by walking it.
func enumerate(network netip.Prefix, length int) []netip.Addr {
	var all []netip.Addr
	step := subnetSize(pool{network: network, length: length})
	end := sum(toInt(network.Addr()), shifted(network.Addr().BitLen()-network.Bits()))
	for at := toInt(network.Addr()); at.Cmp(end) < 0; at = sum(at, step) {
		all = append(all, toAddr(at, network))
	}
	return all
}

// follow returns the address behind a network, the first one behind the very last.
func follow(network netip.Prefix) netip.Addr {
	bits := network.Addr().BitLen()
	end := sum(toInt(network.Addr()), shifted(bits-network.Bits()))
	return toAddr(end.Mod(end, shifted(bits)), network)
}

// TestPoolAgainstEnumeration: random networks, lengths, first and last subnets, some of them wrong,
// against a list of all subnets.
func TestPoolAgainstEnumeration(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom([]*family{ipv4, ipv6}).Draw(t, "family")
		bits := rapid.IntRange(1, f.maxNetwork+1).Draw(t, "bits")
		length := rapid.IntRange(max(bits-1, 1), min(bits+8, f.bits)).Draw(t, "length")
		raw := rapid.SliceOfN(rapid.Byte(), f.bits/8, f.bits/8).Draw(t, "address")
		addr, _ := netip.AddrFromSlice(raw)
		if addr.Is4In6() {
			t.Skip("not an IPv6 address")
		}
		network := netip.PrefixFrom(addr, bits).Masked()
		all := enumerate(network, max(length, bits))
		outside := follow(network)
		from, to := drawSubnet(t, "from", all, outside), drawSubnet(t, "to", all, outside)

		lo, hi := all[min(1, len(all)-1)], all[len(all)-1]
		keys := fmt.Sprintf("%q: %d, %q: %q, %q: true", f.length, length, f.network, network, f.enable)
		if from.IsValid() && !from.IsUnspecified() {
			keys, lo = keys+fmt.Sprintf(", %q: %q", f.min, from), from
		}
		if to.IsValid() && !to.IsUnspecified() {
			keys, hi = keys+fmt.Sprintf(", %q: \"%s/%d\"", f.max, to, length), to
		}
		if f == ipv6 {
			keys += `, "EnableIPv4": false`
		}
		c, _, err := Parse("n.json", []byte("{"+keys+"}"))

		right := len(all) >= 4 && length <= f.bits-2 &&
			slices.Contains(all, lo) && slices.Contains(all, hi) && !hi.Less(lo)
		if right != (err == nil) {
			t.Fatalf("right is %t, got %v", right, err)
		}
		if want := (pool{network, length, lo, hi}); err == nil && poolOf(f, c) != want {
			t.Fatalf("got %v, want %v", poolOf(f, c), want)
		}
	})
}

// drawSubnet draws a subnet, an address beside one, an aligned one outside of the network, or none.
func drawSubnet(t *rapid.T, name string, all []netip.Addr, outside netip.Addr) netip.Addr {
	a := rapid.SampledFrom(all).Draw(t, name)
	return rapid.SampledFrom([]netip.Addr{a, a, a, a, {}, {}, a.Next(), a.Prev(), outside}).Draw(t, name+" as")
}
