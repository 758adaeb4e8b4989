package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// An Ignored peer has no routes, or none of one address family, for a reason.
type Ignored struct {
	Peer   Node
	Reason string
	Routed bool // in the other family
}

// Compile turns the state into the tables of one generation. Peers that this node cannot reach as they
// are configured are left out, with the reason; the rest does not suffer from it, nor does the other family of a
// dual-stack peer.
func Compile(generation uint64, s State) (*tables.Set, []Ignored, error) {
	node := tables.Node{VTEP: s.Self.VTEP, Gateway: gatewayMAC(s.Self), MTU: s.MTU, Port: s.Port, Limit4: s.Limits[0], Limit6: s.Limits[1]}
	if s.Self.Subnet.IsValid() {
		node.Engine = EngineAddr(s.Self.Subnet)
	}
	if s.Self.IPv6Subnet.IsValid() {
		node.Engine6 = EngineAddr(s.Self.IPv6Subnet)
	}
	c := compiler{state: s, routes: ownRoutes(s)}
	for _, n := range s.Peers {
		c.add(n)
	}
	set, err := tables.Compile(generation, node, c.peers, c.routes)
	return set, c.ignored, err
}

// ownRoutes are the routes that do not depend on any peer: the node's own subnets with its own addresses in
// them, and nobody's part of the networks.
func ownRoutes(s State) (routes []tables.Route) {
	add := func(p netip.Prefix, k tables.Kind) { routes = append(routes, tables.Route{Prefix: p, Kind: k}) }
	networks := s.networks()
	for i, own := range s.Self.halves() {
		if !own.subnet.IsValid() {
			continue
		}
		add(own.subnet, tables.Local)
		if networks[i] != own.subnet {
			add(networks[i], tables.Reject)
		}
		add(hostPrefix(TunnelAddr(own.subnet)), tables.Host)
		add(hostPrefix(GatewayAddr(own.subnet)), tables.Host)
		add(hostPrefix(EngineAddr(own.subnet)), tables.Reject)
		for _, p := range s.Pods {
			for _, a := range p.Addrs() {
				if own.subnet.Contains(a) && !slices.Contains(PodReserved(own.subnet), a) {
					routes = append(routes, tables.Route{Prefix: hostPrefix(a), Kind: tables.Local, Pod: p})
				}
			}
		}
	}
	return routes
}

// A compiler collects what Compile makes tables of.
type compiler struct {
	state    State
	accepted [2][]namedHalf // by family
	peers    []*tables.Peer
	routes   []tables.Route
	ignored  []Ignored
}

// A namedHalf is a half with the name of its node.
type namedHalf struct {
	name string
	half
}

// add gives the peer routes in each family in which it can have some.
func (c *compiler) add(n Node) {
	if reason := c.incompatible(n); reason != "" {
		c.ignored = append(c.ignored, Ignored{Peer: n, Reason: reason})
		return
	}
	var reasons []string
	own, routed := c.state.Self.halves(), false
	for i, h := range n.halves() {
		if !own[i].subnet.IsValid() || !h.subnet.IsValid() && !h.public.IsValid() {
			continue // one of the two does not have this family
		}
		if reason := c.unusable(i, h); reason != "" {
			reasons = append(reasons, reason)
			continue
		}
		c.accept(i, namedHalf{n.Name, h})
		if reason := c.unreached(h.public); reason != "" {
			reasons = append(reasons, reason)
			continue
		}
		routed = true
	}
	if len(reasons) > 0 {
		c.ignored = append(c.ignored, Ignored{n, strings.Join(reasons, "; "), routed})
	}
}

// accept gives a peer routes in family i, unless they are the kernel's alone: then it is no more than known.
func (c *compiler) accept(i int, h namedHalf) {
	c.accepted[i] = append(c.accepted[i], h)
	p := &tables.Peer{
		Name:     h.name,
		Endpoint: netip.AddrPortFrom(h.public, c.state.Port),
		VTEP:     h.vtep,
		Sources:  []netip.Prefix{h.subnet, hostPrefix(h.public)},
		MTU:      c.state.Limits[i],
		Probe:    TunnelAddr(h.subnet),
	}
	_, onLink := c.state.OnLink[h.public]
	p.Native = onLink && c.state.Direct
	if measured, ok := c.state.PathMTU[h.public]; ok {
		p.MTU = min(p.MTU, measured)
	}
	c.peers = append(c.peers, p)
	if backend(c.state.Self) != netconf.TypeHostGW {
		c.routes = append(c.routes, tables.Route{Prefix: h.subnet, Kind: tables.ToPeer, Peer: p})
	}
}

// incompatible says why a peer gets no routes at all, "" when it may.
func (c *compiler) incompatible(n Node) string {
	self := c.state.Self
	own, halves := self.halves(), n.halves()
	missing := true
	for i, h := range halves {
		missing = missing && !(own[i].subnet.IsValid() && h.subnet.IsValid())
	}
	switch {
	case backend(n) != backend(self):
		return fmt.Sprintf("backend %s: this node runs %s", backend(n), backend(self))
	case backend(n) == netconf.TypeVXLAN && n.VNI != self.VNI:
		return fmt.Sprintf("VNI %d: this node's is %d", n.VNI, self.VNI)
	case missing:
		return fmt.Sprintf("it has no subnet of this node's network %s", describe(c.state.networks()))
	}
	return ""
}

// unreached says why an accepted peer gets no packets for all that, "" when it does.
func (c *compiler) unreached(public netip.Addr) string {
	if _, ok := c.state.OnLink[public]; ok || backend(c.state.Self) != netconf.TypeHostGW {
		return ""
	}
	return fmt.Sprintf("%s is no neighbour on the underlay's link: it does not answer there, or it is behind a router, where host-gw cannot send: use vxlan with DirectRouting", public)
}

// backend returns the type of a node's backend: flannel's leases of udp nodes carry none.
func backend(n Node) string {
	if n.BackendType == "" {
		return netconf.TypeUDP
	}
	return n.BackendType
}

// describe lists the networks that there are.
func describe(networks [2]netip.Prefix) string {
	var names []string
	for _, n := range networks {
		if n.IsValid() {
			names = append(names, n.String())
		}
	}
	return strings.Join(names, " and ")
}

// unusable says why a peer gets no routes in family i, "" when it does.
func (c *compiler) unusable(i int, h half) string {
	self, network := c.state.Self.halves()[i], c.state.networks()[i]
	public := [2]string{"public IP", "public IPv6 address"}[i]
	switch {
	case !h.public.IsValid():
		return fmt.Sprintf("subnet %s without a %s", h.subnet, public)
	case !h.subnet.IsValid():
		return fmt.Sprintf("%s %s without a subnet", public, h.public)
	case h.public == self.public:
		return fmt.Sprintf("%s %s is this node's own", public, h.public)
	case h.subnet.Overlaps(self.subnet):
		return fmt.Sprintf("subnet %s overlaps this node's %s", h.subnet, self.subnet)
	case !contains(network, h.subnet):
		return fmt.Sprintf("subnet %s is not inside the network %s", h.subnet, network)
	case network.Contains(h.public):
		return fmt.Sprintf("%s %s is inside the network %s", public, h.public, network)
	}
	for _, other := range c.accepted[i] {
		switch {
		case h.public == other.public:
			return fmt.Sprintf("%s %s is also %s's", public, h.public, other.name)
		case h.subnet.Overlaps(other.subnet):
			return fmt.Sprintf("subnet %s overlaps %s of %s", h.subnet, other.subnet, other.name)
		}
	}
	return ""
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
