// Package word turns IP addresses into 64-bit words and back, and mixes words into hashes, for tables that packets are looked up in.
package word

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"unsafe"
)

// Halves returns an address as netip keeps it: one of IPv4 as the IPv6 address that it is mapped to. As16 writes it as bytes in a way that the CPU can't forward to the
// loads that follow: 10 ns for each address (Go 1.26, Zen 3). Halves and Of4 are no larger than what the compiler inlines.
func Halves(a *netip.Addr) (hi, lo uint64) {
	words := (*[2]uint64)(unsafe.Pointer(a))
	if !layoutKnown {
		words = slowHalves(a)
	}
	return words[0], words[1]
}

// layoutKnown guards against another netip.
var layoutKnown = func() bool {
	a := netip.AddrFrom16([16]byte{0: 1, 7: 2, 8: 3, 15: 4})
	words := (*[2]uint64)(unsafe.Pointer(&a))
	b := netip.AddrFrom4([4]byte{1, 2, 3, 4})
	words4 := (*[2]uint64)(unsafe.Pointer(&b))
	return unsafe.Sizeof(a) >= 16 && words[0] == 1<<56|2 && words[1] == 3<<56|4 && uint32(words4[1]) == 1<<24|2<<16|3<<8|4
}()

//go:noinline
func slowHalves(a *netip.Addr) *[2]uint64 {
	b := a.As16()
	return &[2]uint64{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// FromHalves is the IPv6 address of two halves.
func FromHalves(hi, lo uint64) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return netip.AddrFrom16(b)
}

// Of4 returns an IPv4 address as a word.
func Of4(a *netip.Addr) uint32 {
	words := (*[2]uint64)(unsafe.Pointer(a))
	if !layoutKnown {
		words = slowHalves(a)
	}
	return uint32(words[1])
}

// From4 is the IPv4 address of a word.
func From4(v uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// Mix is the step of wyhash: the 128-bit product of input and secret, folded. It is no MAC: it holds against a peer that sees no
// hashes.
func Mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
