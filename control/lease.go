package control

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/tulle-net/tulle/control/netconf"
)

// leaseValue is what flannel writes of a node into its stores, in this order (flannel v0.28, pkg/lease/lease.go: LeaseAttrs).
type leaseValue struct {
	PublicIP      *netip.Addr
	PublicIPv6    *netip.Addr
	BackendType   string       `json:",omitempty"`
	BackendData   *backendData `json:",omitempty"`
	BackendV6Data *backendData `json:",omitempty"`
}

// LeaseValue returns what flannel would write of the node.
func LeaseValue(n Node) ([]byte, error) {
	v := leaseValue{PublicIP: &n.PublicIP}
	if n.PublicIPv6.IsValid() {
		v.PublicIPv6 = &n.PublicIPv6
	}
	if n.BackendType != netconf.TypeUDP {
		v.BackendType = n.BackendType
	}
	if n.BackendType == netconf.TypeVXLAN {
		v.BackendData = &backendData{n.VNI, n.VTEP.String()}
		if n.PublicIPv6.IsValid() {
			v.BackendV6Data = &backendData{n.VNI, n.VTEPv6.String()}
		}
	}
	return json.Marshal(v)
}

// LeaseNode reads what flannel has written of the node that has the subnets; subnet6 is zero without IPv6. The name is the node's address:
// flannel knows no other.
func LeaseNode(subnet, subnet6 netip.Prefix, value []byte) (Node, error) {
	var v leaseValue
	if err := json.Unmarshal(value, &v); err != nil {
		return Node{}, fmt.Errorf("lease of %s: %w", subnet, err)
	}
	e := peerEntry{Subnet: subnet, IPv6Subnet: subnet6, BackendType: v.BackendType}
	if v.PublicIP != nil {
		e.PublicIP = *v.PublicIP
	}
	if v.PublicIPv6 != nil && subnet6.IsValid() { // a node of one family may name both addresses
		e.PublicIPv6 = *v.PublicIPv6
	}
	if v.BackendData != nil {
		e.BackendData = *v.BackendData
	}
	if v.BackendV6Data != nil {
		e.BackendV6Data = *v.BackendV6Data
	}
	n, err := e.node()
	if err != nil {
		return Node{}, fmt.Errorf("lease of %s: %w", subnet, err)
	}
	return n, nil
}
