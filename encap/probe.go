package encap

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// ErrTooBig says that a datagram is larger than the MTU of the device that it would leave by.
var ErrTooBig = errors.New("larger than the MTU of the link")

// A Probe is a socket for datagrams that nobody may fragment: they find out what the path to a peer carries. The kernel
// sends what its device takes, whatever it believes of the path (IP_PMTUDISC_PROBE, ip(7)). The source port is one of
// its own, and what comes back to that is dropped: the answer to a probe is inside the tunnel.
//
// A Probe is safe for concurrent use, but for Close.
type Probe struct {
	fd     int
	family *family
}

// OpenProbe returns a Probe that sends from the node's address. It takes the addresses that Open takes.
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
	var to sockaddr
	length := putSockaddr(&to, f.Remote)
	switch errno := sendto(p.fd, f.Bytes(), &to, length); errno {
	case 0:
		f.Sent, f.Refused, f.SentBytes = f.Segments, 0, f.Len()
		return nil
	case unix.EMSGSIZE:
		return fmt.Errorf("probe %s: %d bytes: %w", f.Remote, f.Len(), ErrTooBig)
	default:
		return fmt.Errorf("probe %s: %w", f.Remote, errno)
	}
}

// Close closes the socket.
func (p *Probe) Close() error {
	if err := unix.Close(p.fd); err != nil {
		return fmt.Errorf("close probe: %w", err)
	}
	return nil
}
