package claim

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// A uint128 is an address as a number.
type uint128 struct{ hi, lo uint64 }

// toUint returns an address of either family as a number.
func toUint(a netip.Addr) uint128 {
	if a.Is4() {
		b := a.As4()
		return uint128{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return uint128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// addr is toUint's inverse, for an address of bitLen bits.
func (u uint128) addr(bitLen int) netip.Addr {
	if bitLen == 32 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(u.lo))))
	}
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, u.hi), u.lo)))
}

// add wraps around, as does sub.
func (u uint128) add(v uint128) uint128 {
	lo, carry := bits.Add64(u.lo, v.lo, 0)
	hi, _ := bits.Add64(u.hi, v.hi, carry)
	return uint128{hi, lo}
}

func (u uint128) sub(v uint128) uint128 {
	lo, borrow := bits.Sub64(u.lo, v.lo, 0)
	hi, _ := bits.Sub64(u.hi, v.hi, borrow)
	return uint128{hi, lo}
}

// shl and shr shift by up to 128 bits: a count that wraps around is one that shifts everything out.
func (u uint128) shl(n uint) uint128 {
	return uint128{u.hi<<n | u.lo>>(64-n) | u.lo<<(n-64), u.lo << n}
}

func (u uint128) shr(n uint) uint128 {
	return uint128{u.hi >> n, u.lo>>n | u.hi<<(64-n) | u.hi>>(n-64)}
}
