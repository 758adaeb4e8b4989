package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/pin"
)

var podMAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}

// addPodLink makes a pair that is up; it goes with the namespace.
func addPodLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: name + "p"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestApplyPods takes away rules and routes of pods one by one and demands that exactly that is mended; and that nothing is left
// when the pods or the daemon go.
func TestApplyPods(t *testing.T) {
	inNamespace(t)
	addTAP(t, "tulle-t0")
	k := kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false)
	if _, err := k.Apply(); err != nil {
		t.Fatal(err)
	}
	apply(t, k)
	link := addPodLink(t, "tulle-v1")
	k.Pods = []Pod{
		{Link: "tulle-v1", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:244:0:1::2")}, MAC: podMAC},
		{Link: "tulle-absent", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.3")}, MAC: podMAC},
	}
	apply(t, k, ChangedPod)
	apply(t, k)
	for _, c := range []struct{ family, rules, routes int }{{netlink.FAMILY_V4, 2, 3}, {netlink.FAMILY_V6, 2, 2}} {
		rules, err := ownedRules(c.family)
		if err != nil || len(rules) != c.rules {
			t.Fatalf("rules %v, %v, want %d", rules, err, c.rules)
		}
		routes, err := ownedPodRoutes(c.family)
		if err != nil || len(routes) != c.routes {
			t.Fatalf("routes %v, %v, want %d", routes, err, c.routes)
		}
		for _, r := range rules {
			if err := netlink.RuleDel(&r); err != nil {
				t.Fatal(err)
			}
			apply(t, k, ChangedPod)
		}
		for _, r := range routes {
			if err := netlink.RouteDel(&r); err != nil {
				t.Fatal(err)
			}
			apply(t, k, ChangedPod)
		}
	}
	alien := []pin.Pod{{Link: "tulle0", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.66")}, MAC: podMAC}}
	for what, damage := range map[string]func() error{
		"pinned too":     func() error { return pin.Change(alien, nil) },
		"pinned no more": func() error { return pin.Change(nil, pins(k.Pods[:1])) },
		"nobody pinned":  func() error { _, err := pin.Apply(nil); return err },
	} {
		if err := damage(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		apply(t, k, ChangedPod)
	}
	apply(t, k)
	if err := netlink.LinkSetDown(link); err != nil { // its routes go with that, and nothing else waits for it
		t.Fatal(err)
	}
	apply(t, k)
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	apply(t, k, ChangedPod)
	if err := netlink.LinkDel(link); err != nil { // its routes go with it
		t.Fatal(err)
	}
	apply(t, k)
	addPodLink(t, "tulle-v1")
	apply(t, k, ChangedPod)
	removed := k
	removed.Pods = nil
	apply(t, removed, ChangedPod)
	nothingOfPods(t)
	apply(t, k, ChangedPod)
	if err := k.Remove(); err != nil {
		t.Fatal(err)
	}
	nothingOfPods(t)
}

func nothingOfPods(t *testing.T) {
	t.Helper()
	if left, err := pin.Apply(nil); left || err != nil {
		t.Errorf("pins left: %v %v", left, err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err1 := ownedRules(family)
		routes, err2 := ownedPodRoutes(family)
		if len(rules)+len(routes) != 0 || err1 != nil || err2 != nil {
			t.Errorf("left: %v %v %v %v", rules, routes, err1, err2)
		}
	}
}

// TestPortPods demands that the kernel leads what is for a pod with a port of the engine's to the TAP, wherever it came from, and does nothing
// else for it.
func TestPortPods(t *testing.T) {
	inNamespace(t)
	addTAP(t, "tulle-t0")
	k := kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false)
	r := NewReconciler(k, func(State) {})
	r.apply(true)
	pod := Pod{Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:244:0:1::2")}, MAC: podMAC}
	if err := errors.Join(r.PinPod(pod), r.AddPod(pod)); err != nil {
		t.Fatal(err)
	}
	apply(t, r.want)
	if made, err := pin.Apply(nil); made || err != nil {
		t.Errorf("somebody was pinned: %v", err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := ownedPodRoutes(family)
		if err != nil || len(routes) != 1 || routes[0].Table != engineTable {
			t.Fatalf("routes %v, %v, want one to the TAP", routes, err)
		}
		if err := netlink.RouteDel(&routes[0]); err != nil {
			t.Fatal(err)
		}
		apply(t, r.want, ChangedPod)
	}
	if err := r.RemovePod(pod); err != nil {
		t.Fatal(err)
	}
	r.apply(true)
	nothingOfPods(t)
}

// TestPodWays asks the kernel where packets for a pod go: to the TAP, and from the TAP to the pod's link; with the reconciler's
// short ways and without a whole comparison.
func TestPodWays(t *testing.T) {
	inNamespace(t)
	addTAP(t, "tulle-t0")
	k := kernelUnderTest("10.244.1.0/24")
	r := NewReconciler(k, func(State) {})
	r.apply(true)
	addPodLink(t, "tulle-v1")
	pod := Pod{Link: "tulle-v1", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, MAC: podMAC}
	if err := errors.Join(r.PinPod(pod), r.AddPod(pod)); err != nil {
		t.Fatal(err)
	}
	ways := func() string {
		node, _ := netlink.RouteGetWithOptions(pod.Addrs[0].AsSlice(), nil)
		engine, _ := netlink.RouteGetWithOptions(pod.Addrs[0].AsSlice(), &netlink.RouteGetOptions{Iif: "tulle-t0", SrcAddr: []byte{10, 244, 1, 9}})
		var names []string
		for _, routes := range [][]netlink.Route{node, engine} {
			name := ""
			if len(routes) > 0 {
				if link, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil {
					name = link.Attrs().Name
				}
			}
			names = append(names, name)
		}
		return fmt.Sprint(names)
	}
	if got := ways(); got != "[tulle-t0 tulle-v1]" {
		t.Errorf("ways %s", got)
	}
	apply(t, r.want)
	for range 2 {
		if err := r.RemovePod(pod); err != nil {
			t.Fatal(err)
		}
	}
	if got := ways(); got != "[ ]" {
		t.Errorf("ways %s after the removal", got)
	}
}
