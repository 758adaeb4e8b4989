package control

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/tables"
)

func peer(name, publicIP, subnet string) Node {
	return Node{Name: name, PublicIP: netip.MustParseAddr(publicIP), Subnet: netip.MustParsePrefix(subnet), BackendType: netconf.TypeVXLAN, VNI: 1, VTEP: tables.MAC{2, 0, 0, 0, 0, 9}}
}

// TestCompilePods demands routes to the ports of pods, which the node's other pods and its own addresses keep apart from.
func TestCompilePods(t *testing.T) {
	s := kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false).State
	pod := func(port uint32, a4, a6 string) *tables.Pod {
		return &tables.Pod{Port: port, Addr4: netip.MustParseAddr(a4), Addr6: netip.MustParseAddr(a6)}
	}
	s.Pods = []*tables.Pod{
		pod(1, "10.244.1.9", "fd00:244:0:1::9"), pod(2, "10.244.7.2", "fd00:244:0:1::a"), // of a subnet that was this node's
		pod(3, "10.244.1.254", "fd00:244:0:1::b"),
	}
	set, _, err := Compile(1, s)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]uint32{
		"10.244.1.9": 1, "fd00:244:0:1::9": 1, "10.244.1.10": 0, "10.244.7.2": 0, "fd00:244:0:1::a": 2, "10.244.1.254": 0, "fd00:244:0:1::b": 3, "198.51.100.1": 0,
	} {
		got := uint32(0)
		if p := set.PodAt(netip.MustParseAddr(addr)); p != nil {
			got = p.Port
		}
		if got != want {
			t.Errorf("%s is at port %d, want %d", addr, got, want)
		}
	}
	if r := set.Lookup(netip.MustParseAddr("10.244.1.254")); r.Kind != tables.Reject {
		t.Errorf("the engine's address is %s", r.Kind)
	}
	without := s
	if without.Pods = s.Pods[:1]; without.Equal(s) {
		t.Error("states with other pods are equal")
	}
}

// TestCompile demands the right route for each kind of address, and that one bad peer costs only itself.
func TestCompile(t *testing.T) {
	s := kernelUnderTest("10.244.1.0/24").State
	foreign := peer("udp", "192.0.2.5", "10.244.5.0/24")
	foreign.BackendType = "udp"
	otherVNI := peer("vni", "192.0.2.6", "10.244.6.0/24")
	otherVNI.VNI = 7
	s.Peers = []Node{
		peer("b", "192.0.2.2", "10.244.2.0/24"), peer("c", "192.0.2.3", "10.244.3.0/24"), foreign, otherVNI,
		peer("twin", "192.0.2.2", "10.244.9.0/24"), peer("overlap", "192.0.2.9", "10.244.2.128/25"), peer("mine", "192.0.2.10", "10.244.1.0/24"),
		peer("self", "192.0.2.1", "10.244.11.0/24"), peer("outside", "192.0.2.12", "10.9.0.0/24"), peer("inside", "10.244.2.2", "10.244.13.0/24"),
	}
	set, ignored, err := Compile(3, s)
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]string{}
	for _, i := range ignored {
		reasons[i.Peer.Name] = i.Reason
	}
	for name, want := range map[string]string{
		"udp": "backend udp", "vni": "VNI 7", "twin": "also b's", "overlap": "overlaps 10.244.2.0/24 of b", "mine": "overlaps this node's",
		"self": "this node's own", "outside": "not inside the network", "inside": "is inside the network",
	} {
		if !strings.Contains(reasons[name], want) {
			t.Errorf("%s: reason %q, want %q", name, reasons[name], want)
		}
	}
	for addr, want := range map[string]string{
		"10.244.1.9": "local", "10.244.1.0": "host", "10.244.1.1": "host", "10.244.1.254": "reject", "10.244.2.9": "peer b", "10.244.3.9": "peer c",
		"10.244.77.1": "reject", "192.0.2.2": "none", "10.244.5.1": "reject",
	} {
		got := "none"
		if r := set.Lookup(netip.MustParseAddr(addr)); r != nil {
			got = r.Kind.String()
			if r.Peer != nil {
				got += " " + r.Peer.Name
			}
		}
		if got != want {
			t.Errorf("route of %s is %s, want %s", addr, got, want)
		}
	}
	if set.Generation != 3 || set.Peers() != 2 || set.Owner(netip.MustParseAddr("192.0.2.3")).Name != "c" {
		t.Errorf("set %+v", set)
	}
}

// peer6 gives a peer an IPv6 half.
func peer6(n Node, publicIPv6, subnet string) Node {
	n.PublicIPv6, n.IPv6Subnet, n.VTEPv6 = netip.MustParseAddr(publicIPv6), netip.MustParsePrefix(subnet), tables.MAC{2, 0, 0, 0, 0, 6}
	return n
}

func only6(n Node) Node {
	n.PublicIP, n.Subnet, n.VTEP = netip.Addr{}, netip.Prefix{}, tables.MAC{}
	return n
}

// dualPeers are peers of fd00:244:0:1::/64 and 10.244.1.0/24 with one thing wrong each, but for the first three.
func dualPeers() []Node {
	noSubnet := peer6(peer("nosubnet", "192.0.2.13", "10.244.13.0/24"), "2001:db8::13", "::/0")
	noSubnet.IPv6Subnet = netip.Prefix{}
	noPublic := peer6(peer("nopublic", "192.0.2.14", "10.244.14.0/24"), "2001:db8::14", "fd00:244:0:14::/64")
	noPublic.PublicIP = netip.Addr{}
	udp := peer6(peer("udp", "192.0.2.15", "10.244.15.0/24"), "2001:db8::15", "fd00:244:0:15::/64")
	udp.BackendType = ""
	return []Node{
		peer("four", "192.0.2.2", "10.244.2.0/24"),
		only6(peer6(peer("six", "192.0.2.3", "10.244.3.0/24"), "2001:db8::3", "fd00:244:0:3::/64")),
		peer6(peer("dual", "192.0.2.4", "10.244.4.0/24"), "2001:db8::4", "fd00:244:0:4::/64"),
		peer6(peer("twin6", "192.0.2.5", "10.244.5.0/24"), "2001:db8::4", "fd00:244:0:5::/64"),
		peer6(peer("twin4", "192.0.2.4", "10.244.6.0/24"), "2001:db8::6", "fd00:244:0:6::/64"),
		peer6(peer("overlap6", "192.0.2.7", "10.244.7.0/24"), "2001:db8::7", "fd00:244:0:4:8000::/65"),
		peer6(peer("mine6", "192.0.2.8", "10.244.8.0/24"), "2001:db8::8", "fd00:244:0:1::/64"),
		peer6(peer("self6", "192.0.2.9", "10.244.9.0/24"), "2001:db8::1", "fd00:244:0:9::/64"),
		peer6(peer("outside6", "192.0.2.10", "10.244.10.0/24"), "2001:db8::10", "fd00:9::/64"),
		peer6(peer("inside6", "192.0.2.11", "10.244.11.0/24"), "fd00:244:0:3::3", "fd00:244:0:11::/64"),
		peer6(peer("both", "10.244.2.2", "10.244.12.0/24"), "2001:db8::12", "fd00:9:1::/64"),
		noSubnet, noPublic, udp,
	}
}

// TestCompileDualStack demands that a half which is wrong costs that half alone.
func TestCompileDualStack(t *testing.T) {
	s := kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false).State
	s.Peers = dualPeers()
	set, ignored, err := Compile(3, s)
	if err != nil {
		t.Fatal(err)
	}
	checkIgnored(t, ignored, map[string]Ignored{
		"twin6":    {Routed: true, Reason: "public IPv6 address 2001:db8::4 is also dual's"},
		"twin4":    {Routed: true, Reason: "public IP 192.0.2.4 is also dual's"},
		"overlap6": {Routed: true, Reason: "subnet fd00:244:0:4:8000::/65 overlaps fd00:244:0:4::/64 of dual"},
		"mine6":    {Routed: true, Reason: "subnet fd00:244:0:1::/64 overlaps this node's fd00:244:0:1::/64"},
		"self6":    {Routed: true, Reason: "public IPv6 address 2001:db8::1 is this node's own"},
		"outside6": {Routed: true, Reason: "subnet fd00:9::/64 is not inside the network fd00:244::/48"},
		"inside6":  {Routed: true, Reason: "public IPv6 address fd00:244:0:3::3 is inside the network fd00:244::/48"},
		"both":     {Reason: "public IP 10.244.2.2 is inside the network 10.244.0.0/16; subnet fd00:9:1::/64 is not inside the network fd00:244::/48"},
		"nosubnet": {Routed: true, Reason: "public IPv6 address 2001:db8::13 without a subnet"},
		"nopublic": {Routed: true, Reason: "subnet 10.244.14.0/24 without a public IP"},
		"udp":      {Reason: "backend udp: this node runs vxlan"},
	})
	checkKinds(t, set, map[string]string{
		"10.244.1.9": "local", "10.244.1.254": "reject", "10.244.2.9": "peer four", "10.244.4.9": "peer dual", "10.244.9.9": "peer self6",
		"10.244.14.9": "reject", "10.244.15.9": "reject", "fd00:244:0:1::9": "local", "fd00:244:0:1::": "host", "fd00:244:0:1::1": "host",
		"fd00:244:0:1:ffff:ffff:ffff:fffe": "reject", "fd00:244:0:3::9": "peer six", "fd00:244:0:4:8000::9": "peer dual",
		"fd00:244:0:14::9": "peer nopublic", "fd00:244:0:9::9": "reject", "fd00:9::9": "none", "2001:db8::4": "none",
	})
	n := set.Node
	if n.Engine.String() != "10.244.1.254" || n.Engine6.String() != "fd00:244:0:1:ffff:ffff:ffff:fffe" || n.Port != 8472 || n.MTU != 1430 {
		t.Errorf("node %+v", n)
	}
	four, six := set.Lookup(netip.MustParseAddr("10.244.4.9")).Peer, set.Lookup(netip.MustParseAddr("fd00:244:0:4::9")).Peer
	if four == six || four.Endpoint.String() != "192.0.2.4:8472" || six.Endpoint.String() != "[2001:db8::4]:8472" || four.VTEP == six.VTEP ||
		four.Probe.String() != "10.244.4.0" || six.Probe.String() != "fd00:244:0:4::" || four.Name != six.Name {
		t.Errorf("the two halves: %+v and %+v", four, six)
	}
	if set.Owner(netip.MustParseAddr("2001:db8::4")) != six || set.Owner(netip.MustParseAddr("192.0.2.4")) != four || set.Owner(netip.MustParseAddr("fd00:244:0:4::1")) != six {
		t.Error("sources are not each half's own")
	}
}

// TestCompileOneFamily demands that a node of one family takes that half of its peers and nothing else.
func TestCompileOneFamily(t *testing.T) {
	s := kernelUnderTest("10.244.1.0/24").State
	s.Peers = dualPeers()[:3]
	set, ignored, err := Compile(1, s)
	if err != nil {
		t.Fatal(err)
	}
	checkIgnored(t, ignored, map[string]Ignored{"six": {Reason: "it has no subnet of this node's network 10.244.0.0/16"}})
	checkKinds(t, set, map[string]string{"10.244.4.9": "peer dual", "fd00:244:0:4::9": "none"})
	if set.Node.Engine6.IsValid() {
		t.Errorf("node %+v", set.Node)
	}
	s = kernelUnderTest("").with6("fd00:244:0:1::/64", true).State
	s.Peers = dualPeers()[:3]
	if set, ignored, err = Compile(1, s); err != nil {
		t.Fatal(err)
	}
	checkIgnored(t, ignored, map[string]Ignored{"four": {Reason: "it has no subnet of this node's network fd00:244::/48"}})
	checkKinds(t, set, map[string]string{"10.244.4.9": "none", "fd00:244:0:4::9": "peer dual", "fd00:244:0:3::9": "peer six"})
	if set.Node.Engine.IsValid() || set.Node.Gateway == (tables.MAC{}) {
		t.Errorf("node %+v", set.Node)
	}
}

// TestCompileUDP demands that flannel's udp leases, which carry no type, are peers of a udp node.
func TestCompileUDP(t *testing.T) {
	s := kernelUnderTest("10.244.1.0/24").State
	s.Self.BackendType, s.Self.VNI, s.Self.VTEP = netconf.TypeUDP, 0, tables.MAC{}
	named, unnamed, vxlan := peer("named", "192.0.2.2", "10.244.2.0/24"), peer("unnamed", "192.0.2.3", "10.244.3.0/24"), peer("vxlan", "192.0.2.4", "10.244.4.0/24")
	named.BackendType, unnamed.BackendType = netconf.TypeUDP, ""
	s.Peers = []Node{named, unnamed, vxlan}
	set, ignored, err := Compile(1, s)
	if err != nil {
		t.Fatal(err)
	}
	checkIgnored(t, ignored, map[string]Ignored{"vxlan": {Reason: "backend vxlan: this node runs udp"}})
	checkKinds(t, set, map[string]string{"10.244.2.9": "peer named", "10.244.3.9": "peer unnamed", "10.244.4.9": "reject"})
}

// TestPathMTU demands the smaller of what the tunnel takes and what was measured, by outer address.
func TestPathMTU(t *testing.T) {
	s := kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false).State
	s.Peers = dualPeers()[:3]
	s.Limits = [2]int{1450, 1430}
	s.PathMTU = map[netip.Addr]int{netip.MustParseAddr("192.0.2.4"): 1372, netip.MustParseAddr("2001:db8::3"): 8000}
	set, _, err := Compile(1, s)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]int{"10.244.4.1": 1372, "fd00:244:0:4::1": 1430, "fd00:244:0:3::1": 1430, "10.244.2.1": 1450} {
		if got := set.Lookup(netip.MustParseAddr(addr)).Peer.MTU; got != want {
			t.Errorf("%s: MTU %d, want %d", addr, got, want)
		}
	}
}

// TestStateEqual demands that each part counts for the tables, and for the kernel only what the kernel has.
func TestStateEqual(t *testing.T) {
	state := func() State {
		s := kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false).State
		s.Peers, s.PathMTU = dualPeers(), map[netip.Addr]int{netip.MustParseAddr("192.0.2.4"): 1372}
		return s
	}
	if a, b := state(), state(); !a.Equal(b) || !a.sameKernel(b) {
		t.Error("two equal states differ")
	}
	for what, c := range map[string]struct {
		change     func(*State)
		sameKernel bool
	}{
		"subnet":   {func(s *State) { s.Self.IPv6Subnet = netip.Prefix{} }, false},
		"network":  {func(s *State) { s.Network = netip.Prefix{} }, false},
		"network6": {func(s *State) { s.IPv6Network = netip.Prefix{} }, false},
		"MTU":      {func(s *State) { s.MTU-- }, false},
		"port":     {func(s *State) { s.Port++ }, true},
		"peer":     {func(s *State) { s.Peers[2].VTEPv6[5]++ }, true},
		"path MTU": {func(s *State) { s.PathMTU[netip.MustParseAddr("192.0.2.4")]-- }, true},
	} {
		s := state()
		c.change(&s)
		if s.Equal(state()) || s.sameKernel(state()) != c.sameKernel {
			t.Errorf("another %s: Equal %t, sameKernel %t", what, s.Equal(state()), s.sameKernel(state()))
		}
	}
}

func checkIgnored(t *testing.T, got []Ignored, want map[string]Ignored) {
	t.Helper()
	for _, i := range got {
		if w := want[i.Peer.Name]; i.Reason != w.Reason || i.Routed != w.Routed {
			t.Errorf("%s: %q (routed %t), want %q (%t)", i.Peer.Name, i.Reason, i.Routed, w.Reason, w.Routed)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d peers ignored, want %d", len(got), len(want))
	}
}

// checkKinds looks each address up: the route's kind and, of a peer's, its name.
func checkKinds(t *testing.T, set *tables.Set, want map[string]string) {
	t.Helper()
	for addr, want := range want {
		got := "none"
		if r := set.Lookup(netip.MustParseAddr(addr)); r != nil {
			if got = r.Kind.String(); r.Peer != nil {
				got += " " + r.Peer.Name
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	for subnet, want := range map[string][3]string{
		"fd00:244:0:1::/64": {"fd00:244:0:1::", "fd00:244:0:1::1", "fd00:244:0:1:ffff:ffff:ffff:fffe"},
		"fd00::ab8/126":     {"fd00::ab8", "fd00::ab9", "fd00::aba"},
		"fd00:244::/45":     {"fd00:244::", "fd00:244::1", "fd00:244:7:ffff:ffff:ffff:ffff:fffe"},
		"10.244.1.0/24":     {"10.244.1.0", "10.244.1.1", "10.244.1.254"},
		"10.0.0.0/8":        {"10.0.0.0", "10.0.0.1", "10.255.255.254"},
		"10.1.2.4/30":       {"10.1.2.4", "10.1.2.5", "10.1.2.6"},
	} {
		p := netip.MustParsePrefix(subnet)
		if got := [3]string{TunnelAddr(p).String(), GatewayAddr(p).String(), EngineAddr(p).String()}; got != want {
			t.Errorf("%s: %v, want %v", subnet, got, want)
		}
	}
}

func TestVTEPMAC(t *testing.T) {
	a := VTEPMAC(netip.MustParseAddr("192.0.2.1"), 1)
	if a != VTEPMAC(netip.MustParseAddr("192.0.2.1"), 1) {
		t.Error("not the same twice")
	}
	if a == VTEPMAC(netip.MustParseAddr("192.0.2.2"), 1) || a == VTEPMAC(netip.MustParseAddr("192.0.2.1"), 2) || a == gatewayMAC(Node{PublicIP: netip.MustParseAddr("192.0.2.1"), VNI: 1}) {
		t.Error("not different for another node, VNI or use")
	}
	if a[0]&3 != 2 {
		t.Errorf("%s is not a local unicast address", a)
	}
}

// TestSubnetEnv holds the file against flannel's own format.
func TestSubnetEnv(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "subnet.env")
	s := kernelUnderTest("10.244.1.0/24").State
	for range 2 {
		if err := WriteSubnetEnv(path, SubnetEnv(s, false)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	const want = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	if err != nil || string(got) != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
	for want, s := range map[string]State{
		"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\n" +
			"FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n": kernelUnderTest("10.244.1.0/24").with6("fd00:244:0:1::/64", false).State,
		"FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n": kernelUnderTest("").with6("fd00:244:0:1::/64", true).State,
	} {
		if got := SubnetEnv(s, true); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v, want mode 0644", info, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
}
