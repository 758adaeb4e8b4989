package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
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
	apply(t, k, ChangedSysctl, ChangedLink, ChangedAddress, ChangedNeighbour, ChangedRoute)
	apply(t, k)
	routes, err := ownedRoutes()
	if err != nil || len(routes) != 3 {
		t.Fatalf("%d routes of ours, %v, want 3", len(routes), err)
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
	apply(t, k, ChangedLink, ChangedNeighbour)
	must(netlink.LinkSetDown(link)) // the kernel removes the link's routes with it
	apply(t, k, ChangedLink, ChangedNeighbour, ChangedRoute)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	must(err)
	must(netlink.AddrDel(link, &addrs[0])) // and the route that has it as source
	apply(t, k, ChangedAddress, ChangedNeighbour, ChangedRoute)
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

// TestApplyTUN is TestApply for a device without MACs, in both families: routes have no gateway, and there are no neighbours.
func TestApplyTUN(t *testing.T) {
	inNamespace(t)
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tulle-t0", TxQLen: -1}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	k := kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false)
	k.L3, k.GSOMaxSegs = true, 128
	apply(t, k, ChangedSysctl, ChangedLink, ChangedAddress, ChangedRoute)
	apply(t, k)
	routes, err := ownedRoutes()
	if err != nil || len(routes) != 6 {
		t.Fatalf("%d routes of ours, %v, want 6", len(routes), err)
	}
	for _, r := range routes {
		if r.Gw != nil {
			t.Errorf("route %s via %s", r.Dst, r.Gw)
		}
		if err := netlink.RouteDel(&r); err != nil {
			t.Fatal(err)
		}
		apply(t, k, ChangedRoute)
	}
	for _, dst := range []string{"10.244.2.5", "fd00:244:0:2::5"} {
		await(t, dst+" to be behind the TUN", func() bool { // addresses take effect a little later
			got, err := netlink.RouteGet(net.ParseIP(dst))
			return err == nil && got[0].LinkIndex == link.Index && got[0].Src.Equal(TunnelAddr(k.State.Self.halves()[len(dst)/12].subnet).AsSlice())
		})
	}
	if err := netlink.LinkSetGSOMaxSegs(link, 1000); err != nil {
		t.Fatal(err)
	}
	apply(t, k, ChangedLink)
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	apply(t, k, ChangedLink, ChangedAddress, ChangedRoute)
	apply(t, k)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil || len(addrs) != 2 {
		t.Errorf("addresses %v, %v; want the tunnel's two", addrs, err)
	}
}

// with6 gives the node an IPv6 half; with only, in place of the other.
func (k Kernel) with6(subnet string, only bool) Kernel {
	s := &k.State
	s.IPv6Network, s.MTU = netip.MustParsePrefix("fd00:244::/48"), 1430
	s.Self.PublicIPv6, s.Self.VTEPv6 = netip.MustParseAddr("2001:db8::1"), s.Self.VTEP
	if subnet != "" {
		s.Self.IPv6Subnet = netip.MustParsePrefix(subnet)
	}
	if only {
		s.Network, s.Self.PublicIP, s.Self.Subnet = netip.Prefix{}, netip.Addr{}, netip.Prefix{}
	}
	return k
}

// TestApplyIPv6 is TestApply for the IPv6 half, alone and beside the other.
func TestApplyIPv6(t *testing.T) {
	for _, only := range []bool{true, false} {
		t.Run(fmt.Sprintf("only=%t", only), func(t *testing.T) {
			inNamespace(t)
			repair6(t, kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", only))
		})
	}
}

func repair6(t *testing.T, k Kernel) {
	link := addTAP(t, "tulle-t0")
	apply(t, k, ChangedSysctl, ChangedLink, ChangedAddress, ChangedNeighbour, ChangedRoute)
	apply(t, k)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	must(err)
	if len(addrs) != 1 || addrs[0].IPNet.String() != "fd00:244:0:1::/128" || addrs[0].Flags&unix.IFA_F_TENTATIVE != 0 {
		t.Fatalf("addresses %v, want the tunnel's alone and at once", addrs)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) != 3 {
		t.Fatalf("%d routes of ours, %v, want 3", len(routes), err)
	}
	for _, r := range routes {
		must(netlink.RouteDel(&r))
		apply(t, k, ChangedRoute)
	}
	must(netlink.LinkSetDown(link)) // the kernel removes everything of IPv6 with it
	apply(t, k, ChangedLink, ChangedAddress, ChangedNeighbour, ChangedRoute)
	must(netlink.AddrDel(link, &addrs[0]))
	apply(t, k, ChangedAddress, ChangedRoute)
	foreign, err := netlink.ParseAddr("fd00:9::9/64")
	must(err)
	must(netlink.AddrAdd(link, foreign))
	apply(t, k, ChangedAddress)
	must(netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP("fd00:244:0:1:ffff:ffff:ffff:fffe")}))
	apply(t, k, ChangedNeighbour)
	for file, want := range map[string][]Change{
		"all/forwarding":         {ChangedSysctl},
		"tulle-t0/addr_gen_mode": {ChangedSysctl, ChangedAddress}, // there is a link-local one at once
	} {
		if _, err := writeSysctl(conf6+file, "0"); err != nil {
			t.Fatal(err)
		}
		apply(t, k, want...)
	}
	apply(t, k)
}

// TestApplyFamilies demands that nothing of a family stays that the network has no longer, or of an old subnet.
func TestApplyFamilies(t *testing.T) {
	inNamespace(t)
	link := addTAP(t, "tulle-t0")
	v4 := kernelUnderTest("10.244.1.0/24")
	check := func(k Kernel, routes, addrs4, addrs6, neighbours int) {
		t.Helper()
		if _, err := k.Apply(); err != nil {
			t.Fatal(err)
		}
		owned, err1 := ownedRoutes()
		have4, err2 := netlink.AddrList(link, netlink.FAMILY_V4)
		have6, err3 := netlink.AddrList(link, netlink.FAMILY_V6)
		neigh, err4 := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V6)
		neigh = slices.DeleteFunc(neigh, func(n netlink.Neigh) bool { return n.State != netlink.NUD_PERMANENT })
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
		if got, want := [4]int{len(owned), len(have4), len(have6), len(neigh)}, [4]int{routes, addrs4, addrs6, neighbours}; got != want {
			t.Errorf("routes, IPv4 and IPv6 addresses, neighbours: %v, want %v", got, want)
		}
	}
	check(v4, 3, 1, 0, 0)
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/tulle-t0/disable_ipv6"); string(b) != "1\n" {
		t.Errorf("disable_ipv6 is %q (%v) without an IPv6 network", b, err)
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding"); string(b) != "0\n" {
		t.Errorf("IPv6 forwarding is %q (%v) without an IPv6 network", b, err)
	}
	check(v4.with6("fd00:244:0:1::/64", false), 6, 1, 1, 1)
	check(v4.with6("fd00:244:0:2::/64", false), 6, 1, 1, 1)
	check(v4.with6("fd00:244:0:2::/64", true), 3, 0, 1, 1)
	check(kernelUnderTest("").with6("", true), 0, 0, 0, 0)
	check(v4.with6("fd00:244:0:2::/64", false), 6, 1, 1, 1)
	check(v4, 3, 1, 0, 0)
	if err := v4.with6("fd00:244:0:2::/64", false).Remove(); err != nil {
		t.Error(err)
	}
	if routes, err := ownedRoutes(); err != nil || len(routes) != 0 {
		t.Errorf("left %v, %v", routes, err)
	}
}

// TestBridgeBeforeTAP demands that the tunnel address is the node's own, and the engine reached through the TAP, though a
// bridge with the subnet was there first.
func TestBridgeBeforeTAP(t *testing.T) {
	inNamespace(t)
	addBridge(t, "tulle-br0", "fd00:244:0:1::1/64")
	link := addTAP(t, "tulle-t0")
	k := kernelUnderTest("").with6("fd00:244:0:1::/64", true)
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0); err != nil { // anycast is for routers
		t.Fatal(err)
	}
	apply(t, k, ChangedSysctl, ChangedLink, ChangedAddress, ChangedNeighbour, ChangedRoute)
	apply(t, k)
	for addr, want := range map[string][2]int{
		"fd00:244:0:1::": {unix.RTN_LOCAL, 0}, "fd00:244:0:1:ffff:ffff:ffff:fffe": {unix.RTN_UNICAST, link.Attrs().Index},
		"fd00:244:0:2::5": {unix.RTN_UNICAST, link.Attrs().Index},
	} {
		await(t, fmt.Sprintf("%s to be of type %d and behind link %d", addr, want[0], want[1]), func() bool { // addresses take effect a little later
			got, err := netlink.RouteGet(net.ParseIP(addr))
			return err == nil && got[0].Type == want[0] && (want[1] == 0 || got[0].LinkIndex == want[1])
		})
	}
}

// TestNoIPv6 demands one clear sentence from a kernel without IPv6.
func TestNoIPv6(t *testing.T) {
	k := kernelUnderTest("").with6("", true)
	err := k.haveIPv6(t.TempDir() + "/absent")
	if err == nil || !strings.Contains(err.Error(), "this kernel has no IPv6 (booted with ipv6.disable=1?), but the cluster has the IPv6 network fd00:244::/48") {
		t.Error(err)
	}
}

// TestApplySubnetChange demands that nothing of an old subnet stays, and nothing at all without one.
func TestApplySubnetChange(t *testing.T) {
	inNamespace(t)
	addTAP(t, "tulle-t0")
	apply(t, kernelUnderTest("10.244.1.0/24"), ChangedSysctl, ChangedLink, ChangedAddress, ChangedNeighbour, ChangedRoute)
	apply(t, kernelUnderTest("10.244.7.0/24"), ChangedAddress, ChangedNeighbour, ChangedRoute)
	routes, err := ownedRoutes()
	if err != nil || len(routes) != 3 {
		t.Fatalf("%d routes of ours, %v, want 3", len(routes), err)
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

// TestReachedLast demands that a subnet which was just confirmed is not called ready before the kernel has what belongs to it.
func TestReachedLast(t *testing.T) {
	inNamespace(t)
	addTAP(t, "tulle-t0")
	r := NewReconciler(kernelUnderTest(""), func(State) {})
	for _, subnet := range []string{"", "10.244.1.0/24", "10.244.2.0/24", ""} {
		r.Set(kernelUnderTest(subnet).State)
		if before := r.Err(); before == nil && subnet != "" {
			t.Errorf("subnet %q is ready before it was applied", subnet)
		}
		if r.apply(true); r.Err() != nil {
			t.Errorf("subnet %q: %v", subnet, r.Err())
		}
	}
}
