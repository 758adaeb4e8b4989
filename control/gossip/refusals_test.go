package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

func TestWrongKey(t *testing.T) {
	for _, k := range []struct {
		name          string
		key           []byte // of the joining node
		there, joiner string // reasons
	}{
		{"another key", bytes.Repeat([]byte{8}, 32), "it has another cluster key", "the node there has another cluster key"},
		{"no key", nil, "it sends plaintext: it has no cluster key", "the node there has a cluster key, this one has none"},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := newCluster(t)
			n1 := c.start(1)
			n1.subnet()
			n2 := c.start(2, func(cfg *Config) { cfg.Key = k.key })
			assertRefused(t, c, n1, n2, k.there, k.joiner)
		})
	}
	t.Run("a key where there is none", func(t *testing.T) {
		c := newCluster(t)
		n1 := c.start(1, func(cfg *Config) { cfg.Key = nil })
		n1.subnet()
		assertRefused(t, c, n1, c.start(2), "it encrypts, and this node has no cluster key", "the node there has no cluster key, this one has")
	})
}

// assertRefused waits until both nodes say why n1 refuses n2 over their keys.
func assertRefused(t *testing.T, c *cluster, n1, n2 *node, there, joiner string) {
	t.Helper()
	await(t, "n1's reason", func() bool {
		return n1.now().Refused[refusedKey] > 0 && n1.hasProblem("refused (key): the node at "+c.addr(2).String()+": "+there)
	}, n1)
	await(t, "n2's reason", func() bool { return n2.hasProblem("join " + c.seed(1) + ": " + joiner) }, n2)
	if v := n2.now(); v.Refused[refusedKey] == 0 || v.LastRefused[refusedKey] == "" {
		t.Errorf("%+v", v)
	}
	n2.subnet() // alone
	for _, n := range []*node{n1, n2} {
		if v := n.now(); len(v.Peers) != 0 || v.Members != 1 {
			t.Errorf("%+v", v)
		}
	}
}

func TestWrongNetwork(t *testing.T) {
	c := newCluster(t)
	n1 := c.start(1)
	n1.subnet()
	n2 := c.start(2, func(cfg *Config) { cfg.SubnetLen = 25 })
	await(t, "n1's reason", func() bool {
		return n1.now().Refused[refusedNetwork] > 0 && n1.hasProblem("refused (network): the node at "+c.addr(2).String()+": it is of another network")
	}, n1)
	await(t, "n2's reason", func() bool {
		return n2.hasProblem("join " + c.seed(1) + ": connection closed by the node there: most likely another cluster key or another network; its tulle status has the reason")
	}, n2)
	n2.subnet()
	if v := n1.now(); len(v.Peers) != 0 || v.Refused[refusedKey] != 0 {
		t.Errorf("%+v", v)
	}
}

// Two networks that differ in nothing but what IPv6 subnets follow from.
func TestWrongIPv6Network(t *testing.T) {
	for what, change := range map[string]func(*Config){
		"none":      func(cfg *Config) { cfg.IPv6Network = netip.Prefix{} },
		"network":   func(cfg *Config) { cfg.IPv6Network = netip.MustParsePrefix("fd00:244::/47") },
		"length":    func(cfg *Config) { cfg.IPv6SubnetLen = 65 },
		"first":     func(cfg *Config) { cfg.IPv6SubnetMin = netip.MustParseAddr("fd00:244:0:1::") },
		"last":      func(cfg *Config) { cfg.IPv6SubnetMax = netip.MustParseAddr("fd00:244:0:fffe::") },
		"IPv4 min.": func(cfg *Config) { cfg.SubnetMin = netip.MustParseAddr("10.244.1.0") },
	} {
		t.Run(what, func(t *testing.T) {
			c := newCluster(t)
			c.tune = dual
			n1 := c.start(1)
			n2 := c.start(2, change)
			await(t, "n1's reason", func() bool {
				return n1.now().Refused[refusedNetwork] > 0 && n1.hasProblem("refused (network): the node at "+c.addr(2).String()+": it is of another network", "or those of IPv6")
			}, n1)
			if v := n2.now(); len(v.Peers) != 0 || len(n1.now().Peers) != 0 {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestSameName(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.start(1), c.start(2)
	awaitMesh(t, n1, n2)
	n3 := c.start(3, func(cfg *Config) { cfg.Self.Name = "n2" })
	await(t, "the others to refuse the newcomer", func() bool {
		return strings.HasPrefix(n1.peer(n3).Reason, "refused: the name of n2 ("+c.addr(3).String()) && strings.HasPrefix(n2.peer(n3).Reason, "refused: the name of n2 ("+c.addr(3).String())
	}, n1, n2)
	await(t, "the newcomer to say so", func() bool {
		return n3.hasProblem("this node is refused: the name of n2 ("+c.addr(3).String(), "is that of n2 ("+c.addr(2).String())
	}, n3)
	for _, n := range []*node{n1, n2, n3} {
		if n.now().Refused[refusedName] != 1 {
			t.Errorf("%s: %+v", n.config.Self.Name, n.now())
		}
	}
	if v := n3.now(); v.Self.Subnet.IsValid() || n1.peer(n3).Routable || n2.peer(n3).Routable || !n1.peer(n2).Routable {
		t.Errorf("%+v", v)
	}
	n2.stop()
	awaitMesh(t, n1, n3)
	await(t, "no problem", func() bool { return len(n3.now().Problems) == 0 && len(n1.now().Problems) == 0 }, n1, n3)
}

func TestSamePublicIP(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.start(1), c.start(2)
	awaitMesh(t, n1, n2)
	n3 := c.start(2, func(cfg *Config) { cfg.Self.Name = "n3"; cfg.BindPort++ })
	await(t, "refusal of the newcomer", func() bool {
		return strings.HasPrefix(n1.peer(n3).Reason, "refused: the public IP of n3") && n3.hasProblem("this node is refused: the public IP of n3")
	}, n1, n3)
	if n1.now().Refused[refusedEndpoint] != 1 || !n1.peer(n2).Routable || n3.now().Self.Subnet.IsValid() {
		t.Errorf("%+v", n1.now())
	}
}

func TestPortTaken(t *testing.T) {
	c := newCluster(t)
	c.start(1)
	s, err := Open(c.config(1))
	if err == nil {
		s.Close()
		t.Fatal("two nodes at one port")
	}
	if want := fmt.Sprintf("gossip at %s: the port is taken", c.seed(1)); !strings.HasPrefix(err.Error(), want) {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	c := newCluster(t)
	for want, change := range map[string]func(*Config){
		"cluster key of 16 bytes":     func(cfg *Config) { cfg.Key = make([]byte, 16) },
		`--join "a:b:c"`:              func(cfg *Config) { cfg.Join = []string{"a:b:c"} },
		`--join "192.0.2.1:0"`:        func(cfg *Config) { cfg.Join = []string{"192.0.2.1:0"} },
		"network 10.244.1.0/16":       func(cfg *Config) { cfg.Network = netip.MustParsePrefix("10.244.1.0/16") },
		"--subnet 10.9.0.0/24":        func(cfg *Config) { cfg.Self.Subnet = netip.MustParsePrefix("10.9.0.0/24") },
		"node name \"\"":              func(cfg *Config) { cfg.Self.Name = "" },
		"gossip port 65536":           func(cfg *Config) { cfg.BindPort = 65536 },
		"gossip at 192.0.2.55":        func(cfg *Config) { cfg.Self.PublicIP = netip.MustParseAddr("192.0.2.55") },
		"public addresses invalid IP": func(cfg *Config) { cfg.Self.PublicIP = netip.Addr{} },
		"IPv6Network fd00::/62 has 4 /64 subnets from fd00:: to fd00:0:0:3::, Network 10.244.0.0/16 has 256 /24 subnets": func(cfg *Config) {
			dual(cfg)
			cfg.IPv6Network, cfg.IPv6SubnetMin, cfg.IPv6SubnetMax = netip.MustParsePrefix("fd00::/62"), netip.MustParseAddr("fd00::"), netip.MustParseAddr("fd00:0:0:3::")
		},
		"subnet length 127 in fd00:244::/48: 48 to 126": func(cfg *Config) { dual(cfg); cfg.IPv6SubnetLen = 127 },
		"and invalid IP of this node":                   func(cfg *Config) { dual(cfg); cfg.Self.PublicIPv6 = netip.Addr{} },
		"--subnet 10.244.2.0/23: it is none of the 256 /24 subnets from 10.244.0.0 to 10.244.255.0, so that no IPv6 subnet goes with it: give both, such as --subnet 10.244.2.0/23,fd00:244::/64": func(cfg *Config) {
			dual(cfg)
			cfg.Self.Subnet = netip.MustParsePrefix("10.244.2.0/23")
		},
		"--subnet fd00:244:0:9::/64: the IPv4 subnet is missing": func(cfg *Config) { dual(cfg); cfg.Self.IPv6Subnet = netip.MustParsePrefix("fd00:244:0:9::/64") },
		"--subnet fd00:9::/64: a masked prefix of /126 or shorter inside 10.244.0.0/16 and fd00:244::/48": func(cfg *Config) {
			dual(cfg)
			cfg.Self.Subnet, cfg.Self.IPv6Subnet = netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:9::/64")
		},
		"state directory: mkdir /proc/x": func(cfg *Config) { cfg.StateDir = "/proc/x" },
	} {
		cfg := c.config(1)
		change(&cfg)
		s, err := Open(cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestOpenWithoutRun(t *testing.T) {
	c := newCluster(t)
	s, err := Open(c.config(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Run(t.Context(), nil); !errors.Is(err, errRan) {
		t.Error(err)
	}
}

func TestSeeds(t *testing.T) {
	for seed, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:7946", "192.0.2.1:99": "192.0.2.1:99", "host": "host:7946", "host:1": "host:1",
		"2001:db8::1": "2001:db8::1:7946", "[2001:db8::1]:5": "2001:db8::1:5", "[2001:db8::1]": "2001:db8::1:7946",
	} {
		host, port, err := parseSeed(seed)
		if got := fmt.Sprintf("%s:%d", host, port); err != nil || got != want {
			t.Errorf("%s: %s, %v", seed, got, err)
		}
	}
	for _, seed := range []string{"", ":", ":7946", "host:", "host:x", "host:65536", "a:b:c"} {
		if host, port, err := parseSeed(seed); err == nil {
			t.Errorf("%q: %q %d", seed, host, port)
		}
	}
}

func TestJoinFailures(t *testing.T) {
	for text, want := range map[string][2]string{
		"failed to join x: no installed keys could decrypt the message":        {refusedKey, "the node there has another cluster key: if keys were rotated while this node was away, tulle keys export on a node there gives the new one for --key-file"},
		"read tcp 192.0.2.1:1->192.0.2.2:7946: read: connection reset by peer": {"", closedThere},
		"write tcp 192.0.2.1:1->192.0.2.2:7946: write: broken pipe":            {"", closedThere},
		"failed to join x: EOF":                                         {"", closedThere},
		"dial tcp 192.0.2.2:7946: i/o timeout":                          {"", "no answer within 5s"},
		"dial tcp 192.0.2.2:7946: connect: connection refused":          {"", "connection refused: no tulle node listens there"},
		"1 error occurred:\n\t* something that memberlist 0.8 says\n\n": {"", "1 error occurred: * something that memberlist 0.8 says"},
	} {
		if reason, words := joinFailure(errors.New(text)); reason != want[0] || words != want[1] {
			t.Errorf("%q: %q %q", text, reason, words)
		}
	}
}

func TestLogLines(t *testing.T) {
	for _, l := range []struct {
		line  string
		level slog.Level
		text  string
	}{
		{"[DEBUG] memberlist: Stream connection from=192.0.2.1:5", slog.LevelDebug, "gossip: Stream connection from=192.0.2.1:5"},
		{"[WARN] memberlist: handler queue full, dropping message (3) from=192.0.2.1:5", slog.LevelWarn, "gossip: handler queue full, dropping message (3) from=192.0.2.1:5"},
		{"[ERR] memberlist: Error accepting TCP connection: x", slog.LevelError, "gossip: Error accepting TCP connection: x"},
		{"[INFO] memberlist: Suspect x has failed, no acks received", slog.LevelDebug, "gossip: Suspect x has failed, no acks received"},
		{"[INFO] memberlist: something new\n", slog.LevelInfo, "gossip: something new"},
		{"no level", slog.LevelInfo, "gossip: no level"},
	} {
		if level, text := parseLog(l.line); level != l.level || text != l.text {
			t.Errorf("%q: %s %q", l.line, level, text)
		}
	}
}
