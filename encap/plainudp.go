package encap

import (
	"encoding/binary"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// PlainUDP is the codec of flannel's udp backend: a datagram's payload is an IPv4 packet, from its first header byte
// to its last, and nothing else. There is no Ethernet header and no message of any other kind.
type PlainUDP struct{}

// Overhead returns 28, or 48 with an outer IPv6 header: outer IP and UDP.
func (PlainUDP) Overhead(outerIPv6 bool) int { return outerIPLen(outerIPv6) + outerUDPLen }

// InnerAt returns 0: the IP header is all that there is.
func (PlainUDP) InnerAt() int { return 0 }

// Encap strips the Ethernet header, if the frame's bytes begin with one.
func (PlainUDP) Encap(f *packet.Frame) packet.Verdict {
	if f.EtherType != packet.EtherTypeIPv4 {
		return packet.DropEtherType
	}
	if !f.Strip(f.L3 - f.Start()) {
		return packet.DropFrameTruncated
	}
	return packet.None
}

// Decap makes the frame Detached. The IP header is for Parse to check.
func (PlainUDP) Decap(f *packet.Frame) packet.Verdict {
	b := f.Bytes()
	if len(b) < ipv4MinLen {
		return packet.DropFrameTruncated
	}
	if b[0]>>4 != 4 {
		return packet.DropIPHeader
	}
	f.Detached = true
	return packet.None
}

// DatagramLen returns the length of the IPv4 packet that the datagram begins with; 0 when it begins with none.
func (PlainUDP) DatagramLen(b []byte) int {
	if len(b) < 4 || b[0]>>4 != 4 {
		return 0
	}
	return int(binary.BigEndian.Uint16(b[2:]))
}
