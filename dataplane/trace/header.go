package trace

import (
	"encoding/binary"
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A Link says what a packet's bytes begin with.
type Link uint8

const (
	Ethernet Link = iota
	VXLAN         // a VXLAN header, then Ethernet
	BareIP
)

// A Header is what Decode found in a packet's bytes. Fields that the bytes do not reach to are zero.
type Header struct {
	VNI            uint32 // valid iff the bytes begin with VXLAN
	VXLANFlags     uint8  // likewise
	DstMAC, SrcMAC packet.MAC
	EtherType      uint16 // 0 for bytes too short to know
	Src, Dst       netip.Addr
	Proto          uint8  // behind IPv6 extension headers
	SrcPort        uint16 // of ICMP echo messages: the identifier, as DstPort
	DstPort        uint16
	TTL            uint8
	Len            int    // of the IP packet as its header claims, bytes; of a super-packet the whole
	ID             uint32 // IPv4 identification, or that of an IPv6 fragment
	Offset         int    // of a fragment, bytes
	ICMPType       uint8  // valid iff Proto is ICMP's and Offset is 0
	ICMPCode       uint8
	TCPFlags       uint8  // valid iff Proto is TCP's and Offset is 0
	Seq            uint32 // likewise; of ICMP echo messages the sequence number
	Payload        int    // bytes of TCP payload
	Sum            uint16 // checksum of TCP, UDP or ICMP as it stands there
}

const (
	ipv4Len, ipv6Len = 20, 40
	vxlanLen         = 8
	maxExtensions    = 8
)

// Decode reads the headers of a packet, which may be cut, malformed or forged: it takes what it finds and judges nothing.
func Decode(b []byte, link Link) (h Header) {
	if link == VXLAN {
		if len(b) < vxlanLen {
			return h
		}
		h.VXLANFlags, h.VNI = b[0], binary.BigEndian.Uint32(b[4:])>>8
		b = b[vxlanLen:]
	}
	if link != BareIP {
		if len(b) < packet.EthernetLen {
			return h
		}
		h.DstMAC, h.SrcMAC, h.EtherType = packet.MAC(b[:6]), packet.MAC(b[6:12]), binary.BigEndian.Uint16(b[12:])
		b = b[packet.EthernetLen:]
	} else if len(b) > 0 {
		h.EtherType = map4or6(b[0] >> 4)
	}
	switch {
	case h.EtherType == packet.EtherTypeIPv4 && len(b) >= ipv4Len:
		h.ipv4(b)
	case h.EtherType == packet.EtherTypeIPv6 && len(b) >= ipv6Len:
		h.ipv6(b)
	}
	return h
}

func map4or6(version uint8) uint16 {
	switch version {
	case 4:
		return packet.EtherTypeIPv4
	case 6:
		return packet.EtherTypeIPv6
	}
	return 0
}

func (h *Header) ipv4(b []byte) {
	h.Src, h.Dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	h.Proto, h.TTL, h.Len = b[9], b[8], int(binary.BigEndian.Uint16(b[2:]))
	h.ID, h.Offset = uint32(binary.BigEndian.Uint16(b[4:])), int(binary.BigEndian.Uint16(b[6:])&0x1fff)*8
	if header := int(b[0]&15) * 4; header >= ipv4Len && header <= len(b) {
		h.l4(b[header:], h.Len-header)
	}
}

func (h *Header) ipv6(b []byte) {
	h.Src, h.Dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	h.TTL, h.Len = b[7], ipv6Len+int(binary.BigEndian.Uint16(b[4:]))
	next, left := b[6], h.Len-ipv6Len
	b = b[ipv6Len:]
	for range maxExtensions {
		length, ok := h.extension(next, b)
		if !ok || length > len(b) {
			break
		}
		next, b, left = b[0], b[length:], left-length
	}
	h.Proto = next
	h.l4(b, left)
}

// extension returns the length of an IPv6 extension header (RFC 8200 section 4), and false for everything else.
func (h *Header) extension(kind uint8, b []byte) (length int, ok bool) {
	const hopByHop, routing, fragment, destination = 0, 43, 44, 60
	switch {
	case len(b) < 8:
		return 0, false
	case kind == fragment:
		h.ID, h.Offset = binary.BigEndian.Uint32(b[4:]), int(binary.BigEndian.Uint16(b[2:])&^7)
		return 8, true
	case kind == hopByHop || kind == routing || kind == destination:
		return 8 + int(b[1])*8, true
	}
	return 0, false
}

// l4 reads the header behind IP; length is that of everything there, as IP claims.
func (h *Header) l4(b []byte, length int) {
	if h.Offset > 0 || len(b) < 8 {
		return
	}
	switch h.Proto {
	case packet.ProtoTCP:
		h.SrcPort, h.DstPort, h.Seq = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:])
		if len(b) >= 20 {
			h.TCPFlags, h.Sum, h.Payload = b[13], binary.BigEndian.Uint16(b[16:]), max(0, length-int(b[12]>>4)*4)
		}
	case packet.ProtoUDP:
		h.SrcPort, h.DstPort, h.Sum = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(b[6:])
	case packet.ProtoICMP, packet.ProtoICMPv6:
		h.ICMPType, h.ICMPCode, h.Sum = b[0], b[1], binary.BigEndian.Uint16(b[2:])
		if h.IsEcho() {
			h.SrcPort, h.Seq = binary.BigEndian.Uint16(b[4:]), uint32(binary.BigEndian.Uint16(b[6:]))
			h.DstPort = h.SrcPort
		}
	}
}

// IsEcho says whether it is an ICMP or ICMPv6 echo request or reply.
func (h *Header) IsEcho() bool {
	switch h.Proto {
	case packet.ProtoICMP:
		return h.Offset == 0 && (h.ICMPType == 0 || h.ICMPType == 8)
	case packet.ProtoICMPv6:
		return h.Offset == 0 && (h.ICMPType == 128 || h.ICMPType == 129)
	}
	return false
}
