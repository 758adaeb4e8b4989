package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
)

// Every family, with and without a router, carries everything between kernel nodes.
func TestFamilies(t *testing.T) {
	for _, family := range []string{FamilyV6, FamilyDual} {
		for _, routed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s routed=%t", family, routed), func(t *testing.T) { testFamily(t, family, routed) })
		}
	}
}

func testFamily(t *testing.T, family string, routed bool) {
	l := up(t, Config{Nodes: 3, Pods: 2, Kernel: kernelNodes(3), Family: family, Routed: routed})
	families := len(familiesOf(family))
	if pods, nodes := len(l.PodPairs()), len(l.NodePairs()); pods != 30*families || nodes != 18*families {
		t.Errorf("%d pairs of pods, %d of nodes and pods in %d families", pods, nodes, families)
	}
	if l.PodMTU() != 1430 || len(l.Router()) != map[bool]int{true: 2 * families}[routed] {
		t.Errorf("pods' MTU %d, router %v", l.PodMTU(), l.Router())
	}
	for _, on := range []bool{true, false} {
		if err := l.SetOffloads(on); err != nil {
			t.Fatal(err)
		}
		pingAll(t, l)
		for _, p := range farPairs(l) {
			ping(t, p, bench.Ping{Count: 3, Size: pingSize(p, l.PodMTU()), DF: true})
			tooLong(t, p, bench.Ping{Size: pingSize(p, l.PodMTU()) + 1, DF: true})
			ping(t, p, bench.Ping{Count: 3, Size: 4000})
			transfer(t, p, 20<<20)
			exchange(t, p, 64)
			exchange(t, p, 9000)
		}
	}
}

// farPairs are the ways from the first pod of node 1 to the last of node 2, one in each family.
func farPairs(l *Lab) (pairs []Pair) {
	to := l.Nodes()[1].Pods
	for _, a := range to[len(to)-1].Addrs() {
		pairs = append(pairs, Pair{From: "tulle-n1-p1", To: to[len(to)-1].Namespace, Addr: a})
	}
	return pairs
}

// pingSize is the payload that fills an MTU.
func pingSize(p Pair, mtu int) int {
	if p.Addr.Is6() {
		return mtu - 48
	}
	return mtu - 28
}

// tooLong demands that the sender is told instead of answered.
func tooLong(t *testing.T, p Pair, opts bench.Ping) {
	t.Helper()
	opts.Timeout = 50 * time.Millisecond
	pinger, err := pinger(p, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer pinger.Close()
	if r, err := pinger.Run(testContext(t)); err != nil || r.Received != 0 || r.Err == nil {
		t.Errorf("%d bytes with DF, %s to %s: %+v, %v", opts.Size, p.From, p.Addr, r, err)
	}
}

// A hop limit counts routers: the pod's node and its peer's, as with flannel's VXLAN.
func TestHops(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2), Family: FamilyDual})
	for _, p := range farPairs(l) {
		if r := pingResult(t, p, bench.Ping{TTL: 3}); r.Received != 1 || r.TTL != 62 {
			t.Errorf("ping %s with TTL 3: %+v, want an answer with 62 left", p.Addr, r)
		}
		if r := pingResult(t, p, bench.Ping{TTL: 2, Timeout: 50 * time.Millisecond}); r.Received != 0 {
			t.Errorf("ping %s with TTL 2: %+v, want none", p.Addr, r)
		}
	}
}

func pingResult(t *testing.T, p Pair, opts bench.Ping) bench.PingResult {
	t.Helper()
	pinger, err := pinger(p, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer pinger.Close()
	r, err := pinger.Run(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// In a lab with IPv6 nobody asks for a router, and no pod for a neighbour or whether its address is its own.
func TestQuiet(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2), Family: FamilyV6})
	pingAll(t, l)
	time.Sleep(2 * time.Second) // a first router solicitation would have been sent (RFC 4861: after at most 1 s)
	for _, namespace := range []string{"tulle-n1", "tulle-n2", "tulle-n1-p1", "tulle-n2-p1"} {
		sent := icmp6Sent(t, namespace)
		if sent["RouterSolicits"] > 0 || strings.Contains(namespace, "-p") && sent["NeighborSolicits"] > 0 {
			t.Errorf("%s has sent %v", namespace, sent)
		}
		if _, counted := sent["EchoReplies"]; !counted {
			t.Errorf("%s counts %v", namespace, sent)
		}
	}
}

// icmp6Sent reads the counters Icmp6Out* of a namespace.
func icmp6Sent(t *testing.T, namespace string) map[string]int {
	t.Helper()
	sent := map[string]int{}
	err := In(namespace, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp6")
		for line := range strings.Lines(string(b)) {
			if name, found := strings.CutPrefix(line, "Icmp6Out"); found {
				var key string
				var n int
				fmt.Sscan(name, &key, &n)
				sent[key] = n
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sent
}

// What daemons of both families are told, and what the kernel node and the pods get from what they claim.
func TestDualDaemons(t *testing.T) {
	for _, store := range []string{StoreGossip, StoreFile} {
		t.Run(store, func(t *testing.T) { testDualDaemons(t, store) })
	}
}

func testDualDaemons(t *testing.T, store string) {
	c := fakeConfig(labDir(t), store)
	c.Family = FamilyDual
	l := up(t, c)
	for _, n := range l.Nodes() {
		if len(n.Pods) != 2 || n.IPv6Subnet != ipv6.subnetAt(int(n.Subnet.Addr().As4()[2])) || n.VTEPv6 != n.IPv6Subnet.Addr() ||
			!n.IPv6Subnet.Contains(n.Pods[1].Addr6) || n.VtepMACv6 == "" {
			t.Errorf("got %+v", n)
		}
		line := strings.Join(n.Args, " ")
		public := fmt.Sprintf("--public-ip %s --public-ipv6 %s", n.PublicIP, n.PublicIPv6)
		given := fmt.Sprintf("--subnet %s,%s", n.Subnet, n.IPv6Subnet)
		if !n.Kernel && (!strings.Contains(line, public) || strings.Contains(line, given) != (store == StoreFile)) {
			t.Errorf("node %d: %s", n.Number, line)
		}
	}
	var conf, want netConf
	readJSON(t, netConfPath(l.Dir()), &conf)
	want.EnableIPv4, want.EnableIPv6, want.Network, want.IPv6Network = true, true, "10.244.0.0/16", "fd44::/48"
	want.Backend.Type, want.Backend.VNI, want.Backend.Port = "vxlan", 1, 8472
	if conf != want {
		t.Errorf("net-conf.json: %+v", conf)
	}
	var peers []peer
	readJSON(t, peersPath(l.Dir()), &peers)
	n := nodeOf(t, l, 3)
	if p := peers[len(peers)-1]; p.PublicIPv6 != "fd77:77::3" || p.IPv6Subnet != n.IPv6Subnet.String() || p.Subnet != n.Subnet.String() ||
		p.BackendData.VtepMAC != n.VtepMAC || p.BackendV6Data.VtepMAC != n.VtepMACv6 || n.VtepMAC == n.VtepMACv6 {
		t.Errorf("peers.json: %+v for %+v", p, n)
	}
	err := In("tulle-n3", func() error {
		link, err := netlink.LinkByName("flannel-v6.1")
		if err != nil {
			return err
		}
		routes, err := netlink.RouteList(link, netlink.FAMILY_V6)
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Gw == nil })
		if len(routes) != 2 {
			t.Errorf("node 3 has these routes to others, not 2: %v", routes)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}
