package encap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// ErrTooBig says that a datagram is larger than the MTU of the device that it would leave by.
var ErrTooBig = errors.New("larger than the MTU of the link")

// A Probe is a socket for datagrams that nobody may fragment: they find out what the path to a peer carries. The kernel
// sends what its device takes, whatever it believes of the path (IP_PMTUDISC_PROBE, ip(7)). What comes back to its source
// port is dropped: the answer to a probe is inside the tunnel.
//
// A Probe is safe for concurrent use, but for Close.
type Probe struct {
	fd     int
	family *family
	source netip.AddrPort // valid iff the probe writes its outer headers itself
}

// OpenProbe returns a Probe that sends from the node's address and a port of its own. It takes the addresses that Open
// takes.
func OpenProbe(local netip.Addr) (*Probe, error) {
	local = local.Unmap()
	if err := checkLocal(local); err != nil {
		return nil, fmt.Errorf("probe from %s: %w", local, err)
	}
	p := &Probe{family: familyOf(local)}
	var err error
	if p.fd, err = openDeaf(local, unix.IP_PMTUDISC_PROBE); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	if p.family == &inet6 {
		if err := unix.SetsockoptInt(p.fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1); err != nil {
			unix.Close(p.fd)
			return nil, fmt.Errorf("probe: IPV6_DONTFRAG: %w", err)
		}
	}
	return p, nil
}

// OpenProbeFixed is OpenProbe for flannel's udp backend, where everything leaves from the tunnel's own port: an UDP socket of
// its own on that port would be given datagrams of the tunnel, so the outer headers are written here (raw(7), IPPROTO_RAW, which
// receives nothing). IPv4 only.
func OpenProbeFixed(local netip.AddrPort) (*Probe, error) {
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	if !local.Addr().Is4() || local.Port() == 0 {
		return nil, fmt.Errorf("probe from %s: an IPv4 address and a port are needed", local)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("probe: raw socket: %w (needs root or CAP_NET_RAW)", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("probe: IP_MTU_DISCOVER: %w", err)
	}
	return &Probe{fd: fd, family: &inet4, source: local}, nil
}

// probeTTL is Linux's default.
const probeTTL = 64

// Send sends an encapsulated frame to its Remote, as one datagram and one packet, and sets its Sent, Refused and SentBytes.
// The error is ErrTooBig when the local link does not carry it; what happens further on nobody tells.
func (p *Probe) Send(f *packet.Frame) error {
	f.Sent, f.Refused, f.SentBytes = 0, f.Segments, 0
	if f.VNet.GSOType != packet.GSONone {
		return fmt.Errorf("probe %s: a super-packet", f.Remote)
	}
	if familyOf(f.Remote.Addr()) != p.family {
		return fmt.Errorf("probe %s: of another address family than the socket", f.Remote)
	}
	switch errno := p.send(f); errno {
	case 0:
		f.Sent, f.Refused, f.SentBytes = f.Segments, 0, f.Len()
		return nil
	case unix.EMSGSIZE:
		return fmt.Errorf("probe %s: %d bytes: %w", f.Remote, f.Len(), ErrTooBig)
	default:
		return fmt.Errorf("probe %s: %w", f.Remote, errno)
	}
}

func (p *Probe) send(f *packet.Frame) syscall.Errno {
	var to sockaddr
	length := putSockaddr(&to, f.Remote)
	if !p.source.IsValid() {
		return sendto(p.fd, f.Bytes(), &to, length)
	}
	header, ok := f.Prepend(outerIPv4Len + outerUDPLen)
	if !ok {
		return unix.ENOBUFS
	}
	defer f.Strip(len(header))
	if f.Len() > 0xffff || f.Remote.Port() == 0 {
		return unix.EINVAL
	}
	putOuter4(header, f.Bytes(), p.source, f.Remote)
	return sendto(p.fd, f.Bytes(), &to, length)
}

// putOuter4 writes the IPv4 and UDP headers in front of a datagram, DF set. whole begins with those headers. The kernel fills
// in the IP checksum (raw(7)).
func putOuter4(header, whole []byte, from, to netip.AddrPort) {
	ip, udp := header[:outerIPv4Len], whole[outerIPv4Len:]
	clear(header)
	ip[0], ip[8], ip[9] = 0x45, probeTTL, packet.ProtoUDP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(whole)))
	binary.BigEndian.PutUint16(ip[6:], 0x4000) // DF
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	sum := packet.Sum(0).Add(ip[12:20]).AddUint16(packet.ProtoUDP).AddUint16(uint16(len(udp))).Add(udp).Checksum()
	if sum == 0 {
		sum = 0xffff // zero says "no checksum" (RFC 768)
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
}

// Close closes the socket.
func (p *Probe) Close() error {
	if err := unix.Close(p.fd); err != nil {
		return fmt.Errorf("close probe: %w", err)
	}
	return nil
}
