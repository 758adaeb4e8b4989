package netfilter

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A rule is its matches and what is done then, in order.
type rule []match

// A match is the expressions of one of a rule's parts, over register 1.
type match []expr.Any

// A family says where the IP header has the addresses.
type family struct {
	table              nftables.TableFamily
	name               string
	srcAt, dstAt, bits uint32 // offsets of both addresses, bytes; bits of an address
}

var (
	ip4 = family{nftables.TableFamilyIPv4, "ip", 12, 16, 32}
	ip6 = family{nftables.TableFamilyIPv6, "ip6", 8, 24, 128}
)

func (f family) String() string { return f.name }

func (f family) multicast() netip.Prefix { return f.either("224.0.0.0/4", "ff00::/8") }

// either is the first prefix for IPv4, the second for IPv6.
func (f family) either(four, six string) netip.Prefix {
	if f.bits == 32 {
		return netip.MustParsePrefix(four)
	}
	return netip.MustParsePrefix(six)
}

func (f family) src(p netip.Prefix) match    { return f.within(f.srcAt, p, expr.CmpOpEq) }
func (f family) dst(p netip.Prefix) match    { return f.within(f.dstAt, p, expr.CmpOpEq) }
func (f family) notDst(p netip.Prefix) match { return f.within(f.dstAt, p, expr.CmpOpNeq) }

func (f family) within(offset uint32, p netip.Prefix, op expr.CmpOp) match {
	length := f.bits / 8
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return match{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()}}
}

func iif(name string) match { return link(expr.MetaKeyIIFNAME, name) }
func oif(name string) match { return link(expr.MetaKeyOIFNAME, name) }

func link(key expr.MetaKey, name string) match {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return match{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// local is what is for the node itself, notLocal what is not, and notOwnSource what the node does not send.
var (
	local        = addressType(&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, expr.CmpOpEq)
	notLocal     = addressType(&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, expr.CmpOpNeq)
	notOwnSource = addressType(&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: true}, expr.CmpOpNeq)
)

func addressType(of *expr.Fib, op expr.CmpOp) match {
	return match{of, &expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
}

var (
	notrack    = match{&expr.Notrack{}}
	masquerade = match{&expr.Masq{FullyRandom: true}}
	accept     = match{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = match{&expr.Verdict{Kind: expr.VerdictDrop}}
)

func (r rule) expressions() (all []expr.Any) {
	for _, m := range r {
		all = append(all, m...)
	}
	return all
}
