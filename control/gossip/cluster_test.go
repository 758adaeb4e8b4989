package gossip

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-net/tulle/control"
)

func TestFiveNodesFromOneSeed(t *testing.T) {
	c := newCluster(t)
	var nodes []*node
	for i := 5; i >= 1; i-- { // the seed last
		nodes = append(nodes, c.start(i))
	}
	started := time.Now()
	await(t, "all to know all", func() bool {
		return !slices.ContainsFunc(nodes, func(n *node) bool { return n.now().Members != 5 })
	}, nodes...)
	t.Logf("they know each other after %s", time.Since(started))
	awaitMesh(t, nodes...)
	t.Logf("they have routes after %s", time.Since(started))
	for _, n := range nodes {
		v := n.now()
		if v.Members != 5 || len(v.Peers) != 4 || len(v.Problems) != 0 || len(v.Refused) != 0 {
			t.Errorf("%s: %+v", n.config.Self.Name, v)
		}
		for _, p := range v.Peers {
			if p.State != Alive || p.Reason != "" || p.LastSeen.IsZero() || p.Endpoint != netip.AddrPortFrom(p.PublicIP, uint16(c.port)) ||
				p.VTEP != control.VTEPMAC(p.PublicIP, 1) || p.VNI != 1 || p.BackendType != "vxlan" || p.TunnelPort != 8472 {
				t.Errorf("%s: %+v", n.config.Self.Name, p)
			}
		}
	}
	first := nodes[0].store.View()
	await(t, "fresh times in View", func() bool {
		return nodes[0].store.View().Peers[0].LastSeen.After(first.Peers[0].LastSeen)
	}, nodes...)
}

// TestMajorityOfThree: with three nodes to come, the first one alone claims nothing and says why; two of them do.
func TestMajorityOfThree(t *testing.T) {
	c := newCluster(t)
	three := func(cfg *Config) { cfg.Nodes = 3 }
	n1 := c.start(1, three)
	await(t, "n1 to say why it has no subnet", func() bool {
		return strings.Contains(strings.Join(n1.now().Problems, " "), "1 of 3 nodes are in sight (--majority)")
	}, n1)
	if s := n1.now().Self.Subnet; s.IsValid() {
		t.Errorf("n1 alone has %s", s)
	}
	n2 := c.start(2, three)
	awaitMesh(t, n1, n2)
	if p := n1.now().Problems; len(p) != 0 {
		t.Errorf("n1 still has problems: %v", p)
	}
}

func TestRestartKeepsTheSubnet(t *testing.T) {
	c := newCluster(t)
	n1, n2, n3 := c.start(1), c.start(2), c.start(3)
	awaitMesh(t, n1, n2, n3)
	id, subnet := n2.now().NodeID, n2.now().Self.Subnet
	n2.stop()
	await(t, "n2 to be gone", func() bool { return n1.peer(n2).State == Left && !n1.peer(n2).Routable }, n1)
	if p := n1.peer(n2); p.Subnet != subnet {
		t.Errorf("n1 forgot the subnet of n2: %+v", p)
	}
	n2 = n2.restart(func(cfg *Config) { cfg.Join = nil }) // it knows where the others were
	if got := n2.subnet(); got != subnet || n2.now().NodeID != id {
		t.Errorf("%s of %s, before %s of %s", got, n2.now().NodeID, subnet, id)
	}
	awaitMesh(t, n1, n2, n3)

	n2.stop()
	if err := os.RemoveAll(n2.config.StateDir); err != nil {
		t.Fatal(err)
	}
	n2 = n2.restart(func(cfg *Config) { cfg.Join = []string{c.seed(1)} })
	if got := n2.subnet(); got != subnet || n2.now().NodeID == id {
		t.Errorf("without its disk it is %s with %s, before %s with %s", n2.now().NodeID, got, id, subnet)
	}
	awaitMesh(t, n1, n2, n3)
}

// A node alone, with itself as seed, has its subnet at once after a restart.
func TestAlone(t *testing.T) {
	c := newCluster(t)
	n := c.start(1)
	subnet := n.subnet()
	if v := n.now(); len(v.Problems) != 0 || v.Members != 1 {
		t.Errorf("%+v", v)
	}
	if targets := n.store.targets(t.Context()); len(targets) != 0 {
		t.Errorf("it joins itself: %s", targets)
	}
	disk, _, err := loadState(n.config.StateDir, n.store.id)
	if err != nil || len(disk.Claims) != 1 || disk.Claims[0].Block != subnet || disk.BootEpoch != 1 {
		t.Errorf("on disk: %+v, %v", disk, err)
	}
	n = n.restart()
	if got := n.subnet(); got != subnet {
		t.Errorf("%s, before %s", got, subnet)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.first.Self.Subnet != subnet {
		t.Errorf("the first view after the restart has %s", n.first.Self.Subnet)
	}
}

func TestUnreachableSeedIsNoObstacle(t *testing.T) {
	c := newCluster(t)
	n2 := c.start(2)
	n2.subnet()
	await(t, "the problem", func() bool { return n2.hasProblem("join "+c.seed(1), "connection refused") }, n2)
	n1 := c.start(1)
	awaitMesh(t, n1, n2)
	await(t, "no problem", func() bool { return len(n2.now().Problems) == 0 }, n2)
}

func TestKilledNode(t *testing.T) {
	c := newCluster(t)
	n1, n2, n3, n4 := c.start(1), c.start(2), c.start(3), c.start(4)
	awaitMesh(t, n1, n2, n3, n4)
	subnet := n2.now().Self.Subnet
	killed := time.Now()
	n2.kill()
	for _, n := range []*node{n1, n3, n4} {
		await(t, "n2 to be dead", func() bool { return n.peer(n2).State == Dead && !n.peer(n2).Routable }, n)
	}
	t.Logf("seen dead by all after %s", time.Since(killed))
	if p := n1.peer(n2); p.Subnet != subnet || p.Reason != "it does not answer" {
		t.Errorf("%+v", p)
	}
	n2 = n2.restart()
	awaitMesh(t, n1, n2, n3, n4)
	if got := n2.now().Self.Subnet; got != subnet {
		t.Errorf("%s, before %s", got, subnet)
	}
}

// A node that loses most peers at once has lost the gossip: traffic goes on.
func TestCutOffNodeKeepsItsRoutes(t *testing.T) {
	c := newCluster(t)
	n1, n2, n3 := c.start(1), c.start(2), c.start(3)
	awaitMesh(t, n1, n2, n3)
	n2.store.stop()
	n2.store.transport.Shutdown()
	n3.kill()
	await(t, "both to be dead", func() bool { return n1.peer(n2).State == Dead && n1.peer(n3).State == Dead }, n1)
	for _, p := range n1.now().Peers {
		if !p.Routable || !strings.Contains(p.Reason, "cut off") {
			t.Errorf("%+v", p)
		}
	}
	if !n1.hasProblem("2 of 2 peers fell silent together") {
		t.Errorf("%q", n1.now().Problems)
	}
	n2.stop()
	n2, n3 = n2.restart(), n3.restart()
	awaitMesh(t, n1, n2, n3)
	await(t, "no problem", func() bool { return len(n1.now().Problems) == 0 }, n1)
}

// A node that knows nobody and that nobody has as seed is found where it was last.
func TestRejoinOfADeadNode(t *testing.T) {
	c := newCluster(t)
	c.tune = func(cfg *Config) { cfg.Join = []string{c.seed(2)} }
	n1, n2, n3 := c.start(1), c.start(2), c.start(3)
	awaitMesh(t, n1, n2, n3)
	n1.kill()
	await(t, "it to be dead", func() bool { return n2.peer(n1).State == Dead && n3.peer(n1).State == Dead }, n2, n3)
	if err := os.RemoveAll(n1.config.StateDir); err != nil {
		t.Fatal(err)
	}
	n1 = n1.restart(func(cfg *Config) { cfg.Join = nil })
	awaitMesh(t, n1, n2, n3)
}

func TestRejoinAfterTheSeedRestarts(t *testing.T) {
	c := newCluster(t)
	n1, n2, n3 := c.start(1), c.start(2), c.start(3)
	awaitMesh(t, n1, n2, n3)
	n1.kill()
	await(t, "the seed to be dead", func() bool { return n2.peer(n1).State == Dead && n3.peer(n1).State == Dead }, n2, n3)
	if err := os.RemoveAll(n1.config.StateDir); err != nil { // it knows nobody: the others have to find it
		t.Fatal(err)
	}
	n1 = n1.restart()
	awaitMesh(t, n1, n2, n3)
}

func TestNoFreeSubnet(t *testing.T) {
	c := newCluster(t)
	c.tune = func(cfg *Config) {
		cfg.SubnetMax = netip.MustParseAddr("10.244.2.0")
		cfg.Reserved = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")} }
	}
	n1, n2 := c.start(1), c.start(2)
	awaitMesh(t, n1, n2)
	n3 := c.start(3)
	await(t, "the problem", func() bool {
		return n3.hasProblem("no free subnet: 3 /24 subnets from 10.244.0.0 to 10.244.2.0", "by 2 other nodes (0 of them not alive) and 1 reserved")
	}, n3)
	await(t, "n1 to say why n3 has no routes", func() bool { return n1.peer(n3).Reason == "it has no subnet yet" }, n1)
	n2.stop()
	await(t, "a reservation for the node that left", func() bool { return n3.hasProblem("(1 of them not alive)") }, n3)
}

func TestGivenSubnets(t *testing.T) {
	give := func(subnet string) func(*Config) {
		return func(cfg *Config) { cfg.Self.Subnet = netip.MustParsePrefix(subnet) }
	}
	c := newCluster(t)
	n1 := c.start(1, give("10.244.7.0/24"))
	if got := n1.subnet(); got.String() != "10.244.7.0/24" {
		t.Errorf("%s", got)
	}
	n2 := c.start(2, give("10.244.6.0/23"))
	await(t, "the problem", func() bool { return n2.hasProblem("subnet 10.244.6.0/23 is given, but n1", "holds 10.244.7.0/24") }, n2)
	if n2.now().Self.Subnet.IsValid() {
		t.Errorf("%+v", n2.now())
	}
	n1 = n1.restart(give("10.244.9.0/24")) // a kept claim that is not the given one
	awaitMesh(t, n1, n2)
	if got := []netip.Prefix{n1.now().Self.Subnet, n2.now().Self.Subnet}; got[0].String() != "10.244.9.0/24" || got[1].String() != "10.244.6.0/23" {
		t.Errorf("%s", got)
	}
}

// Two networks that grew apart with the same block meet: one node yields, the one that had the block for less time.
func TestHealedPartition(t *testing.T) {
	c := newCluster(t)
	var pool []netip.Prefix
	for i := range 5 {
		pool = append(pool, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24))
	}
	var healed atomic.Bool
	// only makes the node take block i, until the networks meet.
	only := func(seed, i int) func(*Config) {
		return func(cfg *Config) {
			cfg.SubnetMax, cfg.Join = pool[4].Addr(), []string{c.seed(seed)}
			cfg.Reserved = func() []netip.Prefix {
				if healed.Load() {
					return nil
				}
				return slices.Delete(slices.Clone(pool), i, i+1)
			}
		}
	}
	a1 := c.start(1, only(1, 0))
	a1.subnet()
	a2 := c.start(2, only(1, 1))
	b1 := c.start(11, only(11, 0))
	b1.subnet()
	b2 := c.start(12, only(11, 2))
	awaitMesh(t, a1, a2)
	awaitMesh(t, b1, b2)
	if a1.now().Self.Subnet != pool[0] || b1.now().Self.Subnet != pool[0] {
		t.Fatalf("%s and %s", a1.now().Self.Subnet, b1.now().Self.Subnet)
	}
	healed.Store(true)
	bridge := c.start(20, func(cfg *Config) { cfg.SubnetMax, cfg.Join = pool[4].Addr(), []string{c.seed(1), c.seed(11)} })
	await(t, "the younger owner to yield", func() bool { return b1.now().Withdrawn == 1 && b1.now().Self.Subnet.IsValid() }, a1, b1)
	awaitMesh(t, a1, a2, b1, b2, bridge)
	for i, n := range []*node{a1, a2, b2} {
		if v := n.now(); v.Self.Subnet != pool[i] || v.Withdrawn != 0 {
			t.Errorf("%s yielded: %+v", n.config.Self.Name, v)
		}
	}
}
