package encap

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// socketBuffer is asked of the kernel for every socket, bytes: a burst of many
// super-datagrams while the worker is busy.
const socketBuffer = 16 << 20

// dropAll is a classic BPF program that accepts no byte of any packet.
var dropAll = unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}}

// openReceiver returns the UDP socket that tunnel datagrams arrive at. Several workers bind one each to
// the same address; the kernel spreads flows over them by the outer ports (SO_REUSEPORT). The first is bound
// without that, so that it fails when anybody else has the port, and becomes shareable after.
func openReceiver(local netip.AddrPort, first, shared bool) (fd int, gro bool, err error) {
	share := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
	prepare := share
	if first {
		prepare = func(int) error { return nil }
	}
	fd, err = openUDP(local, unix.IP_PMTUDISC_DONT, prepare)
	if err == nil && first && shared {
		if err = share(fd); err != nil {
			unix.Close(fd)
			err = fmt.Errorf("udp socket: SO_REUSEPORT: %w", err)
		}
	}
	if err != nil {
		return -1, false, explainTaken(err)
	}
	if gro, err = tuneReceiver(fd, familyOf(local.Addr())); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, gro, nil
}

// tuneReceiver makes a bound socket one to receive by.
func tuneReceiver(fd int, family *family) (gro bool, err error) {
	forceBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	if err := unix.SetsockoptInt(fd, family.level, family.receiveTOS, 1); err != nil {
		return false, fmt.Errorf("udp socket: IP_RECVTOS, IPV6_RECVTCLASS: %w", err)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil, nil
}

// explainTaken adds what may be behind a port in use.
func explainTaken(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w: another tunnel has this port (a kernel VXLAN device, flanneld, a second daemon, or a tulle holder for a daemon with --holder off); remove it or choose another Backend.Port", err)
	}
	return err
}

// openDeaf returns a socket with a source port of its own. What is sent back to it is dropped by a filter
// and not queued.
func openDeaf(local netip.Addr, discovery int) (int, error) {
	return openUDP(netip.AddrPortFrom(local, 0), discovery, deafen)
}

func deafen(fd int) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &dropAll)
}

// newSender makes a socket ready to send.
func newSender(fd int, family *family) sender {
	forceBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	return sender{queue: newQueue(fd, family), gso: err == nil}
}

// openUDP returns a bound socket. discovery is the mode of path MTU discovery: for what a tunnel carries
// IP_PMTUDISC_DONT, so that a smaller path MTU costs fragments and not packets (IPv4 leaves without DF, IPv6 is
// fragmented here).
func openUDP(local netip.AddrPort, discovery int, prepare func(fd int) error) (int, error) {
	family := familyOf(local.Addr())
	fd, err := unix.Socket(family.domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("udp socket for %s: %w", local, err)
	}
	err = prepare(fd)
	if err == nil {
		err = unix.SetsockoptInt(fd, family.level, family.mtuDiscover, discovery)
	}
	if err == nil && family == &inet6 {
		err = unix.SetsockoptInt(fd, family.level, unix.IPV6_V6ONLY, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("udp socket: set options: %w", err)
	}
	if err := unix.Bind(fd, bindAddr(local)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind udp %s: %w%s", local, err, bindHint(local, err))
	}
	return fd, nil
}

// bindHint says what may be behind a refusal that has a second meaning with IPv6.
func bindHint(local netip.AddrPort, err error) string {
	if local.Addr().Is6() && errors.Is(err, unix.EADDRNOTAVAIL) {
		return " (no address of this node, or the kernel still looks for duplicates of it)"
	}
	return ""
}

func bindAddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// forceBuffer sets a socket buffer's size; without CAP_NET_ADMIN the system's limit holds.
func forceBuffer(fd, force, plain int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, socketBuffer)
	}
}
