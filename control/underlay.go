package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
)

// An UnderlayLink is the link and the addresses that carry the tunnel.
type UnderlayLink struct {
	Name  string
	Index int        // while the link is not made again
	Addr  netip.Addr // zero without IPv4
	Addr6 netip.Addr // zero without IPv6
	MTU   int        // bytes
}

// An UnderlayQuery says what the underlay has to have. The zero value asks for nothing.
type UnderlayQuery struct {
	Iface      string     // name of the link; empty: any
	IPv4, IPv6 bool       // the families that are needed
	PublicIP   netip.Addr // zero: the link's first
	PublicIPv6 netip.Addr // zero: the link's first that is global and there to stay
}

// An underlayFamily is what differs between the families.
type underlayFamily struct {
	number int // of rtnetlink
	name   string
	flag   string // that names the address
}

var (
	underlay4 = underlayFamily{netlink.FAMILY_V4, "IPv4", "--public-ip"}
	underlay6 = underlayFamily{netlink.FAMILY_V6, "global IPv6", "--public-ipv6"}
)

// FindUnderlay picks the node's link and addresses: by link name, by an address, by both, or, with neither, the
// link of the default route. All addresses are of one link.
func FindUnderlay(q UnderlayQuery) (UnderlayLink, error) {
	link, err := q.link()
	if err != nil {
		return UnderlayLink{}, err
	}
	found := UnderlayLink{Name: link.Attrs().Name, Index: link.Attrs().Index, MTU: link.Attrs().MTU}
	if q.IPv4 {
		if found.Addr, err = underlay4.addr(link, q.PublicIP); err != nil {
			return UnderlayLink{}, err
		}
	}
	if q.IPv6 {
		if found.Addr6, err = underlay6.addr(link, q.PublicIPv6); err != nil {
			return UnderlayLink{}, err
		}
	}
	return found, nil
}

func (q UnderlayQuery) link() (netlink.Link, error) {
	switch {
	case q.Iface != "":
		link, err := netlink.LinkByName(q.Iface)
		if err != nil {
			return nil, fmt.Errorf("--iface %s: no such link (have: %s)", q.Iface, strings.Join(linkNames(), ", "))
		}
		return link, nil
	case q.IPv4 && q.PublicIP.IsValid():
		return underlay4.linkOf(q.PublicIP)
	case q.IPv6 && q.PublicIPv6.IsValid():
		return underlay6.linkOf(q.PublicIPv6)
	case q.IPv4:
		return underlay4.linkOfDefaultRoute()
	}
	return underlay6.linkOfDefaultRoute()
}

// addr returns the wanted address of the link, or the one to take when none is wanted.
func (f underlayFamily) addr(link netlink.Link, want netip.Addr) (netip.Addr, error) {
	name := link.Attrs().Name
	addrs, err := f.addrs(link)
	if err != nil {
		return want, err
	}
	if len(addrs) == 0 {
		return want, fmt.Errorf("--iface %s: it has no %s address", name, f.name)
	}
	if want.IsValid() {
		if slices.ContainsFunc(addrs, func(a linkAddr) bool { return a.addr == want }) {
			return want, nil
		}
		return want, fmt.Errorf("%s %s: not an address of %s (have: %v)", f.flag, want, name, addrs)
	}
	for _, a := range addrs {
		if a.unfit == "" {
			return a.addr, nil
		}
	}
	return want, fmt.Errorf("--iface %s: it has no %s address that stays: give one with %s (have: %v)", name, f.name, f.flag, addrs)
}

// linkOf returns the link that has the address.
func (f underlayFamily) linkOf(addr netip.Addr) (netlink.Link, error) {
	links, err := listing.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var have []string
	for _, link := range links {
		addrs, err := f.addrs(link)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if a.addr == addr {
				return link, nil
			}
			have = append(have, a.addr.String())
		}
	}
	return nil, fmt.Errorf("%s %s: no link has this address (have: %s)", f.flag, addr, strings.Join(have, ", "))
}

func (f underlayFamily) linkOfDefaultRoute() (netlink.Link, error) {
	routes, err := listing.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, f.number) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.LinkIndex == 0 || r.Dst != nil && !isDefault(r) || r.Table != unix.RT_TABLE_MAIN || r.Type != unix.RTN_UNICAST {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return nil, fmt.Errorf("link of the default route: %w", err)
		}
		return link, nil
	}
	return nil, fmt.Errorf("no default route to find the underlay by: name it with --iface or %s (links: %s)", f.flag, strings.Join(linkNames(), ", "))
}

func isDefault(r netlink.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

func linkNames() []string {
	links, err := listing.Whole(netlink.LinkList)
	if err != nil {
		return []string{err.Error()}
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// A linkAddr is an address with the reason not to take it unasked, "" for none.
type linkAddr struct {
	addr  netip.Addr
	unfit string
}

// String makes lists of what there is.
func (a linkAddr) String() string {
	if a.unfit == "" {
		return a.addr.String()
	}
	return a.addr.String() + " " + a.unfit
}

// addrs lists the link's addresses that other hosts can reach.
func (f underlayFamily) addrs(link netlink.Link) ([]linkAddr, error) {
	list, err := listing.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, f.number) })
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", link.Attrs().Name, err)
	}
	var addrs []linkAddr
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); !ok || addr.Is6() && a.Scope != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		addrs = append(addrs, linkAddr{addr, unfit(addr, a.Flags)})
	}
	return addrs, nil
}

// unfit says why the kernel's flags (if_addr.h) make an IPv6 address one that may go while the node runs, or that cannot
// be bound to yet. IFA_F_SECONDARY is IFA_F_TEMPORARY in IPv6 and harmless in IPv4.
func unfit(a netip.Addr, flags int) string {
	switch {
	case a.Is4():
		return ""
	case flags&unix.IFA_F_TEMPORARY != 0:
		return "temporary"
	case flags&unix.IFA_F_DEPRECATED != 0:
		return "deprecated"
	case flags&unix.IFA_F_DADFAILED != 0:
		return "duplicate"
	case flags&unix.IFA_F_TENTATIVE != 0:
		return "tentative"
	}
	return ""
}
