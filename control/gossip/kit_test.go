package gossip

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/claim"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// patience is how long a test waits for something that happens within seconds on an idle machine.
var patience = 90 * time.Second

func init() {
	if d, err := time.ParseDuration(os.Getenv("GOSSIP_PATIENCE")); err == nil { // to see tests fail sooner
		patience = d
	}
}

func TestMain(m *testing.M) {
	code := m.Run()
	if left := ownGoroutines(); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines that nobody ended:\n"+left)
		code = 1
	}
	os.Exit(code)
}

// ownGoroutines waits until no goroutine of this package or of memberlist is left, and returns those that stay.
func ownGoroutines() (left string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		buf = buf[:runtime.Stack(buf, true)]
		left = ""
		for _, g := range strings.Split(string(buf), "\n\n")[1:] {
			if strings.Contains(g, "memberlist.") || strings.Contains(g, "gossip.") {
				left += g + "\n\n"
			}
		}
		if left == "" {
			return ""
		}
	}
	return left
}

// A cluster is a set of nodes on loopback addresses, one UDP and TCP port for all.
type cluster struct {
	t      *testing.T
	prefix [3]byte // of the nodes' addresses
	six    bool    // they are of IPv6
	port   int
	tune   func(*Config) // for each node before it starts
}

func newCluster(t *testing.T) *cluster {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return &cluster{
		t: t, prefix: [3]byte{127, byte(1 + rand.IntN(250)), byte(rand.IntN(250))},
		port: l.Addr().(*net.TCPAddr).Port, tune: func(*Config) {},
	}
}

func (c *cluster) addr(i int) netip.Addr {
	if c.six {
		return loopback6(i)
	}
	return netip.AddrFrom4([4]byte{c.prefix[0], c.prefix[1], c.prefix[2], byte(i)})
}

func (c *cluster) seed(i int) string { return netip.AddrPortFrom(c.addr(i), uint16(c.port)).String() }

// config is that of node i, which joins the first node.
func (c *cluster) config(i int) Config {
	network := netip.MustParsePrefix("10.244.0.0/16")
	ip := c.addr(i)
	cfg := Config{
		Self:    control.Node{Name: fmt.Sprintf("n%d", i), PublicIP: ip, BackendType: "vxlan", VNI: 1, VTEP: control.VTEPMAC(ip, 1)},
		Network: network, SubnetLen: 24, SubnetMin: netip.MustParseAddr("10.244.0.0"), SubnetMax: netip.MustParseAddr("10.244.255.0"),
		TunnelPort: 8472, BindPort: c.port, Join: []string{c.seed(1)}, Key: bytes.Repeat([]byte{7}, 32),
		StateDir: c.t.TempDir(),
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if os.Getenv("GOSSIP_TEST_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", cfg.Self.Name)
	}
	c.tune(&cfg)
	return cfg
}

// A node is a running Store. Its View is that of the last update.
type node struct {
	t      *testing.T
	config Config
	store  *Store
	end    context.CancelFunc
	done   chan error

	mu      sync.Mutex
	view    View
	first   View
	updates int
}

// start starts node i and ends it with the test.
func (c *cluster) start(i int, tune ...func(*Config)) *node {
	cfg := c.config(i)
	for _, f := range tune {
		f(&cfg)
	}
	return launch(c.t, cfg)
}

func launch(t *testing.T, cfg Config) *node {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	n := &node{t: t, config: cfg, store: s, end: end, done: make(chan error, 1)}
	busy := make(chan struct{}, 1)
	go func() {
		n.done <- s.Run(ctx, func(v View) {
			select {
			case busy <- struct{}{}:
			default:
				t.Error("update runs twice at once")
			}
			n.mu.Lock()
			if n.updates++; n.updates == 1 {
				n.first = v
			}
			n.view = v
			n.mu.Unlock()
			<-busy
		})
	}()
	t.Cleanup(n.stop)
	return n
}

// stop ends the node in order. It may be stopped again.
func (n *node) stop() {
	n.end()
	if err, ok := <-n.done; ok {
		if err != nil {
			n.t.Errorf("%s: run: %v", n.config.Self.Name, err)
		}
		close(n.done)
	}
}

// kill takes the node's sockets away, as a crash would, and ends what is left of it.
func (n *node) kill() {
	n.store.stop()
	n.store.transport.Shutdown()
	n.stop()
}

// restart ends the node and starts it with the same configuration.
func (n *node) restart(tune ...func(*Config)) *node {
	n.stop()
	cfg := n.config
	for _, f := range tune {
		f(&cfg)
	}
	return launch(n.t, cfg)
}

func (n *node) now() View {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view
}

// subnet waits until the node has one, and returns that of IPv4.
func (n *node) subnet() netip.Prefix {
	n.t.Helper()
	await(n.t, "a confirmed subnet of "+n.config.Self.Name, func() bool { return n.now().Self.HasSubnet() }, n)
	return n.now().Self.Subnet
}

// peer returns what n knows of the other node's current identity.
func (n *node) peer(other *node) Peer {
	id := other.now().NodeID
	for _, p := range n.now().Peers {
		if p.NodeID == id && id != "" {
			return p
		}
	}
	return Peer{}
}

// await waits for a condition. On failure it shows what the nodes saw last.
func await(t *testing.T, what string, ok func() bool, nodes ...*node) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().Before(deadline) {
			continue
		}
		for _, n := range nodes {
			t.Logf("%s: %+v", n.config.Self.Name, n.now())
		}
		t.Fatalf("waited %s for %s", patience, what)
	}
}

// awaitMesh waits until every node has a subnet and routes to all others.
func awaitMesh(t *testing.T, nodes ...*node) {
	t.Helper()
	await(t, "routes between all nodes", func() bool {
		for _, n := range nodes {
			for _, other := range nodes {
				p, self := n.peer(other), other.now().Self
				if n != other && (!p.Routable || p.Subnet != self.Subnet || p.IPv6Subnet != self.IPv6Subnet) {
					return false
				}
			}
			if !n.now().Self.HasSubnet() {
				return false
			}
		}
		return true
	}, nodes...)
	assertDisjoint(t, nodes...)
}

func assertDisjoint(t *testing.T, nodes ...*node) {
	t.Helper()
	for i, n := range nodes {
		for _, other := range nodes[:i] {
			a, b := n.now().Self, other.now().Self
			if a.Subnet.Overlaps(b.Subnet) || a.IPv6Subnet.Overlaps(b.IPv6Subnet) {
				t.Errorf("%+v and %+v", a, b)
			}
		}
	}
}

func (n *node) hasProblem(parts ...string) bool {
	return slices.ContainsFunc(n.now().Problems, func(p string) bool {
		return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(p, part) })
	})
}

// testKeys are a few identities.
var testKeys = func() (keys []ed25519.PrivateKey) {
	for i := range 4 {
		keys = append(keys, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize)))
	}
	return keys
}()

func plainRecord(change func(*claim.Record)) *claim.Record {
	r := &claim.Record{
		Epoch: 3, Nonce: 9, Seq: 1, Name: "n1", Endpoint: netip.MustParseAddrPort("192.0.2.1:7946"), Backend: "vxlan", VNI: 1, TunnelPort: 8472,
		VTEP:   tables.MAC{2, 0, 0, 0, 0, 1},
		Claims: []claim.Claim{{Block: netip.MustParsePrefix("10.244.1.0/24"), Tenure: time.Hour, State: claim.Confirmed}},
	}
	change(r)
	return r
}

// dualPools are the pools of newCluster's dual-stack networks.
func dualPools(t testing.TB) claim.Pools {
	t.Helper()
	cfg := Config{Network: netip.MustParsePrefix("10.244.0.0/16"), SubnetLen: 24, SubnetMin: netip.MustParseAddr("10.244.0.0"), SubnetMax: netip.MustParseAddr("10.244.255.0")}
	dual(&cfg)
	p, err := poolsOf(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
