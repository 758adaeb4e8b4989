package attach

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
)

// Check holds both ends against what Add made. What differs is an ErrDamaged.
func (v Veth) Check() error {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	node, err := netlink.LinkByName(v.Link)
	if err != nil {
		return fmt.Errorf("link %s: %w: %w", v.Link, ErrDamaged, err)
	}
	if err := v.checkLink(node, LinkMAC); err != nil {
		return err
	}
	if node.Attrs().MasterIndex != 0 {
		return fmt.Errorf("link %s is in a bridge: %w", v.Link, ErrDamaged)
	}
	for _, a := range v.Addrs {
		if err := errors.Join(checkAddr(node, Gateway(a).String()), checkNeighbour(node, a.String(), v.MAC)); err != nil {
			return err
		}
	}
	return within(ns, func() error { return v.checkPod(node.Attrs().Index) })
}

func (v Veth) checkLink(link netlink.Link, mac net.HardwareAddr) error {
	have := link.Attrs()
	switch {
	case have.Flags&net.FlagUp == 0:
		return fmt.Errorf("%s is down: %w", have.Name, ErrDamaged)
	case !slices.Equal(have.HardwareAddr, mac):
		return fmt.Errorf("%s has MAC %s, %s is expected: %w", have.Name, have.HardwareAddr, mac, ErrDamaged)
	case have.MTU != v.MTU:
		return fmt.Errorf("%s has MTU %d, %d is expected: %w", have.Name, have.MTU, v.MTU, ErrDamaged)
	}
	return nil
}

// checkPod runs in the pod's namespace. peer is the index of the node's end.
func (v Veth) checkPod(peer int) error {
	link, err := netlink.LinkByName(v.Interface)
	if err != nil {
		return fmt.Errorf("%s of %s: %w: %w", v.Interface, v.Netns, ErrDamaged, err)
	}
	if _, ok := link.(*netlink.Veth); !ok || link.Attrs().ParentIndex != peer {
		return fmt.Errorf("%s of %s is not the other end of %s: %w", v.Interface, v.Netns, v.Link, ErrDamaged)
	}
	return v.checkInterface(link)
}

// checkInterface holds the pod's end against what it has to be, in the pod's namespace.
func (v Veth) checkInterface(link netlink.Link) error {
	if err := v.checkLink(link, v.MAC); err != nil {
		return err
	}
	for _, a := range v.Addrs {
		gw := Gateway(a)
		if err := errors.Join(checkAddr(link, a.String()), checkNeighbour(link, gw.String(), LinkMAC)); err != nil {
			return err
		}
		number := netlink.FAMILY_V4
		if a.Is6() {
			number = netlink.FAMILY_V6
		}
		routes, err := listing.Whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(number, &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_GW)
		})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst == nil || r.Dst.String() == everything(a).String() }) {
			return fmt.Errorf("%s has no default route via %s: %w", v.Interface, gw, ErrDamaged)
		}
	}
	return nil
}

func checkAddr(link netlink.Link, want string) error {
	all, err := listing.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(a netlink.Addr) bool { return a.IP.String() == want }) {
		return fmt.Errorf("%s has no address %s: %w", link.Attrs().Name, want, ErrDamaged)
	}
	return nil
}

func checkNeighbour(link netlink.Link, addr string, mac net.HardwareAddr) error {
	all, err := listing.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, unix.AF_UNSPEC) })
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(n netlink.Neigh) bool { return n.IP.String() == addr && slices.Equal(n.HardwareAddr, mac) }) {
		return fmt.Errorf("%s does not know that %s is at %s: %w", link.Attrs().Name, addr, mac, ErrDamaged)
	}
	return nil
}
