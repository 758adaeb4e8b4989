package tap

import (
	"encoding/binary"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// restoreUDPChecksum mends what wireguard/tun leaves of a UDP checksum that comes out as zero: it writes zero, which says "no
// checksum" (RFC 768) and which IPv6 does not allow (RFC 8200 section 8.1). A datagram that was sent without one, and fits
// zero by chance, gets a right one. data begins with an Ethernet header.
func restoreUDPChecksum(data []byte) {
	const udpLen, field = 8, 6
	addresses, l4 := udpOf(data[packet.EthernetLen:])
	if len(l4) < udpLen || l4[field] != 0 || l4[field+1] != 0 {
		return
	}
	sum := packet.Sum(0).Add(addresses).AddUint16(packet.ProtoUDP).AddUint16(uint16(len(l4))).Add(l4)
	if sum.Fold() == 0xffff {
		l4[field], l4[field+1] = 0xff, 0xff
	}
}

// udpOf returns the addresses and the UDP datagram of an IP packet; nothing for other packets, fragments, and what is behind IPv6
// extension headers.
func udpOf(ip []byte) (addresses, udp []byte) {
	const v4Len, v6Len, moreOrOffset = 20, 40, 0x3fff
	switch {
	case len(ip) >= v4Len && ip[0]>>4 == 4 && ip[9] == packet.ProtoUDP && binary.BigEndian.Uint16(ip[6:])&moreOrOffset == 0:
		if n := int(ip[0]&0xf) * 4; n >= v4Len && n <= len(ip) {
			return ip[12:20], ip[n:]
		}
	case len(ip) >= v6Len && ip[0]>>4 == 6 && ip[6] == packet.ProtoUDP:
		return ip[8:40], ip[v6Len:]
	}
	return nil, nil
}
