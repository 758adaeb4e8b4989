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
	"net"
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// A Node is one node of the network as the others know it.
type Node struct {
	Name        string
	PublicIP    netip.Addr   // outer source and destination
	Subnet      netip.Prefix // of its pods, masked
	BackendType string       // netconf.TypeVXLAN, or one that this node ignores
	VNI         uint32       // valid iff vxlan
	VTEP        tables.MAC   // valid iff vxlan
}

// A State is everything that decides a node's tables and kernel state. It is not changed after it was
// handed over.
type State struct {
	Self    Node
	Network netip.Prefix
	Port    uint16 // UDP port of the tunnel, on every node
	MTU     int    // largest inner IP packet, bytes
	Peers   []Node
}

// VTEPMAC returns the MAC of a node's VTEP. It depends on nothing but the node's address and the VNI, so
// that a node which comes back, with or without its disk, is the same to peers that kept their
// neighbour entries. It is locally administered.
func VTEPMAC(publicIP netip.Addr, vni uint32) tables.MAC { return deriveMAC("vtep", publicIP, vni) }

// gatewayMAC returns the MAC of the engine on the other end of the node's TAP.
func gatewayMAC(publicIP netip.Addr, vni uint32) tables.MAC {
	return deriveMAC("gateway", publicIP, vni)
}

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

// EngineAddr returns the engine's own address: the last usable one of the subnet, on no interface and
// never a pod's.
func EngineAddr(subnet netip.Prefix) netip.Addr { return lastAddr(subnet).Prev() }

// lastAddr returns the last address of an IPv4 prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	first := p.Masked().Addr().As4()
	last := binary.BigEndian.Uint32(first[:]) | uint32(uint64(1)<<(32-p.Bits())-1)
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, last)))
}
