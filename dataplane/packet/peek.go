package packet

import (
	"encoding/binary"
	"net/netip"
)

// A Peek is what a flow is known by, of a frame that nobody has parsed.
type Peek struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8
}

// Peek fills p from a frame whose IP header is at an offset, if that is of the kind that most are: TCP or UDP behind an IP header
// without options or extension headers, no fragment. It only looks where things should be: what Parse says of the frame counts, and of a
// sound one that is the same.
func (f *Frame) Peek(at int, p *Peek) bool {
	b := f.Bytes()
	if len(b) < at+ipv4MinLen+udpLen {
		return false
	}
	b = b[at:]
	l4 := ipv4MinLen
	switch {
	case b[0] == 4<<4|ipv4MinLen/4:
		if binary.BigEndian.Uint16(b[6:])&(ipv4MoreFragments|ipv4OffsetMask) != 0 {
			return false
		}
		p.Proto = b[9]
		p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case b[0]>>4 == 6 && len(b) >= ipv6Len+udpLen:
		l4 = ipv6Len
		p.Proto = b[6]
		p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return false
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b[l4:]), binary.BigEndian.Uint16(b[l4+2:])
	return p.Proto == ProtoTCP || p.Proto == ProtoUDP
}
