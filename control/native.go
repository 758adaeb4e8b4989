package control

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/netfilter"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A Native is a subnet whose node is on the underlay's link: packets between it and this node need no encapsulation.
type Native struct {
	Subnet netip.Prefix
	Via    netip.Addr // the node
	MAC    tables.MAC // its neighbour's: what comes from the subnet comes from there
}

// Natives lists the subnets of those peers of the tables that are on link.
func Natives(set *tables.Set, onLink map[netip.Addr]tables.MAC) (natives []Native) {
	for p := range set.AllPeers() {
		if mac, ok := onLink[p.Endpoint.Addr()]; ok {
			natives = append(natives, Native{p.Sources[0], p.Endpoint.Addr(), mac})
		}
	}
	slices.SortFunc(natives, func(a, b Native) int { return a.Via.Compare(b.Via) })
	return natives
}

// nativeRoutes lead to the on-link peers' subnets without the tunnel. Their source is the one that packets have by the tunnel too: a
// connection survives a change from one to the other.
func (k Kernel) nativeRoutes(f kernelFamily) (routes []netlink.Route) {
	if !k.State.Direct || !f.subnet.IsValid() {
		return nil
	}
	link, err := netlink.LinkByName(k.Underlay)
	if err != nil {
		return nil // it is not there: neither is anybody on it
	}
	for _, n := range k.State.Natives {
		if n.Via.Is4() != (f.number == netlink.FAMILY_V4) {
			continue
		}
		r := netlink.Route{Dst: ipNet(n.Subnet), Type: unix.RTN_UNICAST, LinkIndex: link.Attrs().Index, Gw: n.Via.AsSlice(),
			Src: TunnelAddr(f.subnet).AsSlice(), Protocol: routeProtocol}
		if n.Via.Is6() {
			r.Priority = defaultMetric6
		}
		routes = append(routes, r)
	}
	return routes
}

// admitted are the Natives as the node's netfilter takes them, whether or not this node sends to them without the tunnel: that is each
// sender's own choice.
func (k Kernel) admitted() (all []netfilter.Native) {
	for _, n := range k.State.Natives {
		all = append(all, netfilter.Native{Subnet: n.Subnet, MAC: n.MAC})
	}
	return all
}
