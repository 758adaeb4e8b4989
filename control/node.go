// Package control owns what is known of the nodes, and turns it into tables.Set for the packet path and
// into kernel state: State in, routes out.
//
// It never touches a frame and is on no packet's way. Subnets and addresses follow flannel's contract
// (flannel v0.28, pkg/backend/vxlan).
package control

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// A Node is one node of the network as the others know it.
//
// IPv4 packets travel between the PublicIPs and IPv6 packets between the PublicIPv6s, never one in the other: a dual-stack
// node is two VTEPs. Address and subnet of a family that the node does not have are zero.
type Node struct {
	Name        string
	PublicIP    netip.Addr   // outer source and destination of IPv4
	Subnet      netip.Prefix // of its pods, masked
	BackendType string       // netconf.TypeVXLAN or TypeUDP ("" in flannel's leases is udp), or one that this node ignores
	VNI         uint32       // valid iff vxlan
	VTEP        tables.MAC   // valid iff vxlan; this node's own always, the MAC of its TAP, for both families

	PublicIPv6 netip.Addr
	IPv6Subnet netip.Prefix
	VTEPv6     tables.MAC // valid iff vxlan and PublicIPv6 is
}

// A half is a node in one address family.
type half struct {
	public netip.Addr
	subnet netip.Prefix
	vtep   tables.MAC
}

// halves returns the IPv4 half and the IPv6 half, in this order.
func (n Node) halves() [2]half {
	return [2]half{{n.PublicIP, n.Subnet, n.VTEP}, {n.PublicIPv6, n.IPv6Subnet, n.VTEPv6}}
}

// Underlay returns the address by which the others know the node: the IPv4 one if there is one.
func (n Node) Underlay() netip.Addr {
	if n.PublicIP.IsValid() {
		return n.PublicIP
	}
	return n.PublicIPv6
}

func (n Node) subnets() [2]netip.Prefix { return [2]netip.Prefix{n.Subnet, n.IPv6Subnet} }

// HasSubnet says whether the node has a subnet in any family.
func (n Node) HasSubnet() bool { return n.Subnet.IsValid() || n.IPv6Subnet.IsValid() }

// A State is everything that decides a node's tables and kernel state. It is not changed after it was
// handed over.
type State struct {
	Self        Node         // without subnets: nothing is forwarded
	Network     netip.Prefix // zero without IPv4
	IPv6Network netip.Prefix // zero without IPv6
	Port        uint16       // UDP port of the tunnel, on every node
	MTU         int          // largest IP packet in bytes, of the TAP and of every pod
	// Limits are the largest inner IP packets that the underlay's link takes in one piece, of IPv4 and of IPv6, bytes. With
	// both families that of IPv4 is above MTU, which has to fit both.
	Limits [2]int
	// PathMTU is the largest inner IP packet in bytes that goes to an outer address now, as measured; absent: unknown. What is
	// measured next goes into a new map.
	PathMTU map[netip.Addr]int
	// OnLink has the MACs of outer addresses that are neighbours on the underlay's link. Who is found next goes into a new map.
	OnLink  map[netip.Addr]tables.MAC
	Direct  bool // packets to peers on link leave without encapsulation, by the kernel's routes
	Peers   []Node
	Natives []Native // what OnLink makes of those of Peers that have routes
	// Pods are those of this node to which the engine has ports of their own. They are for the tables alone; what is there next is a new
	// list.
	Pods []*tables.Pod
}

// Equal says whether both states lead to the same tables and the same kernel state.
func (s State) Equal(o State) bool {
	return s.sameKernel(o) && s.Port == o.Port && slices.Equal(s.Peers, o.Peers) && maps.Equal(s.PathMTU, o.PathMTU) && maps.Equal(s.OnLink, o.OnLink) && slices.Equal(s.Pods, o.Pods)
}

// sameKernel says whether both states lead to the same kernel state.
func (s State) sameKernel(o State) bool {
	return s.Self == o.Self && s.Network == o.Network && s.IPv6Network == o.IPv6Network && s.MTU == o.MTU && s.Direct == o.Direct && slices.Equal(s.Natives, o.Natives)
}

// networks returns the networks of the node's halves, in their order.
func (s State) networks() [2]netip.Prefix { return [2]netip.Prefix{s.Network, s.IPv6Network} }

// VTEPMAC returns the MAC of a node's VTEP. It depends on nothing but the node's address (the IPv6 one where it
// has no other) and the VNI, so that a node which comes back, with or without its disk, is the same to peers that kept
// their neighbour entries. It is locally administered.
func VTEPMAC(publicIP netip.Addr, vni uint32) tables.MAC { return deriveMAC("vtep", publicIP, vni) }

// gatewayMAC returns the MAC of the engine on the other end of the node's TAP.
func gatewayMAC(n Node) tables.MAC { return deriveMAC("gateway", n.Underlay(), n.VNI) }

func deriveMAC(use string, publicIP netip.Addr, vni uint32) tables.MAC {
	id := binary.BigEndian.AppendUint32(publicIP.AsSlice(), vni)
	sum := sha256.Sum256(append([]byte("tulle "+use+" "), id...))
	mac := tables.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	return mac
}

// parseMAC reads a 48-bit MAC address.
func parseMAC(s string) (tables.MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return tables.MAC{}, fmt.Errorf("%q is no 48-bit MAC address", s)
	}
	return tables.MAC(hw), nil
}

// TunnelAddr returns the node's address inside the network: the subnet's first, as flannel gives it to its
// VXLAN device. Traffic of the node itself comes from it.
func TunnelAddr(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr() }

// GatewayAddr returns the subnet's second address, which flannel gives to the pods' bridge.
func GatewayAddr(subnet netip.Prefix) netip.Addr { return TunnelAddr(subnet).Next() }

// EngineAddr returns the engine's own address: the one before the subnet's last, on no interface and never a pod's.
func EngineAddr(subnet netip.Prefix) netip.Addr { return lastAddr(subnet).Prev() }

// PodReserved lists the addresses of a subnet that no pod gets: the node's own and, for the sake of IPv4, the last one.
func PodReserved(subnet netip.Prefix) []netip.Addr {
	return []netip.Addr{TunnelAddr(subnet), GatewayAddr(subnet), EngineAddr(subnet), lastAddr(subnet)}
}

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
