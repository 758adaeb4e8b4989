package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestDirectRouting is two segments with two nodes each. Those of one segment exchange packets as they are, the others encapsulate, and
// one node of the four is not asked to and takes native packets all the same.
func TestDirectRouting(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "net-conf.json")
	err := os.WriteFile(conf, []byte(`{"EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd44::/48", "Backend": {"Type": "vxlan", "DirectRouting": true}}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l := labUnderTest(t, lab.Config{Nodes: 4, Pods: 1, Family: lab.FamilyDual, Routed: true, NodeArgsFor: func(number int) []string {
		if number == 4 {
			return nil
		}
		return []string{"--config", conf}
	}})
	for n, near := range map[int]string{1: "n3", 2: "n4", 3: "n1"} {
		awaitNode(t, l, n, func(r *statusReport) bool { return onlyNative(r, near) })
	}
	awaitNode(t, l, 4, func(r *statusReport) bool { return onlyNative(r, "") })
	pingAll(t, l.PodPairs(), smallPing)
	pingAll(t, l.PodPairs(), largePing)
	pingAll(t, l.NodePairs(), smallPing)
	for _, c := range []struct{ from, to, carries int }{{1, 3, 0}, {3, 1, 0}, {1, 2, 1}, {2, 4, 0}, {4, 2, 4}} {
		transfersBy(t, l, c.from, c.to, c.carries)
	}
	checkSteered(t, l)
	checkForgedNative(t, l, podsOf(t, l, "n2"))
	checkOffLink(t, l)
}

// onlyNative says whether exactly the named peer is reached without encapsulation.
func onlyNative(r *statusReport, name string) bool {
	found := name == ""
	for _, p := range r.Peers {
		if p.Native != (p.Name == name) {
			return false
		}
		found = found || p.Native
		for _, path := range p.Paths { // whose answers may come natively
			if path.State != "up" {
				return false
			}
		}
	}
	return found
}

// transfersBy demands that TCP from a node's pod to another's is carried by the engine of one node in its direction, 0 for none.
func transfersBy(t *testing.T, l *lab.Lab, from, to, carries int) {
	t.Helper()
	const size = 10 << 20
	before := status(t, l, from).Verdicts["encapsulated"]
	transfer(t, between(l, from, to), size)
	sent := status(t, l, from).Verdicts["encapsulated"] - before
	if all := uint64(size / 1500); (sent > all) != (carries == from) {
		t.Errorf("pod of n%d to pod of n%d: %d segments encapsulated of %d", from, to, sent, all)
	}
}

// refused sends to a port that nobody has, and returns what comes of it.
func refused(from func(func() error) error, to netip.Addr) (err error) {
	var c net.Conn
	if err := from(func() (err error) { c, err = net.Dial("udp", netip.AddrPortFrom(to, 9).String()); return err }); err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("anybody?")); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	_, err = c.Read(make([]byte, 10))
	return err
}

// inPod runs f in a pod's namespace.
func inPod(p lab.Pod) func(func() error) error {
	return func(f func() error) error { return lab.In(p.Namespace, f) }
}

// checkSteered demands that what comes natively for a pod of CNI passes the engine.
func checkSteered(t *testing.T, l *lab.Lab) {
	t.Helper()
	nodes := l.Nodes()
	rt := newRuntime(t, nodes[0], "1.1.0")
	taps := newTAPRuntime(t, nodes[0], "1.1.0")
	for id, rt := range map[string]*cniRuntime{"native-veth": rt, "native-tap": taps} {
		s := newSandbox(t, id)
		for i, addr := range addrsOf(rt.add(s)) {
			far := nodes[2].Pods[0].Addrs()[i]
			if err := refused(s.run, far); !errors.Is(err, syscall.ECONNREFUSED) { // of which this node's engine sees the refusal alone
				t.Errorf("%s: a closed port of %s: %v, want a refusal", id, far, err)
			}
			before := status(t, l, 1).Verdicts["delivered"]
			r := pingBy(t, inPod(nodes[2].Pods[0]), addr, smallPing)
			passed := status(t, l, 1).Verdicts["delivered"] - before
			if r.Lost() != 0 || passed < uint64(r.Sent) {
				t.Errorf("ping %s natively: %+v, of which %d passed the engine", addr, r, passed)
			}
			before = status(t, l, 1).Verdicts["encapsulated"]
			const pings = 50
			r = pingBy(t, s.run, far, bench.Ping{Count: pings, Size: 56, Interval: time.Millisecond, Timeout: 2 * time.Second})
			if sent := status(t, l, 1).Verdicts["encapsulated"] - before; r.Lost() != 0 || sent >= pings { // nodes probe each other all the time
				t.Errorf("%s: %+v, of its pings %d were encapsulated", id, r, sent)
			}
		}
		if err := rt.del(s); err != nil {
			t.Error(err)
		}
	}
}

// checkForgedNative sends to a pod of node 1 with addresses of node 3's pod, of others of node 2 and of its own node, from the router and from
// node 3.
func checkForgedNative(t *testing.T, l *lab.Lab, others []netip.Addr) {
	t.Helper()
	nodes := l.Nodes()
	for i, to := range nodes[0].Pods[0].Addrs() {
		own, far := nodes[2].Pods[0].Addrs()[i], others[i]
		for _, c := range []struct {
			from string
			as   netip.Addr
		}{{lab.RouterNamespace, own}, {lab.RouterNamespace, far}, {lab.RouterNamespace, to.Prev()}, {nodes[2].Namespace, far}} {
			before := status(t, l, 1).Underlay.OuterDrops[dropNative]
			arrived, err := arrivesAs(c.as, c.from, nodes[0].Pods[0].Namespace, to, underlayAddr(nodes[0], to))
			dropped := status(t, l, 1).Underlay.OuterDrops[dropNative] - before
			if err != nil || arrived || dropped != 3 {
				t.Errorf("as %s from %s: arrived %t, %d counted (%v), want 3", c.as, c.from, arrived, dropped, err)
			}
		}
	}
}

// arrivesAs is arrives with somebody else's address, by way of a node.
func arrivesAs(as netip.Addr, from, at string, to, by netip.Addr) (arrived bool, err error) {
	addr := &netlink.Addr{IPNet: hostNet(as), Flags: unix.IFA_F_NODAD * (as.BitLen() / 128)}
	route := &netlink.Route{Dst: hostNet(to), Gw: by.AsSlice(), Src: as.AsSlice()}
	err = lab.In(from, func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.AddrAdd(lo, addr)
		}
		if err == nil {
			err = netlink.RouteReplace(route)
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("forge %s: %w", as, err)
	}
	arrived, err = arrives(from, at, to)
	return arrived, errors.Join(err, lab.In(from, func() error {
		lo, err := netlink.LinkByName("lo")
		return errors.Join(err, netlink.RouteDel(route), netlink.AddrDel(lo, addr))
	}))
}

// checkOffLink takes nodes 1 and 3 off each other's link in IPv4: what went natively is encapsulated from then on.
func checkOffLink(t *testing.T, l *lab.Lab) {
	t.Helper()
	nodes, router := l.Nodes(), l.Router()
	for _, c := range [][2]lab.Node{{nodes[0], nodes[2]}, {nodes[2], nodes[0]}} {
		err := lab.In(c[0].Namespace, func() error {
			return netlink.RouteAdd(&netlink.Route{Dst: hostNet(c[1].PublicIP), Gw: router[0].AsSlice()})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for _, c := range [][2]lab.Node{{nodes[0], nodes[2]}, {nodes[2], nodes[0]}} {
		for native := true; native; time.Sleep(50 * time.Millisecond) {
			err := lab.In(c[0].Namespace, func() error {
				routes, err := netlink.RouteGet(c[1].Subnet.Addr().Next().AsSlice())
				native = err == nil && routes[0].Gw.Equal(c[1].PublicIP.AsSlice())
				return err
			})
			if err != nil || time.Now().After(deadline) {
				t.Fatalf("%s is off link, and is still routed natively by %s (%v)", c[1].Name, c[0].Name, err)
			}
		}
	}
	transfersBy(t, l, 1, 3, 1)
}

// underlayAddr is the node's address of the family of another one.
func underlayAddr(n lab.Node, like netip.Addr) netip.Addr {
	if like.Is4() {
		return n.PublicIP
	}
	return n.PublicIPv6
}

// TestHostGW is the same two segments with kernel routes alone: nodes of one segment reach each other, without a tunnel and with pods of the
// underlay's MTU, and of those behind the router each says why it does not.
func TestHostGW(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1, Family: lab.FamilyDual, Routed: true, Backend: lab.BackendHostGW, MayFail: map[int]bool{2: true}})
	awaitNode(t, l, 1, func(r *statusReport) bool {
		for _, p := range r.Peers {
			if far := p.Name == "n2"; p.Routable == far || p.Native == far || strings.Contains(p.Reason, "behind a router") != far {
				return false
			}
		}
		return len(r.Peers) == 2 && r.Node.MTU == lab.DefaultMTU
	})
	transfersBy(t, l, 1, 3, 0)
	checkSteered(t, l)
	checkForgedNative(t, l, podsOf(t, l, "n2"))
	if _, stderr, code := tulle(t, nil, nil, "ping", "--run-dir", l.Nodes()[0].RunDir, "n3"); code != exitUsage || !strings.Contains(stderr, "no tunnel to ping through") {
		t.Errorf("tulle ping: exit %d, %q", code, stderr)
	}
	if _, stderr, code := tulle(t, nil, nil, "capture", "--run-dir", l.Nodes()[0].RunDir, "--stage", "tap,wire", "--duration", "1s"); code != 0 {
		t.Errorf("tulle capture: exit %d, %q", code, stderr)
	}
	for _, addr := range podsOf(t, l, "n2") {
		before := status(t, l, 1).Verdicts["drop_reject"]
		refused(inPod(l.Nodes()[0].Pods[0]), addr) // a UDP socket is not told that a network is unreachable
		if told := status(t, l, 1).Verdicts["drop_reject"] - before; told != 1 {
			t.Errorf("%s is behind the router: %d packets rejected, want 1", addr, told)
		}
	}
}

// podsOf are addresses in the subnets of a node, as node 1 knows it.
func podsOf(t *testing.T, l *lab.Lab, name string) (addrs []netip.Addr) {
	t.Helper()
	for _, p := range status(t, l, 1).Peers {
		if p.Name == name {
			for _, subnet := range []string{p.Subnet, p.IPv6Subnet} {
				addrs = append(addrs, netip.MustParsePrefix(subnet).Addr().Next().Next())
			}
		}
	}
	return addrs
}
