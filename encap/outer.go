package encap

import (
	"encoding/binary"
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/packet"
)

const (
	outerTTL = 64 // as the kernel's default, RFC 1700

	ipv4DontFragment  = 0x4000
	ipv4MoreFragments = 0x2000
	protoFragment     = 44
	fragmentLen       = 8 // of the IPv6 fragment header

	// maxOuter is the longest run of headers in front of a datagram that is sent: virtio_net_hdr, Ethernet, IPv6 and UDP,
	// or a fragment header in place of UDP's.
	maxOuter = packet.VNetLen + packet.EthernetLen + outerIPv6Len + max(outerUDPLen, fragmentLen)

	udpChecksumOffset = 6
)

// An outerIP is the IP header of an outer packet.
type outerIP struct {
	src, dst netip.Addr
	tos      uint8
	label    uint32 // flow label, 20 bits; nothing in IPv4
	payload  int    // bytes behind the headers that put writes
	id       uint32 // IPv4: 16 bits of it; IPv6: of a fragment only

	// whole sets DF, on probes alone: whoever has to may fragment the rest, as with a UDP socket of IP_PMTUDISC_DONT.
	whole          bool
	fragment, more bool // more is valid iff fragment
	offset         int  // valid iff fragment, a multiple of 8 bytes
}

// len returns the length of what put writes.
func (h *outerIP) len() int {
	switch {
	case h.dst.Is4():
		return outerIPv4Len
	case h.fragment:
		return outerIPv6Len + fragmentLen
	}
	return outerIPv6Len
}

// put writes the IP header, with IPv6 the fragment header too.
func (h *outerIP) put(b []byte) {
	if h.dst.Is4() {
		h.put4(b)
		return
	}
	h.put6(b)
}

func (h *outerIP) put4(b []byte) {
	b[0], b[1] = 0x45, h.tos
	binary.BigEndian.PutUint16(b[2:], uint16(outerIPv4Len+h.payload))
	binary.BigEndian.PutUint16(b[4:], uint16(h.id))
	word := h.fragmentWord(ipv4MoreFragments, 8)
	if h.whole {
		word |= ipv4DontFragment
	}
	binary.BigEndian.PutUint16(b[6:], word)
	b[8], b[9], b[10], b[11] = outerTTL, packet.ProtoUDP, 0, 0
	src, dst := h.src.As4(), h.dst.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], packet.Sum(0).Add(b[:outerIPv4Len]).Checksum())
}

func (h *outerIP) put6(b []byte) {
	binary.BigEndian.PutUint32(b, 6<<28|uint32(h.tos)<<20|h.label)
	binary.BigEndian.PutUint16(b[4:], uint16(h.len()-outerIPv6Len+h.payload))
	b[6], b[7] = packet.ProtoUDP, outerTTL
	src, dst := h.src.As16(), h.dst.As16()
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	if !h.fragment {
		return
	}
	b[6] = protoFragment
	f := b[outerIPv6Len:]
	f[0], f[1] = packet.ProtoUDP, 0
	binary.BigEndian.PutUint16(f[2:], h.fragmentWord(1, 1))
	binary.BigEndian.PutUint32(f[4:], h.id)
}

// fragmentWord is the field with the offset, in units of bytes, and the flag for more fragments.
func (h *outerIP) fragmentWord(more uint16, unit int) uint16 {
	if !h.fragment {
		return 0
	}
	word := uint16(h.offset / unit)
	if h.more {
		word |= more
	}
	return word
}

// pseudoHeader is the sum of the UDP pseudo-header for a UDP header and data of length bytes.
func (h *outerIP) pseudoHeader(length int) packet.Sum {
	var sum packet.Sum
	if h.dst.Is4() {
		src, dst := h.src.As4(), h.dst.As4()
		sum = sum.Add(src[:]).Add(dst[:])
	} else {
		src, dst := h.src.As16(), h.dst.As16()
		sum = sum.Add(src[:]).Add(dst[:])
	}
	return sum.AddUint16(packet.ProtoUDP).AddUint16(uint16(length))
}

// finishUDP writes the checksum of a UDP packet, whose field is zero.
func (h *outerIP) finishUDP(udp []byte) {
	sum := h.pseudoHeader(len(udp)).Add(udp).Checksum()
	if sum == 0 {
		sum = 0xffff // zero says "no checksum" (RFC 768)
	}
	binary.BigEndian.PutUint16(udp[udpChecksumOffset:], sum)
}

// putEthernet writes the Ethernet header for a next hop.
func putEthernet(b []byte, hop *NextHop, etherType uint16) {
	copy(b, hop.MAC[:])
	copy(b[6:], hop.Source[:])
	binary.BigEndian.PutUint16(b[12:], etherType)
}

// putUDP writes the UDP header of a datagram with so many bytes of data.
func putUDP(b []byte, src, dst uint16, data int, checksum uint16) {
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(outerUDPLen+data))
	binary.BigEndian.PutUint16(b[udpChecksumOffset:], checksum)
}
