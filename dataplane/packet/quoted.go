package packet

import (
	"encoding/binary"
	"net/netip"
)

// Quoted returns the addresses, protocol and ports (see Ports) of the packet that an ICMP error quotes: destination unreachable, time exceeded, parameter problem,
// packet too big. It reports false for everything else, redirects and source quench (RFC 6633) among it, and for
// quotes that do not hold the IP header, the whole extension chain and 8 bytes behind it, or quote a later fragment.
// The lengths in a quote are never trusted, nor are its checksums verified; that of the error is CheckL4's. Valid iff
// Parse returned None.
func (f *Frame) Quoted() (src, dst netip.Addr, proto uint8, sport, dport uint16, ok bool) {
	q, ok := f.quoted()
	return q.src, q.dst, q.proto, q.sport, q.dport, ok
}

type quote struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
}

func (f *Frame) quoted() (q quote, ok bool) {
	if !f.isICMP() || f.Fragment || f.end-f.L4 < icmpLen || !isQuoting(f.buf[f.L4], f.isIPv6()) {
		return quote{}, false
	}
	inner := f.buf[f.L4+icmpLen : f.end]
	if f.isIPv6() {
		return quotedIPv6(inner)
	}
	return quotedIPv4(inner)
}

func isQuoting(icmpType uint8, v6 bool) bool {
	if v6 {
		return icmpType >= icmp6Unreachable && icmpType <= icmp6Parameter
	}
	return icmpType == icmpUnreachable || icmpType == icmpTimeExceeded || icmpType == icmpParameter
}

func quotedIPv4(b []byte) (q quote, ok bool) {
	if len(b) < ipv4MinLen {
		return quote{}, false
	}
	headerLen := int(b[0]&0xf) * 4
	if b[0]>>4 != 4 || headerLen < ipv4MinLen || len(b) < headerLen+icmpLen {
		return quote{}, false
	}
	if binary.BigEndian.Uint16(b[6:])&ipv4OffsetMask != 0 {
		return quote{}, false
	}
	q = quote{src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20])), proto: b[9]}
	q.sport, q.dport = l4Ports(q.proto, false, b[headerLen:])
	return q, true
}

func quotedIPv6(b []byte) (q quote, ok bool) {
	if len(b) < ipv6Len || b[0]>>4 != 6 {
		return quote{}, false
	}
	c := chain{proto: b[6], end: ipv6Len, quoted: true}
	if v := walkExtensions(b, &c); v != None || c.later || len(b) < c.end+icmpLen {
		return quote{}, false
	}
	q = quote{src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])), proto: c.proto}
	q.sport, q.dport = l4Ports(q.proto, true, b[c.end:])
	return q, true
}
