package encap

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// senders is the number of outer source ports of one underlay: enough to spread flows
// over a receiver's queues.
const senders = 16

// An Underlay carries datagrams over UDP sockets, a dataplane.Port: one socket to receive,
// and several to send, so that the outer source port is a hash of the inner flow.
type Underlay struct {
	receiver int
	framing  Framing
	recv     receiveRing
	senders  [senders]sender
	out      sendArena

	gro       bool
	fallbacks atomic.Uint64
	gso       atomic.Bool
}

// Framing finds the end of a datagram that a codec made.
type Framing interface {
	// DatagramLen returns the length that the datagram's content gives it, 0 if unknown.
	DatagramLen(datagram []byte) int
}

// Open binds n underlays, one for each worker, to the node's address and the tunnel's port. It fails
// when another socket has the port.
func Open(local netip.AddrPort, framing Framing, n int) ([]*Underlay, error) {
	if !local.Addr().Is4() {
		return nil, fmt.Errorf("underlay %s: only IPv4 is supported", local)
	}
	var all []*Underlay
	for i := range n {
		u, err := openOne(local, framing, i == 0, n > 1)
		if err != nil {
			for _, opened := range all {
				opened.Close()
			}
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

func openOne(local netip.AddrPort, framing Framing, first, shared bool) (*Underlay, error) {
	u := &Underlay{receiver: -1, framing: framing}
	for i := range u.senders {
		u.senders[i].fd = -1
	}
	var err error
	if u.receiver, u.gro, err = openReceiver(local, first, shared); err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	gso := true
	for i := range u.senders {
		s := &u.senders[i]
		if s.fd, s.gso, err = openSender(local.Addr()); err != nil {
			u.Close()
			return nil, fmt.Errorf("underlay: %w", err)
		}
		gso = gso && s.gso
	}
	u.gso.Store(gso)
	u.recv.init()
	u.out.init()
	return u, nil
}

// FD returns the receiving socket, for polling.
func (u *Underlay) FD() int { return u.receiver }

// Close closes all sockets.
func (u *Underlay) Close() error {
	var errs []error
	if u.receiver >= 0 {
		errs = append(errs, unix.Close(u.receiver))
	}
	for i := range u.senders {
		if u.senders[i].fd >= 0 {
			errs = append(errs, unix.Close(u.senders[i].fd))
		}
	}
	return errors.Join(errs...)
}

// Offloads names what the sockets do in one call for many segments, as long as no device
// refused it. It may be called from any goroutine.
func (u *Underlay) Offloads() []string {
	names := []string{}
	if u.gso.Load() {
		names = append(names, "udp_segment")
	}
	if u.gro {
		names = append(names, "udp_gro")
	}
	return names
}

// Fallbacks returns how many sends of a super-packet, or of a part of one, were done segment by segment
// because a device or the kernel refused UDP_SEGMENT. It may be called from any goroutine.
func (u *Underlay) Fallbacks() uint64 { return u.fallbacks.Load() }

// QueueDepth returns the bytes that wait in the receive socket and the datagrams that the
// kernel dropped there because it was full (SO_MEMINFO). It may be called from any goroutine.
func (u *Underlay) QueueDepth() (bytes, drops uint64, err error) {
	info, err := socketMemory(u.receiver)
	if err != nil {
		return 0, 0, fmt.Errorf("underlay: SO_MEMINFO: %w", err)
	}
	return uint64(info[skMemInfoRmemAlloc]), uint64(info[skMemInfoDrops]), nil
}

// Write sends each frame to its Remote. Super-packets are cut here, into iovecs.
func (u *Underlay) Write(b *packet.Batch) error {
	for _, f := range b.Frames {
		f.Sent, f.Refused, f.SentBytes = 0, 0, 0
		u.queue(f)
	}
	u.flush()
	return nil
}
