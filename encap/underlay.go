package encap

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// senders is the number of outer source ports of one underlay: enough to spread flows
// over a receiver's queues. A power of two.
const senders = 16

// An Underlay carries datagrams of one address family over UDP sockets, a dataplane.Port: one socket to
// receive, and several to send, so that the outer source port is a hash of the inner flow.
type Underlay struct {
	receiver int
	family   *family
	framing  Framing
	recv     receiveRing
	senders  []sender // as many as senders says, or the receiver alone

	// tooLarge is the smallest datagram that the kernel refused as one of several because of a path's MTU: single ones of
	// this size are sent singly. A large number at first.
	tooLarge int

	tunnel    tunnelSender
	gro       bool
	fallbacks atomic.Uint64
	gso       atomic.Bool
}

// Framing finds the end of a datagram that a codec made.
type Framing interface {
	// DatagramLen returns the length that the datagram's content gives it, 0 if unknown.
	DatagramLen(datagram []byte) int
}

// Config is what the underlays of one node and one address family have in common.
type Config struct {
	Local   netip.AddrPort // the node's address, IPv4 or IPv6 but not link-local, and the tunnel's port
	Framing Framing
	Workers int // underlays to open; 0 stands for 1
	// FixedSource lets all datagrams leave from the tunnel's port, as flannel's udp backend sends them,
	// and not from a hash of the inner flow.
	FixedSource bool
	TunnelGSO   *TunnelGSO // nil: super-packets are cut by the underlay. For VXLAN alone.
}

// Open binds the underlays, one for each worker, to the node's address and the tunnel's port. It fails
// when another socket has the port. A node with two address families opens both on one port.
func Open(c Config) ([]*Underlay, error) {
	c.Local = netip.AddrPortFrom(c.Local.Addr().Unmap(), c.Local.Port())
	c.Workers = max(1, c.Workers)
	if err := checkLocal(c.Local.Addr()); err != nil {
		return nil, fmt.Errorf("underlay %s: %w", c.Local, err)
	}
	var all []*Underlay
	for i := range c.Workers {
		u, err := openOne(&c, i == 0)
		if err != nil {
			for _, opened := range all {
				opened.Close()
			}
			return nil, err
		}
		all = append(all, u)
	}
	c.openTunnels(all)
	return all, nil
}

func (c *Config) openTunnels(all []*Underlay) {
	var senders []*tunnelSender
	for _, u := range all {
		senders = append(senders, &u.tunnel)
	}
	c.TunnelGSO.open(c.Local.Addr(), senders)
}

// checkLocal refuses what no peer could answer to: on a link-local address it would take a zone, which only means
// something on this node.
func checkLocal(local netip.Addr) error {
	switch {
	case !local.IsValid():
		return errors.New("no address")
	case local.Is6() && (local.IsLinkLocalUnicast() || local.Zone() != ""):
		return errors.New("link-local addresses don't carry a tunnel: choose a global or unique local IPv6 address of the interface")
	}
	return nil
}

func openOne(c *Config, first bool) (*Underlay, error) {
	u := newUnderlay(c)
	var err error
	if u.receiver, u.gro, err = openReceiver(c.Local, first, c.Workers > 1); err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	if err := u.openSenders(c); err != nil {
		u.Close()
		return nil, fmt.Errorf("underlay: %w", err)
	}
	return u, nil
}

func newUnderlay(c *Config) *Underlay {
	u := &Underlay{family: familyOf(c.Local.Addr()), framing: c.Framing, tooLarge: math.MaxInt}
	u.recv.init(0)
	return u
}

func (u *Underlay) openSenders(c *Config) error {
	if c.FixedSource {
		u.senders = []sender{newSender(u.receiver, u.family)}
	}
	for len(u.senders) < senders && !c.FixedSource {
		fd, err := openDeaf(c.Local.Addr(), unix.IP_PMTUDISC_DONT)
		if err != nil {
			return err
		}
		u.senders = append(u.senders, newSender(fd, u.family))
	}
	return u.finishSenders()
}

// finishSenders finds out what all senders can do, and their ports.
func (u *Underlay) finishSenders() error {
	gso := true
	for i := range u.senders {
		s := &u.senders[i]
		gso = gso && s.gso
		var err error
		if s.port, err = boundPort(s.fd); err != nil {
			return err
		}
	}
	u.gso.Store(gso)
	return nil
}

// FD returns the receiving socket, for polling.
func (u *Underlay) FD() int { return u.receiver }

// Close closes all sockets.
func (u *Underlay) Close() error {
	errs := []error{unix.Close(u.receiver)}
	for i := range u.senders {
		if fd := u.senders[i].fd; fd != u.receiver {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// Offloads names what the sockets do in one call for many segments, as long as no device
// refused it. It may be called from any goroutine.
func (u *Underlay) Offloads() []string {
	names := u.tunnel.offloads()
	if u.gso.Load() {
		names = append(names, "udp_segment")
	}
	if u.gro {
		names = append(names, "udp_gro")
	}
	return names
}

// Fallbacks returns how many sends of a super-packet, or of a part of one, were done segment by segment
// because a device or the kernel refused it whole. It may be called from any goroutine.
func (u *Underlay) Fallbacks() uint64 { return u.fallbacks.Load() }

// QueueDepth returns the bytes that wait in the receive socket and the datagrams that the
// kernel dropped there because it was full (SO_MEMINFO), of which several count as one where the kernel has them
// joined. It may be called from any goroutine.
func (u *Underlay) QueueDepth() (bytes, drops uint64, err error) { return queueDepth(u.receiver) }

func queueDepth(fd int) (bytes, drops uint64, err error) {
	info, err := socketMemory(fd)
	if err != nil {
		return 0, 0, fmt.Errorf("underlay: SO_MEMINFO: %w", err)
	}
	return uint64(info[skMemInfoRmemAlloc]), uint64(info[skMemInfoDrops]), nil
}
