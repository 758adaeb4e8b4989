package encap

import (
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
	udp := f.Bytes()[outerIPv4Len:]
	ip := outerIP{src: p.source.Addr(), dst: f.Remote.Addr().Unmap(), payload: len(udp), whole: true}
	ip.put(header)
	putUDP(udp, p.source.Port(), f.Remote.Port(), len(udp)-outerUDPLen, 0)
	ip.finishUDP(udp)
	return sendto(p.fd, f.Bytes(), &to, length)
}

// Close closes the socket.
func (p *Probe) Close() error {
	if err := unix.Close(p.fd); err != nil {
		return fmt.Errorf("close probe: %w", err)
	}
	return nil
}
