package control

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/netconf"
)

func kernelUnderTest(subnet string) Kernel {
	public := netip.MustParseAddr("192.0.2.1")
	s := State{Network: netip.MustParsePrefix("10.244.0.0/16"), MTU: 1450, Port: 8472}
	s.Self = Node{Name: "n1", BackendType: netconf.TypeVXLAN, PublicIP: public, VTEP: VTEPMAC(public, 1), VNI: 1}
	if subnet != "" {
		s.Self.Subnet = netip.MustParsePrefix(subnet)
	}
	return Kernel{TAP: "tulle-t0", State: s}
}

func apply(t *testing.T, k Kernel, want ...Change) {
	t.Helper()
	changes, err := k.Apply()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(changes, want) {
		t.Errorf("changed %v, want %v", changes, want)
	}
}

// TestApply takes away one thing after the other and demands that exactly that is mended.
func TestApply(t *testing.T) {
	inNamespace(t)
	link := addTAP(t, "tulle-t0")
	k := kernelUnderTest("10.244.1.0/24")
	apply(t, k, ChangedSysctl, ChangedLink, ChangedAddress, ChangedRoute)
	apply(t, k)
	routes, err := ownedRoutes()
	if err != nil || len(routes) != 2 {
		t.Fatalf("%d routes of ours, %v, want 2", len(routes), err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.RouteDel(&routes[0]))
	apply(t, k, ChangedRoute)
	must(netlink.RouteDel(&routes[1]))
	apply(t, k, ChangedRoute)
	must(netlink.LinkSetMTU(link, 1300))
	apply(t, k, ChangedLink)
	must(netlink.LinkSetHardwareAddr(link, []byte{2, 0, 0, 0, 0, 9}))
	apply(t, k, ChangedLink)
	must(netlink.LinkSetDown(link)) // the kernel removes the link's routes with it
	apply(t, k, ChangedLink, ChangedRoute)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	must(err)
	must(netlink.AddrDel(link, &addrs[0])) // and the route that has it as source
	apply(t, k, ChangedAddress, ChangedRoute)
	foreign, err := netlink.ParseAddr("10.9.9.9/32")
	must(err)
	must(netlink.AddrAdd(link, foreign))
	apply(t, k, ChangedAddress)
	if _, err := writeSysctl("/proc/sys/net/ipv4/conf/tulle-t0/accept_local", "0"); err != nil {
		t.Fatal(err)
	}
	apply(t, k, ChangedSysctl)
	apply(t, k)
}

// TestApplySubnetChange demands that nothing of an old subnet stays, and nothing at all without one.
func TestApplySubnetChange(t *testing.T) {
	inNamespace(t)
	addTAP(t, "tulle-t0")
	apply(t, kernelUnderTest("10.244.1.0/24"), ChangedSysctl, ChangedLink, ChangedAddress, ChangedRoute)
	apply(t, kernelUnderTest("10.244.7.0/24"), ChangedAddress, ChangedRoute)
	routes, err := ownedRoutes()
	if err != nil || len(routes) != 2 {
		t.Fatalf("%d routes of ours, %v, want 2", len(routes), err)
	}
	for _, r := range routes {
		if r.Type == unix.RTN_UNREACHABLE && r.Dst.String() != "10.244.7.0/24" {
			t.Errorf("unreachable route for %s stayed", r.Dst)
		}
	}
	apply(t, kernelUnderTest(""), ChangedAddress, ChangedRoute)
	if routes, err = ownedRoutes(); err != nil || len(routes) != 0 {
		t.Errorf("%d routes of ours without a subnet, %v", len(routes), err)
	}
}

// TestRemove demands that others' routes stay.
func TestRemove(t *testing.T) {
	inNamespace(t)
	link := addTAP(t, "tulle-t0")
	k := kernelUnderTest("10.244.1.0/24")
	if _, err := k.Apply(); err != nil {
		t.Fatal(err)
	}
	other := netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.51.100.0/24")), LinkIndex: link.Attrs().Index, Scope: unix.RT_SCOPE_LINK}
	if err := netlink.RouteAdd(&other); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil || len(routes) != 1 || routes[0].Dst.String() != "198.51.100.0/24" {
		t.Errorf("left %v, %v", routes, err)
	}
}
