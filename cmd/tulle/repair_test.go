package main

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestRepair deletes by hand what the daemon made in the kernel, one thing after the other, and demands that each comes
// back, is counted, and that pods reach each other again. How long it took is logged, not judged.
func TestRepair(t *testing.T) { repair(t, lab.DeviceTAP) }

func repair(t *testing.T, device string) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Device: device})
	n, p := l.Nodes()[0], between(l, 1, 2)
	for _, c := range []struct {
		name   string
		remove func(netlink.Link) error
		count  func(*statusReport) uint64
	}{
		{"address", removeAddress, repaired(control.ChangedAddress)},
		{"route", removeRoute, repaired(control.ChangedRoute)},
		{"link down", func(link netlink.Link) error { return netlink.LinkSetDown(link) }, repaired(control.ChangedLink)},
		{"MAC", func(link netlink.Link) error { return netlink.LinkSetHardwareAddr(link, []byte{2, 0, 0, 0, 0, 9}) }, repaired(control.ChangedLink)},
		{"TAP", func(link netlink.Link) error { return netlink.LinkDel(link) }, func(r *statusReport) uint64 { return r.TAP.Reopened }},
	} {
		if c.name == "MAC" && device == lab.DeviceTUN {
			continue // it has none
		}
		t.Run(c.name, func(t *testing.T) {
			before, start := c.count(status(t, l, 1)), time.Now()
			in(t, n, func() error {
				link, err := netlink.LinkByName(tapName)
				if err != nil {
					return err
				}
				return c.remove(link)
			})
			awaitState(t, n)
			t.Logf("%s was back %s after its removal began", c.name, time.Since(start).Round(time.Millisecond))
			pingUntil(t, p)
			if after := c.count(status(t, l, 1)); after <= before {
				t.Errorf("repairs %d after %d", after, before)
			}
		})
	}
	if r := status(t, l, 1); !r.Engine.Balanced || r.NotReady != "" || len(r.Problems) != 0 {
		t.Errorf("status after the repairs: %+v", r)
	}
	// The kernel's counters began anew with the TAP: they no longer compare.
	if err := l.StopNode(t.Context(), 1, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

func in(t *testing.T, n lab.Node, f func() error) {
	t.Helper()
	if err := lab.In(n.Namespace, f); err != nil {
		t.Fatal(err)
	}
}

func repaired(c control.Change) func(*statusReport) uint64 {
	return func(r *statusReport) uint64 { return r.Repairs[c] }
}

func removeAddress(link netlink.Link) error {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) == 0 {
		return errors.Join(err, errors.New("no address"))
	}
	return netlink.AddrDel(link, &addrs[0])
}

func removeRoute(link netlink.Link) error {
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil || len(routes) == 0 {
		return errors.Join(err, errors.New("no route"))
	}
	return netlink.RouteDel(&routes[0])
}

// awaitState waits until TAP, address and routes are what they have to be.
func awaitState(t *testing.T, n lab.Node) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !complete(t, n) {
		if time.Now().After(deadline) {
			t.Fatal("not repaired")
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func complete(t *testing.T, n lab.Node) (ok bool) {
	t.Helper()
	in(t, n, func() error {
		link, err := netlink.LinkByName(tapName)
		if err != nil {
			return nil
		}
		addrs, _ := netlink.AddrList(link, netlink.FAMILY_V4)
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
		ok = len(addrs) == 1 && len(routes) == 2 && (len(link.Attrs().HardwareAddr) == 0 || link.Attrs().HardwareAddr.String() == n.VtepMAC)
		return err
	})
	return ok
}

// pingUntil demands that pings are answered again within a while.
func pingUntil(t *testing.T, p lab.Pair) {
	t.Helper()
	for range 50 {
		if ping(t, p, bench.Ping{Count: 1, Timeout: 200 * time.Millisecond}).Received == 1 {
			return
		}
	}
	t.Errorf("%s does not reach %s", p.From, p.Addr)
}
