package encap

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Files returns the underlay's descriptors, for another process to adopt. They stay the underlay's.
func (u *Underlay) Files() []int {
	files := []int{u.receiver}
	for i := range u.senders {
		if fd := u.senders[i].fd; fd != u.receiver {
			files = append(files, fd)
		}
	}
	return files
}

// Adopt is Open with the sockets of another process, given as the Files of all underlays in their order. What waits in them is read by
// whoever reads next. The descriptors are the underlays' from then on, unless there is an error: they are not the sockets that
// Open would have made in this network namespace.
func Adopt(c Config, files []int) ([]*Underlay, error) {
	c.Local = netip.AddrPortFrom(c.Local.Addr().Unmap(), c.Local.Port())
	c.Workers = max(1, c.Workers)
	each := 1 + senders
	if c.FixedSource {
		each = 1
	}
	if len(files) != c.Workers*each {
		return nil, fmt.Errorf("adopt underlay %s: %d sockets, not %d", c.Local, len(files), c.Workers*each)
	}
	var all []*Underlay
	for ; len(files) > 0; files = files[each:] {
		u, err := adoptOne(&c, files[:each])
		if err != nil {
			return nil, fmt.Errorf("adopt underlay %s: %w", c.Local, err)
		}
		all = append(all, u)
	}
	c.openTunnels(all)
	return all, nil
}

func adoptOne(c *Config, files []int) (*Underlay, error) {
	if err := fitsUDP(files[0], c.Local); err != nil {
		return nil, err
	}
	u := newUnderlay(c)
	u.receiver = files[0]
	var err error
	if u.gro, err = tuneReceiver(u.receiver, u.family); err != nil {
		return nil, err
	}
	for _, fd := range files[1:] { // which are deaf since they were opened
		if err := fitsUDP(fd, netip.AddrPortFrom(c.Local.Addr(), 0)); err != nil {
			return nil, err
		}
		u.senders = append(u.senders, newSender(fd, u.family))
	}
	if c.FixedSource {
		u.senders = []sender{newSender(u.receiver, u.family)}
	}
	return u, u.finishSenders()
}

// Files returns the underlay's descriptors, for another process to adopt. They stay the underlay's.
func (u *PacketUnderlay) Files() []int {
	if u.guard >= 0 {
		return []int{u.guard, u.fd}
	}
	return []int{u.fd}
}

// AdoptPacket is OpenPacket with the sockets of another process, as Adopt is Open.
func AdoptPacket(c PacketConfig, files []int) ([]*PacketUnderlay, error) {
	c.Local = netip.AddrPortFrom(c.Local.Addr().Unmap(), c.Local.Port())
	c.Workers = max(1, c.Workers)
	if len(files) != c.Workers+1 {
		return nil, fmt.Errorf("adopt underlay %s: %d sockets, not %d", c.Local, len(files), c.Workers+1)
	}
	err := errors.Join(fitsUDP(files[0], c.Local), deafen(files[0]))
	if err != nil {
		return nil, fmt.Errorf("adopt underlay %s: %w", c.Local, err)
	}
	gro := unix.SetsockoptInt(files[0], unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	all := newPacketUnderlays(&c, files[0], gro)
	for i, u := range all {
		u.fd = files[1+i]
		if err := errors.Join(fitsSocket(u.fd, unix.AF_PACKET, unix.SOCK_RAW), tunePacket(u.fd, tunnelFilter(c.Local, i, c.Workers)), u.Rebind(c.Link)); err != nil {
			return nil, fmt.Errorf("adopt underlay %s: %w", c.Local, err)
		}
	}
	return all, nil
}

// fitsUDP says what keeps a descriptor from being a UDP socket of that address, of any port if it has none.
func fitsUDP(fd int, local netip.AddrPort) error {
	if err := fitsSocket(fd, familyOf(local.Addr()).domain, unix.SOCK_DGRAM); err != nil {
		return err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	bound := boundAddr(name)
	if bound.Addr() != local.Addr() || bound.Port() == 0 || local.Port() != 0 && bound.Port() != local.Port() {
		return fmt.Errorf("a socket bound to %s, not %s", bound, local)
	}
	return nil
}

// fitsSocket says what keeps a descriptor from being a socket of that kind in this network namespace.
func fitsSocket(fd, domain, kind int) error {
	for _, o := range []struct{ option, want int }{{unix.SO_DOMAIN, domain}, {unix.SO_TYPE, kind}} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.option); err != nil || got != o.want {
			return fmt.Errorf("no socket of domain %d and type %d: %d, %v", domain, kind, got, err)
		}
	}
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	here, err := unix.GetsockoptUint64(own, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return nil // Linux before 5.14 does not tell
	}
	if there, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil || there != here {
		return errors.New("a socket of another network namespace")
	}
	return nil
}
