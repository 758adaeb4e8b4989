package capture

import (
	"encoding/binary"
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// synthesize writes the outer IP and UDP headers that belong in front of a frame which is encapsulated, or still is, as far as the engine
// knows them: without UDP checksum, IP identification or fragments. Those of a super-packet are of all its segments at once; a
// length field that cannot hold that is 0, as with TCP segmentation offload. It returns nil without an address to write.
func (p *producer) synthesize(f *packet.Frame, outbound bool) []byte {
	remote := f.Remote
	local, ok := p.session.local(remote.Addr())
	if !ok {
		return nil
	}
	c := &p.session.config
	src, dst := netip.AddrPortFrom(local, 0), remote
	if outbound && c.Source != nil {
		src = netip.AddrPortFrom(local, c.Source(p.worker, f))
	}
	if !outbound {
		src, dst = remote, netip.AddrPortFrom(local, c.Tunnel.Port)
	}
	b := p.outer[:0]
	if local.Is4() {
		b = appendIPv4(b, src.Addr(), dst.Addr(), f.OuterTOS, f.Len()+f.MoreLen())
	} else {
		b = appendIPv6(b, src.Addr(), dst.Addr(), f.OuterTOS, f.Len()+f.MoreLen())
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, length16(udpLen+f.Len()+f.MoreLen()))
	return binary.BigEndian.AppendUint16(b, 0)
}

// local is this node's address of a family.
func (s *Session) local(remote netip.Addr) (netip.Addr, bool) {
	for _, a := range s.config.Local {
		if a.IsValid() && remote.IsValid() && a.Is4() == remote.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

const outerTTL = 64

func appendIPv4(b []byte, src, dst netip.Addr, tos uint8, payload int) []byte {
	start := len(b)
	b = append(b, 0x45, tos)
	b = binary.BigEndian.AppendUint16(b, length16(ipv4Len+udpLen+payload))
	b = append(b, 0, 0, 0, 0, outerTTL, packet.ProtoUDP, 0, 0)
	s, d := src.As4(), dst.As4()
	b = append(append(b, s[:]...), d[:]...)
	binary.BigEndian.PutUint16(b[start+10:], packet.Sum(0).Add(b[start:]).Checksum())
	return b
}

func appendIPv6(b []byte, src, dst netip.Addr, class uint8, payload int) []byte {
	b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(class)<<20)
	b = binary.BigEndian.AppendUint16(b, length16(udpLen+payload))
	b = append(b, packet.ProtoUDP, outerTTL)
	s, d := src.As16(), dst.As16()
	return append(append(b, s[:]...), d[:]...)
}

func length16(n int) uint16 {
	if n > 0xffff {
		return 0
	}
	return uint16(n)
}
