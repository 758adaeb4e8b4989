package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestCNICheck damages one thing after the other: CHECK finds each.
func TestCNICheck(t *testing.T) {
	t.Run("veth", func(t *testing.T) { testCheck(t, newRuntime) })
	t.Run("tap", func(t *testing.T) { testCheck(t, newTAPRuntime) })
}

func testCheck(t *testing.T, runtimeOf func(testing.TB, lab.Node, string) *cniRuntime) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	r := runtimeOf(t, n, "1.1.0")
	at := func(name string, f func(netlink.Link) error) func() error {
		return func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return f(link)
		}
	}
	pod := func(f func(netlink.Link) error) func(*sandbox) error {
		return func(s *sandbox) error { return s.run(at("eth0", f)) }
	}
	node := func(f func(netlink.Link) error) func(*sandbox) error {
		return func(*sandbox) error { return lab.In(n.Namespace, at(podLinks(t, n)[0], f)) }
	}
	damages := map[string]func(*sandbox) error{
		"link down":        pod(netlink.LinkSetDown),
		"link deleted":     pod(netlink.LinkDel),
		"MAC":              pod(func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, []byte{2, 0, 0, 0, 0, 9}) }),
		"MTU":              pod(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) }),
		"neighbour":        pod(removeNeighbour),
		"address":          pod(removeAddress),
		"route":            pod(removeDefaultRoute),
		"node's link down": node(netlink.LinkSetDown),
		"node's neighbour": node(removeNeighbour),
		"node's address":   node(removeAddress),
	}
	for what, damage := range damages {
		if strings.HasPrefix(what, "node's") && bytes.Contains(r.list.Bytes, []byte(`"tap"`)) {
			continue // there is no such end
		}
		t.Run(what, func(t *testing.T) {
			s := newSandbox(t, strings.NewReplacer(" ", "-", "'", "").Replace(what))
			r.add(s)
			if err := r.check(s); err != nil {
				t.Fatal(err)
			}
			if err := damage(s); err != nil {
				t.Fatal(err)
			}
			err := r.check(s)
			var e *types.Error
			if !errors.As(err, &e) || e.Code != cniapi.CodeDamaged && !(what == "link deleted" && e.Code == cniapi.CodeUnknownContainer) { // the sweep may have come first
				t.Errorf("CHECK: %v", err)
			}
			if err := r.del(s); err != nil {
				t.Error(err)
			}
		})
	}
	other := newSandbox(t, "other")
	r.add(other)
	if err := r.del(newSandbox(t, "never-added")); err != nil {
		t.Errorf("DEL of what was never added: %v", err)
	}
	if err := r.check(other); err != nil {
		t.Error(err)
	}
	if err := r.del(other); err != nil {
		t.Error(err)
	}
	traceless(t, n)
}

// removeNeighbour removes the one that a link has.
func removeNeighbour(link netlink.Link) error {
	all, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil || len(all) != 1 {
		return fmt.Errorf("%v %w", all, err)
	}
	return netlink.NeighDel(&all[0])
}

func removeDefaultRoute(link netlink.Link) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: link.Attrs().Index, Gw: []byte{169, 254, 1, 1}}, netlink.RT_FILTER_GW|netlink.RT_FILTER_OIF)
	if err != nil || len(routes) != 1 {
		return fmt.Errorf("%v %w", routes, err)
	}
	return netlink.RouteDel(&routes[0])
}
