package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/netns"
)

// Direct is two namespaces that nothing but a veth joins: what pods have between them when no network is in the way. They have no
// names, and are gone with the process at the latest.
type Direct struct{ fds [2]int }

// directLink is the veth's end on one side.
func directLink(side int) string { return fmt.Sprintf("tulle-d%d", side) }

// DirectAddr is the address of side 0 or 1, of FamilyV4 or FamilyV6.
func DirectAddr(side int, familyName string) netip.Addr {
	return directPrefix(side, familiesOf(familyName)[0]).Addr()
}

func directPrefix(side int, f family) netip.Prefix {
	return segment{third: 79, group: 0x79}.prefix(f, side+1)
}

// NewDirect makes both with addresses of both families. mtu is in bytes.
func NewDirect(mtu int) (*Direct, error) {
	d := &Direct{fds: [2]int{-1, -1}}
	err := d.build(mtu)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("namespaces joined directly: %w", err), d.Close())
	}
	return d, nil
}

func (d *Direct) build(mtu int) error {
	for side := range d.fds {
		var err error
		if d.fds[side], err = anonymousNamespace(); err != nil {
			return err
		}
		if err := d.In(side, func() error { return prepare([]family{ipv4, ipv6}) }); err != nil {
			return err
		}
	}
	if err := d.In(0, func() error { return d.addVeth(mtu) }); err != nil {
		return err
	}
	var links [2]netlink.Link
	for side := range d.fds {
		err := d.In(side, func() (err error) {
			links[side], err = setUpLink(directLink(side), directPrefix(side, ipv4), directPrefix(side, ipv6))
			return err
		})
		if err != nil {
			return err
		}
	}
	return d.introduce(links)
}

// introduce tells each side the other's MAC for good, as pods and their nodes know each other.
func (d *Direct) introduce(links [2]netlink.Link) error {
	for side, link := range links {
		err := d.In(side, func() error {
			mac := links[1-side].Attrs().HardwareAddr.String()
			return errors.Join(addNeighbour(link, directPrefix(1-side, ipv4).Addr(), mac, 0),
				addNeighbour(link, directPrefix(1-side, ipv6).Addr(), mac, 0))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Direct) addVeth(mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = directLink(0), mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerNamespace = directLink(1), uint32(mtu), netlink.NsFd(d.fds[1])
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", directLink(0), err)
	}
	return nil
}

// anonymousNamespace is one that only the descriptor holds.
func anonymousNamespace() (fd int, err error) {
	err = netns.OnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace: %w", err)
		}
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// In runs f in the namespace of side 0 or 1, as In does.
func (d *Direct) In(side int, f func() error) error {
	return netns.OnThread(func() error {
		if err := unix.Setns(d.fds[side], unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// Close lets go of the namespaces: they end with the last socket in them.
func (d *Direct) Close() error {
	var failed error
	for _, fd := range d.fds {
		if fd >= 0 {
			failed = errors.Join(failed, unix.Close(fd))
		}
	}
	d.fds = [2]int{-1, -1}
	return failed
}
