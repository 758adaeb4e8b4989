package packet

import (
	"encoding/binary"
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
// frame's offsets and flow fields; a Detached frame starts with the IP header. It trims
// Ethernet padding behind the IP packet. It returns None when the frame may go on: an ARP
// packet, or an IP packet whose headers are sound. The fields that do not apply are zero on
// every return. The verdicts, for the first that is wrong in a packet's order:
//
//   - DropFrameTruncated: the frame ends inside the Ethernet or fixed IP header, or before
//     the IP packet's length
//   - DropIPHeader: another version, an impossible length (an IPv6 payload length of 0 with a
//     next header: a jumbogram, RFC 2675), an IPv4 fragment that its datagram cannot hold
//   - DropIPChecksum: that of the IPv4 header
//   - DropExtension: see walkExtensions
//   - DropFragmentTiny: see checkFragment; the flow fields are set
//   - DropOffload: VNet contradicts the headers; the flow fields are set
func (f *Frame) Parse() Verdict {
	f.L2, f.L3, f.L4, f.Payload = f.start, 0, 0, 0
	f.EtherType, f.Proto, f.Fragment, f.Hash, f.Segments = 0, 0, false, 0, 1
	f.FragmentID, f.FragmentOffset, f.MoreFragments, f.fragmentAt = 0, 0, false, 0
	v := None
	switch {
	case f.Detached:
		v = f.parseDetached()
	case f.Len() < EthernetLen:
		v = DropFrameTruncated
	default:
		f.L3 = f.L2 + EthernetLen
		f.EtherType = binary.BigEndian.Uint16(f.buf[f.L2+12:])
	}
	if v == None {
		v = f.parseNetwork()
	}
	if f.L4 == 0 { // no IP header: addresses are written once
		f.Src, f.Dst = netip.Addr{}, netip.Addr{}
	}
	return v
}

func (f *Frame) parseNetwork() Verdict {
	switch f.EtherType {
	case EtherTypeIPv4:
		return f.parseIPv4()
	case EtherTypeIPv6:
		return f.parseIPv6()
	case EtherTypeARP:
		return None
	}
	return DropEtherType
}

// parseDetached takes the EtherType from the IP version.
func (f *Frame) parseDetached() Verdict {
	f.L2, f.L3 = f.start-EthernetLen, f.start
	if f.Len() == 0 {
		return DropFrameTruncated
	}
	switch f.buf[f.L3] >> 4 {
	case 4:
		f.EtherType = EtherTypeIPv4
	case 6:
		f.EtherType = EtherTypeIPv6
	default:
		return DropIPHeader
	}
	binary.BigEndian.PutUint16(f.link[12:], f.EtherType)
	return None
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
	if word := binary.BigEndian.Uint16(ip[6:]); word&(ipv4MoreFragments|ipv4OffsetMask) != 0 {
		more, offset := word&ipv4MoreFragments != 0, int(word&ipv4OffsetMask)*8
		if !fragmentFits(headerLen, offset, totalLen-headerLen, more) {
			return DropIPHeader
		}
		f.setFragment(uint32(binary.BigEndian.Uint16(ip[4:])), offset, more, headerLen)
	}
	f.end = f.L3 + totalLen
	f.L4 = f.L3 + headerLen
	f.Proto = ip[9]
	f.Src = netip.AddrFrom4([4]byte(ip[12:16]))
	f.Dst = netip.AddrFrom4([4]byte(ip[16:20]))
	return f.parseL4(uint64(binary.BigEndian.Uint32(ip[12:])), uint64(binary.BigEndian.Uint32(ip[16:])))
}

// parseL4 sets what depends on the L4 header, behind either IP header; src and dst are the addresses for flowHash.
func (f *Frame) parseL4(src, dst uint64) Verdict {
	f.Payload = f.L4 + f.l4HeaderLen()
	f.Hash = f.flowHash(src, dst)
	if f.Fragment {
		if v := f.checkFragment(); v != None {
			return v
		}
	}
	return f.checkOffload()
}

// l4HeaderLen returns the length of the TCP or UDP header, and 0 where there is none
// whole: other protocols, fragments, headers that are cut.
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
