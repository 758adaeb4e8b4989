package gossip

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/claim"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// dual makes the configuration of a dual-stack node of one that has IPv4 alone.
func dual(cfg *Config) {
	cfg.IPv6Network, cfg.IPv6SubnetLen = netip.MustParsePrefix("fd00:244::/48"), 64
	cfg.IPv6SubnetMin, cfg.IPv6SubnetMax = netip.MustParseAddr("fd00:244::"), netip.MustParseAddr("fd00:244:0:ffff::")
	if v4 := cfg.Self.PublicIP; v4.Is4() {
		cfg.Self.PublicIPv6 = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 12: v4.As4()[0], v4.As4()[1], v4.As4()[2], v4.As4()[3]})
	}
	cfg.Self.VTEPv6 = cfg.Self.VTEP
}

// with6 is the IPv6 block that goes with 10.244.N.0/24 in a network made by dual.
func with6(t *testing.T, v4 netip.Prefix) netip.Prefix {
	t.Helper()
	return netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%x::/64", v4.Addr().As4()[2]))
}

func TestDualStackCluster(t *testing.T) {
	c := newCluster(t)
	c.tune = dual
	n1, n2, n3 := c.start(1), c.start(2), c.start(3, func(cfg *Config) {
		cfg.Reserved = func() []netip.Prefix { // of four that the first two may have left
			return []netip.Prefix{netip.MustParsePrefix("10.244.128.0/17"), netip.MustParsePrefix("fd00:244::/58"), netip.MustParsePrefix("fd00:244:0:40::1/128")}
		}
	})
	awaitMesh(t, n1, n2, n3)
	for _, n := range []*node{n1, n2, n3} {
		v := n.now()
		if v.Self.IPv6Subnet != with6(t, v.Self.Subnet) || len(v.Problems) != 0 {
			t.Errorf("%s: %+v", n.config.Self.Name, v)
		}
		for _, p := range v.Peers {
			if p.IPv6Subnet != with6(t, p.Subnet) || p.PublicIPv6.As16()[15] != p.PublicIP.As4()[3] || p.VTEPv6 != p.VTEP || p.VTEP != control.VTEPMAC(p.PublicIP, 1) {
				t.Errorf("%s: %+v", n.config.Self.Name, p)
			}
		}
	}
	if third := n3.now().Self.Subnet.Addr().As4()[2]; third <= 64 || third >= 128 {
		t.Errorf("n3 has %s and %s, of which one is reserved", n3.now().Self.Subnet, n3.now().Self.IPv6Subnet)
	}
	before := n2.now().Self
	n2 = n2.restart()
	awaitMesh(t, n1, n2, n3)
	if got := n2.now().Self; got.Subnet != before.Subnet || got.IPv6Subnet != before.IPv6Subnet {
		t.Errorf("after a restart %s and %s, before %s and %s", got.Subnet, got.IPv6Subnet, before.Subnet, before.IPv6Subnet)
	}
}

// Given subnets that do not go with each other are claimed both, and nobody gets a block of which a half is taken.
func TestGivenPair(t *testing.T) {
	c := newCluster(t)
	c.tune = func(cfg *Config) {
		dual(cfg)
		cfg.SubnetMax = netip.MustParseAddr("10.244.3.0")
	}
	give := func(v4, v6 string) func(*Config) {
		return func(cfg *Config) {
			cfg.Self.Subnet = netip.MustParsePrefix(v4)
			if v6 != "" {
				cfg.Self.IPv6Subnet = netip.MustParsePrefix(v6)
			}
		}
	}
	n1 := c.start(1, give("10.244.8.0/23", "fd00:244::/63")) // the halves of the blocks 0 and 1
	n1.subnet()
	n2 := c.start(2, give("10.244.2.0/24", ""))
	n2.subnet()
	n3 := c.start(3)
	awaitMesh(t, n1, n2, n3)
	for n, want := range map[*node][2]string{n1: {"10.244.8.0/23", "fd00:244::/63"}, n2: {"10.244.2.0/24", "fd00:244:0:2::/64"}, n3: {"10.244.3.0/24", "fd00:244:0:3::/64"}} {
		self := n.now().Self
		if got := [2]string{self.Subnet.String(), self.IPv6Subnet.String()}; got != want {
			t.Errorf("%s: %s, want %s", n.config.Self.Name, got, want)
		}
	}
	if p := n3.peer(n1); p.IPv6Subnet.String() != "fd00:244::/63" || p.Subnet.String() != "10.244.8.0/23" {
		t.Errorf("n3 sees %+v", p)
	}
	n4 := c.start(4, give("10.244.0.0/24", ""))
	await(t, "the problem", func() bool { return n4.hasProblem("subnet fd00:244::/64 is given, but n1", "holds fd00:244::/63") }, n4)
	n5 := c.start(5)
	await(t, "no free subnet", func() bool { return n5.hasProblem("no free subnet: 4 /24 subnets") }, n5)
}

// netnsEnv marks the test binary that runs in a network namespace of its own.
const netnsEnv = "GOSSIP_TEST_NETNS"

// TestIPv6OnlyCluster runs in a network namespace: there is one IPv6 loopback address, and the nodes need one each.
func TestIPv6OnlyCluster(t *testing.T) {
	if os.Getenv(netnsEnv) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestIPv6OnlyCluster$", "-test.v")
		cmd.Env = append(os.Environ(), netnsEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestIPv6OnlyCluster") {
			t.Errorf("in a network namespace (it takes root to make one): %v\n%s", err, out)
		}
		return
	}
	addLoopback(t, 3)
	c := newCluster(t)
	c.six = true
	c.tune = only6
	n1, n2, n3 := c.start(1), c.start(2), c.start(3)
	awaitMesh(t, n1, n2, n3)
	for _, n := range []*node{n1, n2, n3} {
		v := n.now()
		if v.Self.Subnet.IsValid() || v.Self.IPv6Subnet.Bits() != 64 || len(v.Problems) != 0 {
			t.Errorf("%s: %+v", n.config.Self.Name, v)
		}
		for _, p := range v.Peers {
			if p.PublicIP.IsValid() || p.PublicIPv6 != p.Endpoint.Addr() || p.VTEPv6 != control.VTEPMAC(p.PublicIPv6, 1) || p.VTEP != (tables.MAC{}) {
				t.Errorf("%s: %+v", n.config.Self.Name, p)
			}
		}
	}
	before := n2.now().Self.IPv6Subnet
	n2.kill()
	await(t, "n2 to be dead", func() bool { return n1.peer(n2).State == Dead }, n1)
	n2 = n2.restart(func(cfg *Config) { cfg.Join = nil })
	awaitMesh(t, n1, n2, n3)
	if got := n2.now().Self.IPv6Subnet; got != before {
		t.Errorf("after a restart %s, before %s", got, before)
	}
}

// only6 makes the configuration of an IPv6 node of one with the address as its IPv4 one.
func only6(cfg *Config) {
	public := cfg.Self.PublicIP
	cfg.Self.PublicIP = netip.Addr{}
	dual(cfg)
	cfg.Self.PublicIPv6, cfg.Self.VTEP = public, control.VTEPMAC(public, 1)
	cfg.Self.VTEPv6 = cfg.Self.VTEP
	cfg.Network, cfg.SubnetLen, cfg.SubnetMin, cfg.SubnetMax = netip.Prefix{}, 0, netip.Addr{}, netip.Addr{}
}

// addLoopback gives the namespace's loopback the addresses of n nodes.
func addLoopback(t *testing.T, n int) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		a, err := netlink.ParseAddr(loopback6(i+1).String() + "/128")
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, a); err != nil {
			t.Fatal(err)
		}
	}
}

// loopback6 is the address of node i in IPv6.
func loopback6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i)})
}

// renewed is the record that a node at 192.0.2.1 makes.
func renewed(t *testing.T, change func(*Store)) *claim.Record {
	t.Helper()
	s := quietStore(t)
	s.key, s.id = testKeys[0], claim.NodeID{}
	s.config.Self.BackendType, s.config.Self.VNI, s.config.Self.VTEP = "vxlan", 1, tables.MAC{2, 0, 0, 0, 0, 1}
	s.disk = diskState{BootEpoch: 3, Nonce: 9}
	s.claimer.Claim = claim.Claim{Block: netip.MustParsePrefix("10.244.1.0/24"), Tenure: time.Hour, State: claim.Confirmed}
	change(s)
	if err := s.renew(0); err != nil {
		t.Fatal(err)
	}
	return s.self
}

// What an IPv4 node says and which label it has are those of the versions before IPv6, to the byte.
func TestOldFormStays(t *testing.T) {
	const (
		record = "018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c03000000000000000901000473656c6604c00002011f0a0576786c616e01211802000000000100" +
			"0001040af40100180080dddb0101c33b34b613725abf507755a4bcefe303a8b5e346d4af234fe357dff82855422d67e2f25daf37eb1ef48cc9f5ca0e8e2e97f099172c514eebea95b4e82e21660d"
		network = "tulle-671448fe1854f04d"
	)
	if got := hex.EncodeToString(renewed(t, func(*Store) {}).Raw); got != record {
		t.Errorf("the record is %s,\nwant %s", got, record)
	}
	if got := label(quietStore(t).pools); got != network {
		t.Errorf("the label is %s, want %s", got, network)
	}
}

// The record of a dual-stack node has the IPv6 address, and a second claim only where the first does not tell all.
func TestDualStackRecord(t *testing.T) {
	withIPv6 := func(s *Store) {
		dual(&s.config)
		s.pools = dualPools(t)
		s.machine.Pools = s.pools
		s.claimer.Pools = s.pools
	}
	one := renewed(t, withIPv6)
	same := renewed(t, func(s *Store) { withIPv6(s); s.claimer.Given6 = netip.MustParsePrefix("fd00:244:0:1::/64") })
	two := renewed(t, func(s *Store) { withIPv6(s); s.claimer.Given6 = netip.MustParsePrefix("fd00:244:0:7::/64") })
	for r, claims := range map[*claim.Record]int{one: 1, same: 1, two: 2} {
		opened, err := claim.OpenRecord(r.Raw)
		if err != nil || len(opened.Claims) != claims || len(opened.Addrs) != 1 {
			t.Fatalf("%+v, %v", opened, err)
		}
		n := nodeOf(opened)
		if n.PublicIPv6.String() != "2001:db8::c000:201" || n.PublicIP.String() != "192.0.2.1" || n.VTEPv6 != n.VTEP || n.VTEP != (tables.MAC{2, 0, 0, 0, 0, 1}) {
			t.Errorf("%+v", n)
		}
	}
	p := dualPools(t)
	for r, want := range map[*claim.Record]string{one: "fd00:244:0:1::/64", same: "fd00:244:0:1::/64", two: "fd00:244:0:7::/64"} {
		if v4, v6 := p.Subnets(r); v6.String() != want || v4.String() != "10.244.1.0/24" {
			t.Errorf("%s and %s, want %s", v4, v6, want)
		}
		var held []string
		for c := range p.Claims(r) {
			held = append(held, c.Block.String())
		}
		if !slices.Equal(held, []string{"10.244.1.0/24", want}) {
			t.Errorf("it holds %s, want 10.244.1.0/24 and %s", held, want)
		}
	}
}
