package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Neighbour Discovery messages (RFC 4861 section 4).
const (
	ndFirst        = 133 // router solicitation; then router advertisement
	ndSolicitation = 135
	ndAdvert       = 136
	ndLast         = 137 // redirect

	ndHeaderLen    = 24 // of a solicitation and an advertisement, with the target
	ndHopLimit     = 255
	ndSourceLink   = 1 // option: source link-layer address
	ndTargetLink   = 2 // option: target link-layer address
	ndLinkLen      = 8 // of such an option with an Ethernet address
	ndAnswerLen    = ipv6Len + ndHeaderLen + ndLinkLen
	ndRouterBit    = 0x80000000
	ndSolicitedBit = 0x40000000
	ndOverrideBit  = 0x20000000
)

// IsND reports whether the frame is a Neighbour Discovery message, sound or not: router and neighbour solicitation
// and advertisement, redirect. A fragment counts, though nobody may send one (RFC 6980). Valid iff Parse returned
// None.
func (f *Frame) IsND() bool {
	return f.isIPv6() && f.Proto == ProtoICMPv6 && f.FragmentOffset == 0 && f.L4 < f.end &&
		f.buf[f.L4] >= ndFirst && f.buf[f.L4] <= ndLast
}

// Advertises reports whether an ND message speaks for somebody who has none of the addresses: a router advertisement, a redirect, or an
// advertisement of another address. Valid iff IsND.
func (f *Frame) Advertises(except ...netip.Addr) bool {
	nd := f.buf[f.L4:f.end]
	switch nd[0] {
	case ndSolicitation, ndFirst:
		return false
	case ndAdvert:
		return len(nd) < ndHeaderLen || !slices.Contains(except, netip.AddrFrom16([16]byte(nd[8:24])))
	}
	return true
}

// NDTarget returns the address that a neighbour solicitation asks for and who asks. It reports false for everything
// else, and for a solicitation that RFC 4861 section 7.1.1 wants dropped or that has extension headers: no sender puts
// any there, and fragments are forbidden (RFC 6980). source is :: in a probe for duplicate addresses (RFC 4862
// section 5.4), which must not be answered by AnswerND. Valid iff Parse returned None.
func (f *Frame) NDTarget() (target, source netip.Addr, ok bool) {
	if !f.IsND() || f.L4 != f.L3+ipv6Len || f.end-f.L4 < ndHeaderLen {
		return netip.Addr{}, netip.Addr{}, false
	}
	nd := f.buf[f.L4:f.end]
	target = netip.AddrFrom16([16]byte(nd[8:24]))
	sourceLink, sound := ndOptions(nd[ndHeaderLen:])
	sound = sound && nd[0] == ndSolicitation && nd[1] == 0 && f.TTL() == ndHopLimit && !target.IsMulticast()
	if f.Src.IsUnspecified() {
		sound = sound && sourceLink == nil && isSolicitedNode(f.Dst)
	}
	if !sound || f.Src.IsMulticast() || f.CheckL4() != None || f.VNet.NeedsCsum() {
		return netip.Addr{}, netip.Addr{}, false
	}
	return target, f.Src, true
}

// ndOptions returns the first source link-layer address of a solicitation's options, nil without one, and whether all
// lengths are sound.
func ndOptions(b []byte) (sourceLink []byte, ok bool) {
	for len(b) > 0 {
		if len(b) < 2 || b[1] == 0 || int(b[1])*8 > len(b) {
			return nil, false
		}
		if b[0] == ndSourceLink && sourceLink == nil {
			sourceLink = b[2:8]
		}
		b = b[int(b[1])*8:]
	}
	return sourceLink, true
}

// isSolicitedNode reports whether the address is in ff02::1:ff00:0/104 (RFC 4291 section 2.7.1).
func isSolicitedNode(a netip.Addr) bool {
	b := a.As16()
	return [13]byte(b[:13]) == [13]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff}
}

// AnswerND turns the solicitation into the advertisement that says: target is at mac. It goes to the link-layer
// address that the solicitation names, else to where it came from. The frame becomes ndAnswerLen bytes of IP; a
// solicitation without options grows into the headroom for that, and AnswerND reports false when there is none.
//
// The answer is solicited, and overrides what the asker knows: nobody else on the link has the address. It is a
// router's, since the engine forwards, whoever's address it answers for: an asker that uses it as a gateway would
// drop its default route otherwise (RFC 4861 section 7.2.5). The kernel's proxy does the same (net/ipv6/ndisc.c).
//
// Valid iff NDTarget reported true with a source that is not ::.
func (f *Frame) AnswerND(mac MAC) bool {
	asker := f.SrcMAC()
	if link, _ := ndOptions(f.buf[f.L4+ndHeaderLen : f.end]); link != nil {
		asker = MAC(link)
	}
	target := [16]byte(f.buf[f.L4+8 : f.L4+24])
	if !f.resizeFront(ndAnswerLen) {
		return false
	}
	f.writeIPv6(target, f.Src.As16(), ndHopLimit)
	nd := f.buf[f.L4:f.end]
	binary.BigEndian.PutUint32(nd, ndAdvert<<24)
	binary.BigEndian.PutUint32(nd[4:], ndRouterBit|ndSolicitedBit|ndOverrideBit)
	copy(nd[8:], target[:])
	nd[24], nd[25] = ndTargetLink, ndLinkLen/8
	copy(nd[26:], mac[:])
	binary.BigEndian.PutUint16(nd[2:], f.pseudoHeader(len(nd)).Add(nd).Checksum())
	f.SetMACs(asker, mac)
	f.VNet = VNet{}
	return f.Parse() == None
}

// resizeFront makes the frame's IPv6 packet n bytes long: by cutting it, or by moving its Ethernet and IPv6 headers
// into the headroom, since behind the frame lies another one.
func (f *Frame) resizeFront(n int) bool {
	grow := n - (f.end - f.L3)
	if grow <= 0 {
		f.end = f.L3 + n
		return true
	}
	old := f.buf[f.start:f.L4]
	if _, ok := f.Prepend(grow); !ok {
		return false
	}
	copy(f.buf[f.start:], old)
	f.L2, f.L3, f.L4, f.Payload = f.L2-grow, f.L3-grow, f.L4-grow, f.Payload-grow
	return true
}

// writeIPv6 writes the IPv6 header of an ICMPv6 message that fills the frame behind it.
func (f *Frame) writeIPv6(src, dst [16]byte, hopLimit uint8) {
	ip := f.buf[f.L3:f.end]
	binary.BigEndian.PutUint32(ip, 6<<28)
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
	ip[6], ip[7] = ProtoICMPv6, hopLimit
	copy(ip[8:], src[:])
	copy(ip[24:], dst[:])
}
