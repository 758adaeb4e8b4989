package main

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// parseNode makes a node; an empty string is no address or subnet.
func parseNode(public, subnet, public6, subnet6 string) control.Node {
	n := control.Node{BackendType: "vxlan", VNI: 1}
	n.PublicIP, _ = netip.ParseAddr(public)
	n.Subnet, _ = netip.ParsePrefix(subnet)
	n.PublicIPv6, _ = netip.ParseAddr(public6)
	n.IPv6Subnet, _ = netip.ParsePrefix(subnet6)
	return n
}

// TestItself tells this node from others in a list for all nodes, in every family that it has.
func TestItself(t *testing.T) {
	four, claiming := parseNode("192.0.2.1", "10.244.1.0/24", "", ""), parseNode("192.0.2.1", "", "2001:db8::1", "")
	six, dual := parseNode("", "", "2001:db8::1", "fd00:1::/64"), parseNode("192.0.2.1", "10.244.1.0/24", "2001:db8::1", "fd00:1::/64")
	for _, c := range []struct {
		p, self control.Node
		want    bool
	}{
		{four, four, true},
		{dual, four, true},
		{dual, six, true},
		{dual, dual, true},
		{dual, claiming, true},
		{four, dual, false},
		{six, four, false},
		{parseNode("192.0.2.1", "10.244.2.0/24", "", ""), four, false},
		{parseNode("192.0.2.2", "10.244.1.0/24", "2001:db8::1", "fd00:1::/64"), dual, false},
		{parseNode("", "", "2001:db8::2", "fd00:1::/64"), six, false},
	} {
		if got := c.p.Is(c.self); got != c.want {
			t.Errorf("%+v is %+v: %t", c.p, c.self, got)
		}
	}
}

// TestHalfRouted demands that a peer with one bad half is shown with a route and with what is wrong.
func TestHalfRouted(t *testing.T) {
	self := parseNode("192.0.2.1", "", "2001:db8::1", "")
	n := &network{
		paths:   func(...netip.Addr) []pathReport { return nil },
		base:    control.State{Self: self, Network: netip.MustParsePrefix("10.244.0.0/16"), IPv6Network: netip.MustParsePrefix("fd00::/32"), Port: 8472, MTU: 1430},
		publish: func(*tables.Set) {}, settle: func(control.State) {},
	}
	half, whole := parseNode("192.0.2.2", "10.244.2.0/24", "2001:db8::2", "fd01::/64"), parseNode("192.0.2.3", "10.244.3.0/24", "2001:db8::3", "fd00:0:0:3::/64")
	whole.VTEPv6 = tables.MAC{2, 5: 3}
	n.setFile(control.NewFileStore(self, "", []control.Node{half, whole, parseNode("192.0.2.1", "10.244.1.0/24", "2001:db8::1", "fd00:0:0:1::/64")}).View())
	if want := []string{"10.244.2.0/24", "fd01::/64", "10.244.3.0/24", "fd00:0:0:3::/64"}; len(n.reserved()) != 6 || n.reserved()[1].String() != want[1] {
		t.Errorf("reserved %s, want %s and this node's", n.reserved(), want)
	}
	self.Subnet, self.IPv6Subnet = netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:0:0:1::/64")
	n.setStore(control.View{Self: self})
	peers := n.peers()
	if len(peers) != 2 || !peers[0].Routable || peers[0].Reason != "subnet fd01::/64 is not inside the network fd00::/32" || !peers[1].Routable || peers[1].Reason != "" {
		t.Errorf("%+v", peers)
	}
	if p := peers[1]; p.VTEPMAC != "00:00:00:00:00:00" || p.VTEPMACv6 != "02:00:00:00:00:03" || p.IPv6Subnet != "fd00:0:0:3::/64" || p.PublicIPv6 != "2001:db8::3" {
		t.Errorf("%+v", p)
	}
	if !slices.Equal(n.state.Peers, []control.Node{half, whole}) {
		t.Errorf("this node is its own peer: %+v", n.state.Peers)
	}
}
