package capture

import (
	"encoding/binary"
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Headers is what a filter looks at: the outermost headers of a packet. Offsets are into the packet.
type Headers struct {
	Length    int // of the whole packet, also of what was not captured
	Link      bool
	DstMAC    packet.MAC // valid iff Link
	SrcMAC    packet.MAC // valid iff Link
	EtherType uint16     // behind VLAN tags; 0 for none
	Src, Dst  netip.Addr // of IP, or of ARP's sender and target; else invalid
	IP        bool       // Proto and Network are valid
	Network   int        // offset of the IP header
	Proto     uint8      // behind IPv6 extension headers
	HasPorts  bool       // TCP or UDP, first fragment or none
	SrcPort   uint16     // valid iff HasPorts
	DstPort   uint16     // valid iff HasPorts
	UDP       int        // offset of the UDP payload; 0 for none
}

// Header lengths in bytes.
const (
	ipv4Len, ipv6Len, udpLen = 20, 40, 8
	vxlanLen                 = 8
	vlanLen                  = 4
)

// IPv6 extension headers that are walked (RFC 8200 section 4).
const (
	hopByHop           = 0
	routingHeader      = 43
	fragmentHeader     = 44
	authHeader         = 51
	destinationOptions = 60
)

// Dissect reads the headers at the start of b, which may be cut anywhere. It never panics and does not allocate. length is that of
// the whole packet.
func Dissect(b []byte, link LinkType, length int) (h Headers) {
	h.Length = length
	at := 0
	if link == Ethernet {
		if at = h.readLink(b); at == 0 {
			return h
		}
	} else if len(b) > 0 {
		h.EtherType = map4or6(b[0] >> 4)
	}
	switch h.EtherType {
	case packet.EtherTypeIPv4:
		h.readIPv4(b, at)
	case packet.EtherTypeIPv6:
		h.readIPv6(b, at)
	case packet.EtherTypeARP:
		h.readARP(b, at)
	}
	return h
}

func map4or6(version byte) uint16 {
	switch version {
	case 4:
		return packet.EtherTypeIPv4
	case 6:
		return packet.EtherTypeIPv6
	}
	return 0
}

// readLink returns the offset behind the Ethernet header and its VLAN tags, 0 when there is none.
func (h *Headers) readLink(b []byte) int {
	if len(b) < packet.EthernetLen {
		return 0
	}
	h.Link, h.DstMAC, h.SrcMAC = true, packet.MAC(b[:6]), packet.MAC(b[6:12])
	at := packet.EthernetLen
	for {
		h.EtherType = binary.BigEndian.Uint16(b[at-2:])
		if h.EtherType != 0x8100 && h.EtherType != 0x88a8 || len(b) < at+vlanLen {
			return at
		}
		at += vlanLen
	}
}

func (h *Headers) readARP(b []byte, at int) {
	if len(b) < at+28 || b[at+4] != 6 || b[at+5] != 4 {
		return
	}
	h.Src, h.Dst = netip.AddrFrom4([4]byte(b[at+14:])), netip.AddrFrom4([4]byte(b[at+24:]))
}

func (h *Headers) readIPv4(b []byte, at int) {
	if len(b) < at+ipv4Len || b[at]>>4 != 4 || b[at]&15 < 5 {
		return
	}
	h.IP, h.Network, h.Proto = true, at, b[at+9]
	h.Src, h.Dst = netip.AddrFrom4([4]byte(b[at+12:])), netip.AddrFrom4([4]byte(b[at+16:]))
	if binary.BigEndian.Uint16(b[at+6:])&0x1fff == 0 {
		h.readPorts(b, at+int(b[at]&15)*4)
	}
}

func (h *Headers) readIPv6(b []byte, at int) {
	if len(b) < at+ipv6Len || b[at]>>4 != 6 {
		return
	}
	h.IP, h.Network, h.Proto = true, at, b[at+6]
	h.Src, h.Dst = netip.AddrFrom16([16]byte(b[at+8:])), netip.AddrFrom16([16]byte(b[at+24:]))
	for at += ipv6Len; ; {
		length := 0
		switch h.Proto {
		case hopByHop, routingHeader, destinationOptions:
			if len(b) >= at+8 {
				length = (int(b[at+1]) + 1) * 8
			}
		case authHeader:
			if len(b) >= at+8 {
				length = (int(b[at+1]) + 2) * 4
			}
		case fragmentHeader:
			if len(b) >= at+8 {
				length = 8
			}
		default:
			h.readPorts(b, at)
			return
		}
		if length == 0 {
			return
		}
		later := h.Proto == fragmentHeader && binary.BigEndian.Uint16(b[at+2:])&^7 != 0
		h.Proto = b[at]
		if at += length; later {
			return
		}
	}
}

func (h *Headers) readPorts(b []byte, at int) {
	if h.Proto != packet.ProtoTCP && h.Proto != packet.ProtoUDP || len(b) < at+4 {
		return
	}
	h.HasPorts = true
	h.SrcPort, h.DstPort = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	if h.Proto == packet.ProtoUDP && len(b) >= at+udpLen {
		h.UDP = at + udpLen
	}
}

// A Tunnel says how packets lie in datagrams.
type Tunnel struct {
	Port  uint16
	VXLAN bool // a VXLAN header and an Ethernet frame; else a bare IP packet, as flannel's udp backend has it
}

// Inner returns the inner packet of a tunnel's datagram with these outer headers, nil when it is none.
func (t Tunnel) Inner(b []byte, outer *Headers) (inner []byte, link LinkType) {
	if outer.UDP == 0 || outer.SrcPort != t.Port && outer.DstPort != t.Port {
		return nil, 0
	}
	return t.Unwrap(b[outer.UDP:])
}

// Unwrap returns the inner packet of a datagram's payload, nil when it is too short for one.
func (t Tunnel) Unwrap(payload []byte) (inner []byte, link LinkType) {
	if !t.VXLAN {
		return payload, RawIP
	}
	if len(payload) < vxlanLen {
		return nil, 0
	}
	return payload[vxlanLen:], Ethernet
}
