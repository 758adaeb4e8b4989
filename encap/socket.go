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
	fd, err = openUDP(local, prepare)
	if err == nil && first && shared {
		if err = share(fd); err != nil {
			unix.Close(fd)
			err = fmt.Errorf("udp socket: SO_REUSEPORT: %w", err)
		}
	}
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w: another tunnel has this port (a kernel VXLAN device, flanneld or a second daemon); remove it or choose another Backend.Port", err)
		}
		return -1, false, err
	}
	forceBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1); err != nil {
		unix.Close(fd)
		return -1, false, fmt.Errorf("udp socket: IP_RECVTOS: %w", err)
	}
	gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	return fd, gro, nil
}

// openSender returns a socket with a source port of its own, and whether the kernel
// has UDP_SEGMENT. What is sent back to its port is dropped by a filter and not queued.
func openSender(local netip.Addr) (fd int, gso bool, err error) {
	fd, err = openUDP(netip.AddrPortFrom(local, 0), func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &dropAll)
	})
	if err != nil {
		return -1, false, err
	}
	forceBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	_, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	return fd, err == nil, nil
}

func openUDP(local netip.AddrPort, prepare func(fd int) error) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("udp socket: %w", err)
	}
	err = prepare(fd)
	if err == nil {
		// Outer packets are never marked DF: a smaller path MTU costs fragments, not packets.
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("udp socket: set options: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind udp %s: %w", local, err)
	}
	return fd, nil
}

// forceBuffer sets a socket buffer's size; without CAP_NET_ADMIN the system's limit holds.
func forceBuffer(fd, force, plain int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, socketBuffer)
	}
}
