package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// rate sends bytes over TCP to an address that is at a place, and returns bits/s from the first to the last that arrives.
func rate(t *testing.T, from, at place, to netip.Addr, bytes int64) float64 {
	t.Helper()
	var l net.Listener
	if err := at(func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		var c net.Conn
		if from(func() (err error) { c, err = net.Dial("tcp", l.Addr().String()); return err }) == nil {
			io.Copy(c, io.LimitReader(zeros{}, bytes))
			c.Close()
		}
	}()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != bytes {
		t.Fatalf("%d of %d bytes: %v", n, bytes, err)
	}
	return float64(bytes) * 8 / time.Since(start).Seconds()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestBandwidth limits each way of a container, and leaves the other one and other containers alone. A limit that somebody takes away comes
// back, and nothing of it is left after DEL, also if the daemon was killed meanwhile.
func TestBandwidth(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	t.Run("veth", func(t *testing.T) { bandwidth(t, l, newRuntime(t, n, "1.1.0"), vethLimits(n)) })
	t.Run("tap", func(t *testing.T) { bandwidth(t, l, newTAPRuntime(t, n, "1.1.0"), tapLimits) })
}

// A limitsPlace is where a container's limits are, and the prefixes of the names of the link and the device that have them there.
type limitsPlace func(s *sandbox) (at place, link, device string)

func vethLimits(n lab.Node) limitsPlace {
	return func(*sandbox) (place, string, string) {
		return func(f func() error) error { return lab.In(n.Namespace, f) }, "tulle", "tifb"
	}
}

func tapLimits(s *sandbox) (place, string, string) { return s.run, "eth0", "tifb" }

func bandwidth(t *testing.T, l *lab.Lab, r *cniRuntime, limits limitsPlace) {
	const limit, burst, size = 20e6, 1 << 20, 6 << 20
	free := newSandbox(t, "free")
	other := addrsOf(r.add(free))[0]
	measure := func(s *sandbox, a netip.Addr, in, out bool) {
		t.Helper()
		for way, limited := range map[string]bool{"in": in, "out": out} {
			from, at, to := free.run, s.run, a
			if way == "out" {
				from, at, to = s.run, free.run, other
			}
			got := rate(t, from, at, to, size)
			if limited != (got < limit*size/(size-burst/8)*1.5) {
				t.Errorf("%s %s: %.1f Mbit/s, limited %t", s.id, way, got/1e6, limited)
			}
			t.Logf("%s %s: %.1f Mbit/s", s.id, way, got/1e6)
		}
	}
	for _, c := range []struct {
		id      string
		in, out bool
	}{{"neither", false, false}, {"in", true, false}, {"out", false, true}, {"both", true, true}} {
		s := newSandbox(t, c.id)
		var b cniapi.Bandwidth
		if c.in {
			b.IngressRate, b.IngressBurst = limit, burst
		}
		if c.out {
			b.EgressRate, b.EgressBurst = limit, burst
		}
		asked := map[string]any{"bandwidth": b}
		a := addrsOf(r.addWith(s, asked))[0]
		measure(s, a, c.in, c.out)
		if c.id == "both" {
			unlimit(t, l, s, limits)
			measure(s, a, true, true)
			if err := errors.Join(l.StopNode(t.Context(), 1, syscall.SIGKILL), l.StartNode(t.Context(), 1)); err != nil {
				t.Fatal(err)
			}
			measure(s, a, true, true)
		}
		if err := r.delWith(s, asked); err != nil {
			t.Error(err)
		}
		if left := linksIn(t, s.run); len(left) != 1 { // lo
			t.Errorf("links are left in the container: %v", left)
		}
	}
	if err := r.del(free); err != nil {
		t.Error(err)
	}
	traceless(t, l.Nodes()[0])
}

// linksIn lists the names of the links that are at a place.
func linksIn(t *testing.T, at place) (names []string) {
	t.Helper()
	err := at(func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			names = append(names, link.Attrs().Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// unlimit takes a container's limits away by hand, in each way that there is, and waits until they are back.
func unlimit(t *testing.T, l *lab.Lab, s *sandbox, limits limitsPlace) {
	t.Helper()
	at, link, device := limits(s)
	each := func(prefix string, f func(netlink.Link) error) func() error {
		return func() error {
			links, err := netlink.LinkList()
			for _, link := range links {
				if err == nil && strings.HasPrefix(link.Attrs().Name, prefix) && link.Attrs().Name != tapName {
					err = f(link)
				}
			}
			return err
		}
	}
	without := func(kind string) func(netlink.Link) error {
		return func(link netlink.Link) error {
			all, err := netlink.QdiscList(link)
			for _, q := range all {
				if q.Type() == kind {
					err = errors.Join(err, netlink.QdiscDel(q))
				}
			}
			return err
		}
	}
	for what, damage := range map[string]func() error{
		"the filter of what leaves by the link": each(link, without("tbf")), "the filter of what comes in by it": each(device, without("tbf")),
		"the way to the device": each(link, without("ingress")), "the device": each(device, netlink.LinkDel), "the device, down": each(device, netlink.LinkSetDown),
	} {
		before := status(t, l, 1).Repairs["pod"]
		if err := at(damage); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return status(t, l, 1).Repairs["pod"] > before })
		if t.Failed() {
			t.Fatalf("%s was not mended", what)
		}
	}
}

// TestBandwidthRefused asks for limits that would let nothing through.
func TestBandwidthRefused(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	r := newRuntime(t, l.Nodes()[0], "1.1.0")
	for _, b := range []cniapi.Bandwidth{{IngressRate: 1e6}, {EgressRate: 1e6, EgressBurst: 1464*8 - 1}, {EgressBurst: 1 << 20}, {IngressRate: 7, IngressBurst: 1 << 20}} {
		_, err := r.tryAdd(newSandbox(t, "c"), map[string]any{"bandwidth": b})
		wantCode(t, "a limit", err, cniapi.CodeConfig)
	}
	if links := podLinks(t, l.Nodes()[0]); len(links) != 0 {
		t.Errorf("links are left: %v", links)
	}
}
