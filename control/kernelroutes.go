package control

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A kernelFamily is one address family of the kernel's state.
type kernelFamily struct {
	number          int // of rtnetlink
	network, subnet netip.Prefix
}

// families returns those whose addresses on the TAP are this daemon's. Without an IPv6 network IPv6 is off there.
func (k Kernel) families() []kernelFamily {
	self := k.State.Self
	all := []kernelFamily{{netlink.FAMILY_V4, k.State.Network, self.Subnet}, {netlink.FAMILY_V6, k.State.IPv6Network, self.IPv6Subnet}}
	if !k.State.IPv6Network.IsValid() {
		return all[:1]
	}
	return all
}

// applyAddress leaves the tunnel addresses on the TAP and no others.
func (k Kernel) applyAddress(link netlink.Link) (changed bool, err error) {
	for _, f := range k.families() {
		made, err := f.applyAddress(link)
		changed = changed || made
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (f kernelFamily) applyAddress(link netlink.Link) (changed bool, err error) {
	have, err := listing.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, f.number) })
	if err != nil {
		return false, err
	}
	var want *net.IPNet
	if f.subnet.IsValid() {
		want = ipNet(hostPrefix(TunnelAddr(f.subnet)))
	}
	found := false
	for _, a := range have {
		if want != nil && a.IPNet.String() == want.String() {
			found = true
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return changed, fmt.Errorf("remove %s: %w", a.IPNet, err)
		}
		changed = true
	}
	if found || want == nil {
		return changed, nil
	}
	add := &netlink.Addr{IPNet: want}
	if f.number == netlink.FAMILY_V6 {
		add.Flags = unix.IFA_F_NODAD // nobody else is on the link
	}
	if err := netlink.AddrAdd(link, add); err != nil {
		return changed, fmt.Errorf("add %s: %w", want, err)
	}
	return true, nil
}

// applyRoutes makes the routes with this daemon's mark those that State asks for.
func (k Kernel) applyRoutes(link netlink.Link) (changed bool, err error) {
	have, err := ownedRoutes()
	if err != nil {
		return false, err
	}
	want := k.routes(link.Attrs().Index)
	for _, r := range have {
		if slices.ContainsFunc(want, func(w netlink.Route) bool { return sameRoute(w, r) }) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return changed, fmt.Errorf("remove %s: %w", r.Dst, err)
		}
		changed = true
	}
	for _, w := range want {
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return sameRoute(w, r) }) {
			continue
		}
		if err := netlink.RouteReplace(&w); err != nil {
			return changed, fmt.Errorf("add %s: %w", w.Dst, err)
		}
		changed = true
	}
	unhidden, err := k.unhideTunnelAddr()
	return changed || unhidden, err
}

func sameRoute(a, b netlink.Route) bool {
	return a.Dst.String() == b.Dst.String() && a.Type == b.Type && a.Priority == b.Priority &&
		(a.Type == unix.RTN_UNREACHABLE || a.LinkIndex == b.LinkIndex) && a.Gw.Equal(b.Gw) && a.Src.Equal(b.Src)
}

// ownedRoutes lists the routes that carry this daemon's mark, of either family.
func ownedRoutes() (routes []netlink.Route, err error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		some, err := listing.Whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, err
		}
		routes = append(routes, some...)
	}
	return routes, nil
}

// routes returns what has to be there, in the order in which the kernel takes it.
func (k Kernel) routes(tapIndex int) (routes []netlink.Route) {
	for _, f := range k.families() {
		if f.subnet.IsValid() {
			routes = append(routes, f.routes(tapIndex, k.L3)...)
			routes = append(routes, k.nativeRoutes(f)...)
		}
	}
	return routes
}

// defaultMetric6 is the metric that the kernel gives to an IPv6 route without one (IP6_RT_PRIO_USER).
const defaultMetric6 = 1024

func (f kernelFamily) routes(tapIndex int, l3 bool) []netlink.Route {
	engine := EngineAddr(f.subnet)
	network := netlink.Route{
		Dst:       ipNet(f.network),
		Type:      unix.RTN_UNICAST,
		LinkIndex: tapIndex,
		Src:       TunnelAddr(f.subnet).AsSlice(),
		Protocol:  routeProtocol,
	}
	if !l3 {
		network.Gw, network.Flags = engine.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	absent := netlink.Route{
		Dst:      ipNet(f.subnet),
		Type:     unix.RTN_UNREACHABLE,
		Priority: math.MaxInt32, // the worst that the library can express on every machine
		Protocol: routeProtocol,
	}
	// What peers answer to the engine may come without encapsulation. And without it the kernel takes no IPv6 gateway that is inside the
	// prefix of another link, such as the pods' bridge, "onlink" or not (Linux 6.18, ip6_route_check_nh_onlink).
	gateway := netlink.Route{Dst: ipNet(hostPrefix(engine)), Type: unix.RTN_UNICAST, LinkIndex: tapIndex, Protocol: routeProtocol}
	if f.number == netlink.FAMILY_V4 {
		gateway.Scope = netlink.SCOPE_LINK
	} else {
		network.Priority, gateway.Priority = defaultMetric6, defaultMetric6
	}
	return []netlink.Route{gateway, network, absent}
}

// unhideTunnelAddr makes the IPv6 tunnel address an address of this node when the pods' bridge came first: it is the
// subnet-router anycast address of the bridge's prefix too (RFC 4291 section 2.6.1), of two such routes the kernel takes the
// older, and it takes no TCP connection at an anycast address.
func (k Kernel) unhideTunnelAddr() (changed bool, err error) {
	subnet := k.State.Self.IPv6Subnet
	if !subnet.IsValid() {
		return false, nil
	}
	addr := hostPrefix(TunnelAddr(subnet))
	taken, err := netlink.RouteGet(addr.Addr().AsSlice())
	if err != nil || len(taken) == 0 || taken[0].Type != unix.RTN_ANYCAST {
		return false, err
	}
	hiding := &netlink.Route{Dst: ipNet(addr), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_ANYCAST}
	routes, err := listing.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, hiding, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return false, err
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return changed, fmt.Errorf("remove anycast %s: %w", r.Dst, err)
		}
		changed = true
	}
	return changed, nil
}

// applyNeighbour makes the engine's addresses permanent neighbours, and nothing else on the TAP. Packets that wait for an answer to ARP are
// overtaken by those behind them when it comes (Linux 6.18, neigh_update). In IPv6 the kernel cannot even ask: its neighbour
// solicitations for forwarded packets need a link-local address (ndisc_send_ns), which the TAP has none of: it would bring router
// solicitations and multicast reports into the network.
func (k Kernel) applyNeighbour(link netlink.Link) (changed bool, err error) {
	if k.L3 {
		return false, nil
	}
	for _, f := range k.families() {
		if !f.network.IsValid() {
			continue
		}
		did, err := f.applyNeighbour(link, gatewayMAC(k.State.Self))
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (f kernelFamily) applyNeighbour(link netlink.Link, mac tables.MAC) (changed bool, err error) {
	all, err := listing.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, f.number) })
	if err != nil {
		return false, err
	}
	found := false
	for _, n := range all {
		if n.State&netlink.NUD_PERMANENT == 0 {
			continue
		}
		if addr, _ := netip.AddrFromSlice(n.IP); f.subnet.IsValid() && addr.Unmap() == EngineAddr(f.subnet) && slices.Equal(n.HardwareAddr, mac[:]) {
			found = true
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return changed, fmt.Errorf("remove %s: %w", n.IP, err)
		}
		changed = true
	}
	if found || !f.subnet.IsValid() {
		return changed, nil
	}
	engine := netlink.Neigh{LinkIndex: link.Attrs().Index, Family: f.number, State: netlink.NUD_PERMANENT, IP: EngineAddr(f.subnet).AsSlice(), HardwareAddr: mac[:]}
	if err := netlink.NeighSet(&engine); err != nil {
		return changed, fmt.Errorf("add %s: %w", engine.IP, err)
	}
	return true, nil
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
