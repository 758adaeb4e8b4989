package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// ICMP and ICMPv6 types (RFC 792, RFC 4443).
const (
	icmpEchoReply     = 0
	icmpUnreachable   = 3
	icmpSourceQuench  = 4
	icmpRedirect      = 5
	icmpEchoRequest   = 8
	icmpTimeExceeded  = 11
	icmpParameter     = 12
	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
	icmp6Parameter    = 4
	icmp6EchoRequest  = 128
	icmp6EchoReply    = 129
)

// isICMP reports whether the frame carries the ICMP of its own address family.
func (f *Frame) isICMP() bool { return isICMP(f.Proto, f.isIPv6()) }

func isICMP(proto uint8, v6 bool) bool {
	if v6 {
		return proto == ProtoICMPv6
	}
	return proto == ProtoICMP
}

func isEcho(icmpType uint8, v6 bool) bool {
	if v6 {
		return icmpType == icmp6EchoRequest || icmpType == icmp6EchoReply
	}
	return icmpType == icmpEchoRequest || icmpType == icmpEchoReply
}

// Ports returns the source and destination port of TCP and UDP, and twice the identifier of ICMP and ICMPv6 echo
// requests and replies. It returns zeros where there are none: other protocols, later fragments, headers that are
// cut. Valid iff IP.
func (f *Frame) Ports() (src, dst uint16) {
	hasPorts := f.Proto == ProtoTCP || f.Proto == ProtoUDP
	if f.FragmentOffset > 0 || hasPorts && f.Payload == f.L4 && !f.Fragment {
		return 0, 0
	}
	return l4Ports(f.Proto, f.isIPv6(), f.buf[f.L4:f.end])
}

// l4Ports is Ports for the first bytes of an L4 header. Eight of them must be there: no ICMP quotes fewer.
func l4Ports(proto uint8, v6 bool, l4 []byte) (src, dst uint16) {
	switch {
	case len(l4) < icmpLen:
	case proto == ProtoTCP || proto == ProtoUDP:
		return binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	case isICMP(proto, v6) && isEcho(l4[0], v6):
		id := binary.BigEndian.Uint16(l4[4:])
		return id, id
	}
	return 0, 0
}

// flowHash is the same for both directions of a flow, so that both meet on one worker
// and one receive queue. Fragments have no ports to hash, and the first one must not
// part from the rest, which need not know their protocol (IPv6 destination options).
func (f *Frame) flowHash(src, dst uint64) uint32 {
	if f.Fragment {
		return uint32(mix(mix(src) + mix(dst) + protoFragment))
	}
	var sport, dport uint16
	if f.Payload > f.L4 {
		ports := binary.BigEndian.Uint32(f.buf[f.L4:])
		sport, dport = uint16(ports>>16), uint16(ports)
	} else if f.isICMP() {
		sport, dport = f.Ports()
	}
	src = bits.RotateLeft64(src, 16) + uint64(sport)
	dst = bits.RotateLeft64(dst, 16) + uint64(dport)
	return uint32(mix(mix(src) + mix(dst) + uint64(f.Proto)))
}

// mix spreads every input bit over the output: the high and the low half of a
// product with an odd constant (2^64 divided by the golden ratio).
func mix(v uint64) uint64 {
	hi, lo := bits.Mul64(v+0x9e3779b97f4a7c15, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// Martian reports whether an address of the packet is never to be seen between hosts (RFC 1812 section 5.3.7, RFC
// 4291 section 2.5): loopback, unspecified, 0.0.0.0/8, link-local, IPv4-mapped or -compatible; and, as a source,
// multicast or broadcast. Neighbour Discovery uses such addresses rightly. Valid iff IP.
func (f *Frame) Martian() bool {
	return neverForwarded(f.Src) || neverForwarded(f.Dst) || f.Src.IsMulticast() || f.Src == broadcast4
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func neverForwarded(a netip.Addr) bool {
	if a.Is4() {
		return a.IsLoopback() || a.IsLinkLocalUnicast() || a.As4()[0] == 0
	}
	b := a.As16()
	return a.IsLinkLocalUnicast() || a.Is4In6() || [12]byte(b[:12]) == [12]byte{}
}
