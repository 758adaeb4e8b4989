package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

const (
	ipv4MinLen = 20
	udpLen     = 8
	tcpMinLen  = 20

	ipv4DontFragment  = 0x4000
	ipv4MoreFragments = 0x2000
	ipv4OffsetMask    = 0x1fff
)

// Parse reads the Ethernet header at the frame's start and what follows it, and sets the
// frame's offsets and flow fields. It trims Ethernet padding behind the IP packet. It
// returns None when the frame may go on: an ARP packet, or an IPv4 packet whose header
// is sound. The fields that do not apply are zero on every return.
func (f *Frame) Parse() Verdict {
	f.L2, f.L3, f.L4, f.Payload = f.start, 0, 0, 0
	f.EtherType, f.Proto, f.Fragment, f.Hash, f.Segments = 0, 0, false, 0, 1
	f.Src, f.Dst = netip.Addr{}, netip.Addr{}
	if f.Len() < EthernetLen {
		return DropFrameTruncated
	}
	f.L3 = f.L2 + EthernetLen
	f.EtherType = binary.BigEndian.Uint16(f.buf[f.L2+12:])
	switch f.EtherType {
	case EtherTypeIPv4:
		return f.parseIPv4()
	case EtherTypeARP:
		return None
	}
	return DropEtherType
}

func (f *Frame) parseIPv4() Verdict {
	ip := f.buf[f.L3:f.end]
	if len(ip) < ipv4MinLen {
		return DropFrameTruncated
	}
	headerLen := int(ip[0]&0xf) * 4
	totalLen := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[0]>>4 != 4 || headerLen < ipv4MinLen || totalLen < headerLen {
		return DropIPHeader
	}
	if totalLen > len(ip) {
		return DropFrameTruncated
	}
	if Sum(0).Add(ip[:headerLen]).Fold() != 0xffff {
		return DropIPChecksum
	}
	f.end = f.L3 + totalLen
	f.L4 = f.L3 + headerLen
	f.Proto = ip[9]
	f.Src = netip.AddrFrom4([4]byte(ip[12:16]))
	f.Dst = netip.AddrFrom4([4]byte(ip[16:20]))
	f.Fragment = binary.BigEndian.Uint16(ip[6:])&(ipv4MoreFragments|ipv4OffsetMask) != 0
	f.Payload = f.L4 + f.l4HeaderLen()
	f.Hash = f.flowHash(ip)
	return f.checkOffload()
}

// l4HeaderLen returns the length of the TCP or UDP header, and 0 where there is none
// whole: other protocols, later fragments, headers that are cut.
func (f *Frame) l4HeaderLen() int {
	l4 := f.buf[f.L4:f.end]
	if f.Fragment {
		return 0
	}
	switch {
	case f.Proto == ProtoUDP && len(l4) >= udpLen:
		return udpLen
	case f.Proto == ProtoTCP && len(l4) >= tcpMinLen:
		if n := int(l4[12]>>4) * 4; n >= tcpMinLen && n <= len(l4) {
			return n
		}
	}
	return 0
}

// flowHash is the same for both directions of a flow, so that both meet on one worker
// and one receive queue. Fragments have no ports to hash, and the first one must not
// part from the rest.
func (f *Frame) flowHash(ip []byte) uint32 {
	src := uint64(binary.BigEndian.Uint32(ip[12:]))
	dst := uint64(binary.BigEndian.Uint32(ip[16:]))
	if f.Payload > f.L4 {
		src = src<<16 | uint64(binary.BigEndian.Uint16(f.buf[f.L4:]))
		dst = dst<<16 | uint64(binary.BigEndian.Uint16(f.buf[f.L4+2:]))
	}
	h := mix(src) + mix(dst) + uint64(f.Proto)
	return uint32(mix(h))
}

// mix spreads every input bit over the output: the high and the low half of a
// product with an odd constant (2^64 divided by the golden ratio).
func mix(v uint64) uint64 {
	hi, lo := bits.Mul64(v+0x9e3779b97f4a7c15, 0x9e3779b97f4a7c15)
	return hi ^ lo
}
