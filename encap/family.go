package encap

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A family is what differs between sockets of the two address families. The modes of path MTU discovery have
// the same numbers in both.
type family struct {
	domain, level                int
	receiveTOS, tos, mtuDiscover int // socket options, tos also a control message

	etherType uint16
	ipLen     int // of the outer IP header, bytes

	// maxPayload is the largest UDP payload, of all segments of one send together.
	maxPayload int
}

var (
	inet4 = family{
		domain: unix.AF_INET, level: unix.IPPROTO_IP,
		receiveTOS: unix.IP_RECVTOS, tos: unix.IP_TOS, mtuDiscover: unix.IP_MTU_DISCOVER,
		etherType: packet.EtherTypeIPv4, ipLen: outerIPv4Len,
		maxPayload: 65535 - outerIPv4Len - outerUDPLen,
	}
	inet6 = family{
		domain: unix.AF_INET6, level: unix.IPPROTO_IPV6,
		receiveTOS: unix.IPV6_RECVTCLASS, tos: unix.IPV6_TCLASS, mtuDiscover: unix.IPV6_MTU_DISCOVER,
		etherType: packet.EtherTypeIPv6, ipLen: outerIPv6Len,
		maxPayload: 65535 - outerUDPLen, // the length field does not count the IPv6 header
	}
)

// familyOf returns nil for the zero address.
func familyOf(a netip.Addr) *family {
	switch {
	case a.Is4(), a.Is4In6():
		return &inet4
	case a.Is6():
		return &inet6
	}
	return nil
}

// A sockaddr has room for an address of either family.
type sockaddr = unix.RawSockaddrInet6

// putSockaddr writes an address and returns its length. Zones are left out.
func putSockaddr(sa *sockaddr, a netip.AddrPort) (length uint32) {
	length = unix.SizeofSockaddrInet6
	if ip := a.Addr(); ip.Is4() || ip.Is4In6() {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(sa)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: ip.As4()}
		length = unix.SizeofSockaddrInet4
	} else {
		*sa = sockaddr{Family: unix.AF_INET6, Addr: ip.As16()}
	}
	binary.BigEndian.PutUint16(portOf(sa)[:], a.Port())
	return length
}

func addrPort(sa *sockaddr) netip.AddrPort {
	ip := netip.AddrFrom16(sa.Addr)
	if sa.Family == unix.AF_INET {
		ip = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr)
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(portOf(sa)[:]))
}

// portOf is at the same place in both families.
func portOf(sa *sockaddr) *[2]byte { return (*[2]byte)(unsafe.Pointer(&sa.Port)) }
