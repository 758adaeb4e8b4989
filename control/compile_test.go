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

func TestAddresses(t *testing.T) {
	for subnet, want := range map[string][3]string{
		"10.244.1.0/24": {"10.244.1.0", "10.244.1.1", "10.244.1.254"},
		"10.0.0.0/8":    {"10.0.0.0", "10.0.0.1", "10.255.255.254"},
		"10.1.2.4/30":   {"10.1.2.4", "10.1.2.5", "10.1.2.6"},
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
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v, want mode 0644", info, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
}
