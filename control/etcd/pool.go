package etcd

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
)

// candidates is among how many free blocks a node chooses, as flannel does: two nodes at once rarely want the same.
const candidates = 100

// A Pool is the blocks of one family that nodes may have: those of Bits from Min to Max.
type Pool struct {
	Network  netip.Prefix // zero without the family
	Bits     int
	Min, Max netip.Addr
}

// Fits says whether a subnet is one of the pool's blocks.
func (p Pool) Fits(b netip.Prefix) bool {
	return p.Network.IsValid() && b.Bits() == p.Bits && b == b.Masked() && b.Addr().Compare(p.Min) >= 0 && b.Addr().Compare(p.Max) <= 0
}

// number returns which block of the pool it is.
func (p Pool) number(b netip.Prefix) *big.Int {
	return new(big.Int).Rsh(new(big.Int).Sub(integer(b.Addr()), integer(p.Min)), uint(p.Min.BitLen()-p.Bits))
}

// block is the inverse of number; false behind the last one.
func (p Pool) block(number *big.Int) (netip.Prefix, bool) {
	n := new(big.Int).Lsh(number, uint(p.Min.BitLen()-p.Bits))
	n.Add(n, integer(p.Min))
	if n.Cmp(integer(p.Max)) > 0 {
		return netip.Prefix{}, false
	}
	addr, _ := netip.AddrFromSlice(n.FillBytes(make([]byte, p.Min.BitLen()/8)))
	return netip.PrefixFrom(addr, p.Bits), true
}

func integer(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

// choose returns a random one of the first free blocks.
func (p Pool) choose(taken func(netip.Prefix) bool) (netip.Prefix, error) {
	var free []netip.Prefix
	one, number := big.NewInt(1), new(big.Int)
	for len(free) < candidates {
		b, ok := p.block(number)
		if !ok {
			break
		}
		if !taken(b) {
			free = append(free, b)
		}
		number.Add(number, one)
	}
	if len(free) == 0 {
		return netip.Prefix{}, fmt.Errorf("no /%d of %s from %s to %s is free: all are leased or reserved", p.Bits, p.Network, p.Min, p.Max)
	}
	return free[rand.IntN(len(free))], nil
}
