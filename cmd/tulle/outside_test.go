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

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/netfilter"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestOutside demands of each mode what it says, between pods, nodes and a machine that is none: the router between the nodes. All of it
// holds with a FORWARD chain that drops, as Docker makes it, on both nodes.
func TestOutside(t *testing.T) {
	for _, mode := range []netfilter.Mode{netfilter.Unset, netfilter.Isolated, netfilter.Flat, netfilter.Island} {
		for _, family := range []string{lab.FamilyV4, lab.FamilyV6} {
			t.Run(fmt.Sprintf("%s/%s", map[bool]string{true: "unset", false: string(mode)}[mode == netfilter.Unset], family), func(t *testing.T) { testOutside(t, mode, family) })
		}
	}
}

func testOutside(t *testing.T, mode netfilter.Mode, family string) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Routed: true, Family: family, NodeArgs: modeArgs(t, mode, family)})
	nodes := l.Nodes()
	n1, n2, router := nodes[0], nodes[1], l.Router()[0]
	pod1, pod2 := n1.Pods[0], n2.Pods[0]
	routePods(t, n1, n2, family)
	checkOutside(t, l, mode, family)
	for _, n := range nodes {
		in(t, n, func() error { return dropForwards(family) })
	}
	waitFor(t, func() bool {
		_, err := seen(pod1.Namespace, pod2.Namespace, netip.Addr{}, pod2.Addrs()[0])
		return err == nil
	})
	checkOutside(t, l, mode, family)
	if mode == netfilter.Island {
		// A machine that has a route to the remote pod by way of the first node only: it appears there as that node.
		if got, err := seenBy(l, n1, n2, family); err != nil || got == router {
			t.Errorf("outside to a remote pod: seen as %v (%v), want an address of the node's subnet", got, err)
		}
		in(t, n1, func() error { return tracksNoPods(pod1.Addrs()[0], pod2.Addrs()[0]) })
	}
	repairNetfilter(t, l, mode)
	stopNetfilter(t, l)
}

func checkOutside(t *testing.T, l *lab.Lab, mode netfilter.Mode, family string) {
	t.Helper()
	nodes := l.Nodes()
	n1, n2, router := nodes[0], nodes[1], l.Router()[0]
	pod1, pod2 := n1.Pods[0], n2.Pods[0]
	own, far, node1 := pod1.Addrs()[0], pod2.Addrs()[0], nodeAddr(n1)
	nothing := netip.Addr{}
	bound := node1
	out, in := own, router // what the other end sees of a pod outside, and a pod of somebody outside
	switch mode {
	case netfilter.Isolated:
		out, in, bound = nothing, nothing, nothing
	case netfilter.Island:
		out = node1
	}
	for _, c := range []struct {
		what, from, at string
		by, to         netip.Addr // the first is what the client binds to; zero for what the kernel chooses
		want           netip.Addr
	}{
		{"pod to pod", pod1.Namespace, pod2.Namespace, nothing, far, own},
		{"pod to outside", pod1.Namespace, lab.RouterNamespace, nothing, router, out},
		{"outside to pod", lab.RouterNamespace, pod1.Namespace, nothing, own, in},
		{"node to its pod", n1.Namespace, pod1.Namespace, nothing, own, nothing},
		{"node's own address to the other's pod", n1.Namespace, pod2.Namespace, node1, far, bound},
		{"node to the other's pod", n1.Namespace, pod2.Namespace, nothing, far, nothing},
		{"pod to its node", pod1.Namespace, n1.Namespace, nothing, node1, own},
		{"pod to the other node", pod1.Namespace, n2.Namespace, nothing, nodeAddr(n2), out},
	} {
		got, err := seen(c.from, c.at, c.by, c.to)
		reached := err == nil
		switch {
		case strings.HasPrefix(c.what, "node to"):
			if !reached {
				t.Errorf("%s: %v", c.what, err)
			}
		case reached != c.want.IsValid() || got != c.want:
			t.Errorf("%s: seen as %v (%v), want %v", c.what, got, err, c.want)
		}
		if got, err := arrives(c.from, c.at, c.to); err != nil || !strings.HasPrefix(c.what, "node") && got != c.want.IsValid() {
			t.Errorf("%s, one way: %v (%v)", c.what, got, err)
		}
	}
}

// arrives sends a few datagrams from one namespace to an address in another one, and says whether one gets there: no answer is needed.
func arrives(from, at string, to netip.Addr) (bool, error) {
	var rx net.PacketConn
	if err := lab.In(at, func() (err error) { rx, err = net.ListenPacket("udp", netip.AddrPortFrom(to, 0).String()); return err }); err != nil {
		return false, err
	}
	defer rx.Close()
	var tx net.Conn
	if err := lab.In(from, func() (err error) { tx, err = net.Dial("udp", rx.LocalAddr().String()); return err }); err != nil {
		return false, err
	}
	defer tx.Close()
	for range 3 {
		if _, err := tx.Write([]byte("one way")); err != nil {
			return false, err
		}
	}
	rx.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, _, err := rx.ReadFrom(make([]byte, 100))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return err == nil, err
}

// tracksNoPods demands that the kernel follows no flow between pods.
func tracksNoPods(a, b netip.Addr) error {
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	for _, f := range flows {
		if f.Forward.SrcIP.Equal(a.AsSlice()) && f.Forward.DstIP.Equal(b.AsSlice()) {
			err = errors.Join(err, fmt.Errorf("the kernel tracks %v", f))
		}
	}
	if len(flows) == 0 {
		err = errors.Join(err, errors.New("the kernel tracks no flow at all"))
	}
	return err
}

// modeArgs is a configuration with the mode; island is asked for with flannel's flag.
func modeArgs(t *testing.T, mode netfilter.Mode, family string) []string {
	conf := map[string]string{lab.FamilyV4: `{"Network": "10.244.0.0/16"`, lab.FamilyV6: `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd44::/48"`}[family]
	switch mode {
	case netfilter.Unset:
		return nil
	case netfilter.Island:
		return []string{"--ip-masq"}
	}
	path := filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(path, []byte(conf+fmt.Sprintf(`, "Mode": %q, "Backend": {"Type": "vxlan"}}`, mode)), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--config", path}
}

// routePods gives the machine outside routes to the pods of both nodes.
func routePods(t *testing.T, n1, n2 lab.Node, family string) {
	t.Helper()
	err := lab.In(lab.RouterNamespace, func() error {
		for _, n := range []lab.Node{n1, n2} {
			if err := netlink.RouteAdd(podRoute(n, n, family)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// podRoute leads to the pods of a node by way of one.
func podRoute(of, by lab.Node, family string) *netlink.Route {
	subnet := of.Subnet
	if family == lab.FamilyV6 {
		subnet = of.IPv6Subnet
	}
	return &netlink.Route{Dst: &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen())}, Gw: nodeAddr(by).AsSlice()}
}

// seenBy is what the second node's pod sees of the machine outside when that goes by way of the first node.
func seenBy(l *lab.Lab, n1, n2 lab.Node, family string) (got netip.Addr, err error) {
	if err := lab.In(lab.RouterNamespace, func() error { return netlink.RouteReplace(podRoute(n2, n1, family)) }); err != nil {
		return got, err
	}
	return seen(lab.RouterNamespace, n2.Pods[0].Namespace, netip.Addr{}, n2.Pods[0].Addrs()[0])
}

// dropForwards does what Docker does to a machine: iptables -P FORWARD DROP.
func dropForwards(family string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	kind := map[string]nftables.TableFamily{lab.FamilyV4: nftables.TableFamilyIPv4, lab.FamilyV6: nftables.TableFamilyIPv6}[family]
	policy := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Name: "filter", Family: kind})
	c.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &policy})
	return c.Flush()
}

// seen connects from one namespace to an address in another one, and returns who the other end believes it is.
func seen(from, at string, by, to netip.Addr) (who netip.Addr, err error) {
	var l net.Listener
	if err := lab.In(at, func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String()); return err }); err != nil {
		return who, err
	}
	defer l.Close()
	accepted := make(chan netip.Addr, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			c.Close()
		}
	}()
	var c net.Conn
	dialer := net.Dialer{Timeout: 1500 * time.Millisecond}
	if by.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(by, 0))
	}
	if err := lab.In(from, func() (err error) { c, err = dialer.Dial("tcp", l.Addr().String()); return err }); err != nil {
		return who, err
	}
	defer c.Close()
	return <-accepted, nil
}

// repairNetfilter deletes by hand what there is of the first node, and demands it back.
func repairNetfilter(t *testing.T, l *lab.Lab, mode netfilter.Mode) {
	t.Helper()
	n := l.Nodes()[0]
	before := status(t, l, 1).Repairs[control.ChangedNetfilter]
	in(t, n, func() error { return atop(true) })
	time.Sleep(time.Second)
	if now := status(t, l, 1).Repairs[control.ChangedNetfilter]; now != before {
		t.Errorf("somebody's rule at the top of FORWARD is contested: %d repairs", now-before)
	}
	in(t, n, func() error { return atop(false) })
	deleted := 0
	in(t, n, func() (err error) { deleted, err = deleteOurs(); return err })
	if want := map[netfilter.Mode]int{netfilter.Unset: 3, netfilter.Flat: 3, netfilter.Isolated: 2, netfilter.Island: 3}[mode]; deleted != want {
		t.Errorf("%d tables and rules of tulle, want %d", deleted, want)
	}
	waitFor(t, func() bool { return status(t, l, 1).Repairs[control.ChangedNetfilter] > before })
	in(t, n, func() error {
		if again, err := deleteOurs(); err != nil || again != deleted {
			return errors.Join(err, fmt.Errorf("%d tables and rules are back, want %d", again, deleted))
		}
		return nil
	})
}

// atop puts a rule of somebody else's that does nothing before all in the FORWARD chain, or takes the first one away.
func atop(there bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := c.ListChains()
	for _, chain := range chains {
		if chain.Name != "FORWARD" {
			continue
		}
		if there {
			c.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain})
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return err
		}
		c.DelRule(rules[0])
	}
	return errors.Join(err, c.Flush())
}

// deleteOurs deletes the table, and the rules in chains of others, and says how many that were.
func deleteOurs() (n int, err error) {
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return 0, err
	}
	for _, chain := range chains {
		if chain.Name != "FORWARD" {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return 0, err
		}
		for _, r := range rules {
			n++
			c.DelRule(r)
		}
	}
	tables, err := c.ListTables()
	if err != nil {
		return 0, err
	}
	for _, table := range tables {
		if table.Name == "tulle" {
			n++
			c.DelTable(table)
		}
	}
	return n, c.Flush()
}

// stopNetfilter demands that a clean stop leaves nothing, neither of this daemon nor of one that was killed before it.
func stopNetfilter(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := errors.Join(l.StopNode(t.Context(), 1, syscall.SIGKILL), l.StartNode(t.Context(), 1)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return status(t, l, 1).NotReady == "" })
	if err := l.StopNode(t.Context(), 1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	in(t, l.Nodes()[0], func() error {
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		for _, r := range rules {
			if r.Protocol == 85 {
				t.Errorf("%s is left", r)
			}
		}
		return err
	})
	in(t, l.Nodes()[0], func() error {
		if n, err := deleteOurs(); err != nil || n > 0 {
			return errors.Join(err, fmt.Errorf("%d tables and rules are left", n))
		}
		return nil
	})
}
