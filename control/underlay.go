package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An UnderlayLink is the link and the address that carry the tunnel.
type UnderlayLink struct {
	Name string
	Addr netip.Addr
	MTU  int // bytes
}

// FindUnderlay picks the node's link and address: by link name, by address, by both, or, with neither, the
// link of the default route and its first address.
func FindUnderlay(iface string, publicIP netip.Addr) (UnderlayLink, error) {
	switch {
	case iface != "":
		return underlayByName(iface, publicIP)
	case publicIP.IsValid():
		return underlayByAddr(publicIP)
	}
	return underlayByDefaultRoute()
}

func underlayByName(name string, publicIP netip.Addr) (UnderlayLink, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return UnderlayLink{}, fmt.Errorf("--iface %s: no such link (have: %s)", name, strings.Join(linkNames(), ", "))
	}
	addrs, err := linkAddrs(link)
	if err != nil {
		return UnderlayLink{}, err
	}
	if len(addrs) == 0 {
		return UnderlayLink{}, fmt.Errorf("--iface %s: it has no IPv4 address", name)
	}
	if publicIP.IsValid() && !slices.Contains(addrs, publicIP) {
		return UnderlayLink{}, fmt.Errorf("--public-ip %s: not an address of %s (have: %v)", publicIP, name, addrs)
	}
	if !publicIP.IsValid() {
		publicIP = addrs[0]
	}
	return UnderlayLink{Name: name, Addr: publicIP, MTU: link.Attrs().MTU}, nil
}

func underlayByAddr(publicIP netip.Addr) (UnderlayLink, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return UnderlayLink{}, fmt.Errorf("list links: %w", err)
	}
	var have []string
	for _, link := range links {
		addrs, err := linkAddrs(link)
		if err != nil {
			return UnderlayLink{}, err
		}
		if slices.Contains(addrs, publicIP) {
			return UnderlayLink{Name: link.Attrs().Name, Addr: publicIP, MTU: link.Attrs().MTU}, nil
		}
		for _, a := range addrs {
			have = append(have, a.String())
		}
	}
	return UnderlayLink{}, fmt.Errorf("--public-ip %s: no link has this address (have: %s)", publicIP, strings.Join(have, ", "))
}

func underlayByDefaultRoute() (UnderlayLink, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return UnderlayLink{}, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.LinkIndex == 0 || r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.Table != unix.RT_TABLE_MAIN {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return UnderlayLink{}, fmt.Errorf("link of the default route: %w", err)
		}
		return underlayByName(link.Attrs().Name, netip.Addr{})
	}
	return UnderlayLink{}, fmt.Errorf("no default route to find the underlay by: name it with --iface or --public-ip (links: %s)", strings.Join(linkNames(), ", "))
}

func linkNames() []string {
	links, err := netlink.LinkList()
	if err != nil {
		return []string{err.Error()}
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func linkAddrs(link netlink.Link) ([]netip.Addr, error) {
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", link.Attrs().Name, err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			addrs = append(addrs, addr)
		}
	}
	return addrs, nil
}
