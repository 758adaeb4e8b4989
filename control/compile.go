package control

import (
	"fmt"
	"net/netip"

	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// An Ignored peer has no routes, for a reason.
type Ignored struct {
	Peer   Node
	Reason string
}

// Compile turns the state into the tables of one generation. Peers that this node cannot reach as they
// are configured are left out, with the reason; the rest does not suffer from it.
func Compile(generation uint64, s State) (*tables.Set, []Ignored, error) {
	node := tables.Node{
		VTEP:    s.Self.VTEP,
		Gateway: gatewayMAC(s.Self.PublicIP, s.Self.VNI),
		Engine:  EngineAddr(s.Self.Subnet),
		MTU:     s.MTU,
	}
	routes := ownRoutes(s)
	var peers []*tables.Peer
	var ignored []Ignored
	var accepted []Node
	for _, n := range s.Peers {
		if reason := unusable(s, accepted, n); reason != "" {
			ignored = append(ignored, Ignored{n, reason})
			continue
		}
		accepted = append(accepted, n)
		p := &tables.Peer{
			Name:     n.Name,
			Endpoint: netip.AddrPortFrom(n.PublicIP, s.Port),
			VTEP:     n.VTEP,
			Sources:  []netip.Prefix{n.Subnet, netip.PrefixFrom(n.PublicIP, n.PublicIP.BitLen())},
		}
		peers = append(peers, p)
		routes = append(routes, tables.Route{Prefix: n.Subnet, Kind: tables.ToPeer, Peer: p})
	}
	set, err := tables.Compile(generation, node, peers, routes)
	return set, ignored, err
}

// ownRoutes are the routes that do not depend on any peer: the node's own subnet with its own addresses in
// it, and nobody's part of the network.
func ownRoutes(s State) []tables.Route {
	routes := []tables.Route{{Prefix: s.Self.Subnet, Kind: tables.Local}}
	if s.Network != s.Self.Subnet {
		routes = append(routes, tables.Route{Prefix: s.Network, Kind: tables.Reject})
	}
	host := func(a netip.Addr, k tables.Kind) {
		routes = append(routes, tables.Route{Prefix: netip.PrefixFrom(a, a.BitLen()), Kind: k})
	}
	host(TunnelAddr(s.Self.Subnet), tables.Host)
	host(GatewayAddr(s.Self.Subnet), tables.Host)
	host(EngineAddr(s.Self.Subnet), tables.Reject)
	return routes
}

// unusable says why a peer gets no routes, "" when it does.
func unusable(s State, accepted []Node, n Node) string {
	switch {
	case n.BackendType != netconf.TypeVXLAN:
		return fmt.Sprintf("backend %s: this node runs vxlan", n.BackendType)
	case n.VNI != s.Self.VNI:
		return fmt.Sprintf("VNI %d: this node's is %d", n.VNI, s.Self.VNI)
	case n.PublicIP == s.Self.PublicIP:
		return fmt.Sprintf("public IP %s is this node's own", n.PublicIP)
	case n.Subnet.Overlaps(s.Self.Subnet):
		return fmt.Sprintf("subnet %s overlaps this node's %s", n.Subnet, s.Self.Subnet)
	case !contains(s.Network, n.Subnet):
		return fmt.Sprintf("subnet %s is not inside the network %s", n.Subnet, s.Network)
	case s.Network.Contains(n.PublicIP):
		return fmt.Sprintf("public IP %s is inside the network %s", n.PublicIP, s.Network)
	}
	for _, other := range accepted {
		switch {
		case n.PublicIP == other.PublicIP:
			return fmt.Sprintf("public IP %s is also %s's", n.PublicIP, other.Name)
		case n.Subnet.Overlaps(other.Subnet):
			return fmt.Sprintf("subnet %s overlaps %s of %s", n.Subnet, other.Subnet, other.Name)
		}
	}
	return ""
}

func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
