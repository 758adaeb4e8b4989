package encap

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// SourcePort returns the port that a frame leaves from. It may be called from any goroutine.
func (u *Underlay) SourcePort(f *packet.Frame) uint16 { return u.senderOf(f).port }

// senderOf is the socket that the frame's flow hashes to. Their number is a power of two.
func (u *Underlay) senderOf(f *packet.Frame) *sender {
	return &u.senders[f.Hash&uint32(len(u.senders)-1)]
}

// boundPort returns the local port of a socket.
func boundPort(fd int) (uint16, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("source port: %w", err)
	}
	return boundAddr(name).Port(), nil
}

func boundAddr(name unix.Sockaddr) netip.AddrPort {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
