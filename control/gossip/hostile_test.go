package gossip

import (
	"bytes"
	"crypto/ed25519"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/tulle-net/tulle/control/claim"
	"github.com/tulle-net/tulle/control/gossip/gate"
)

// A stranger has the cluster key and speaks memberlist, but says what it likes.
type stranger struct{ meta, state []byte }

func (s *stranger) NodeMeta(int) []byte               { return s.meta }
func (s *stranger) NotifyMsg([]byte)                  {}
func (s *stranger) GetBroadcasts(int, int) [][]byte   { return nil }
func (s *stranger) LocalState(bool) []byte            { return s.state }
func (s *stranger) MergeRemoteState(_ []byte, _ bool) {}

// invade joins node 1 under the name with the record and the state.
func (c *cluster) invade(i int, name string, s *stranger) {
	c.t.Helper()
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.BindAddr, cfg.BindPort, cfg.AdvertisePort = name, c.addr(i).String(), c.port, c.port
	cfg.EnableCompression = false
	cfg.SecretKey, cfg.LogOutput, cfg.Delegate = bytes.Repeat([]byte{7}, 32), io.Discard, s
	cfg.Label = label(claim.Pools{Claimed: claim.Pool{Network: netip.MustParsePrefix("10.244.0.0/16"), Bits: 24}})
	list, err := memberlist.Create(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { list.Shutdown() })
	if _, err := list.Join([]string{c.seed(1)}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) signed(i int, key ed25519.PrivateKey, change func(*claim.Record)) *claim.Record {
	r := plainRecord(func(r *claim.Record) {
		r.Name, r.Endpoint = "stranger", netip.AddrPortFrom(c.addr(i), uint16(c.port))
		change(r)
	})
	if err := r.Sign(key); err != nil {
		c.t.Fatal(err)
	}
	return r
}

func TestStrangersAreRefused(t *testing.T) {
	c := newCluster(t)
	n1 := c.start(1)
	n1.subnet()
	good := c.signed(66, testKeys[0], func(*claim.Record) {})
	forged := bytes.Clone(good.Raw)
	forged[len(forged)-1] ^= 1
	elsewhere := c.signed(67, testKeys[1], func(*claim.Record) {})
	for i, s := range []struct {
		name, reason, words string
		stranger            stranger
	}{
		{"stranger", refusedSignature, "a record of 0 bytes", stranger{}},
		{"stranger", refusedSignature, "a record of version 103", stranger{meta: bytes.Repeat([]byte("garbage"), 40)}},
		{good.Member(), refusedSignature, "its signature does not match", stranger{meta: forged}},
		{"stranger", refusedSignature, "the record of stranger (", stranger{meta: good.Raw}},
		{elsewhere.Member(), refusedEndpoint, "its record says " + elsewhere.Endpoint.String(), stranger{meta: elsewhere.Raw}},
	} {
		before := n1.store.View().Refused[s.reason]
		c.invade(70+i, s.name, &s.stranger)
		await(t, s.reason+": "+s.words, func() bool {
			v := n1.now()
			return v.Refused[s.reason] > before && strings.Contains(v.LastRefused[s.reason], s.words)
		}, n1)
		if v := n1.now(); v.Members != 1 || !strings.Contains(v.LastRefused[s.reason], c.addr(70+i).String()) {
			t.Errorf("%+v", v)
		}
	}
}

// The state that a stranger sends holds damaged records among good ones: the good ones count.
func TestDamagedStateIsRefusedInPart(t *testing.T) {
	c := newCluster(t)
	n1 := c.start(1)
	n1.subnet()
	dead := c.signed(80, testKeys[0], func(r *claim.Record) { r.Name = "dead" })
	forged := c.signed(81, testKeys[1], func(r *claim.Record) { r.Name = "forged" })
	forged.Raw[40] ^= 1
	self := c.signed(82, testKeys[2], func(*claim.Record) {})
	state := append(claim.EncodeState([]*claim.Record{forged, dead}, nil), claim.SectionRecords, 200)
	c.invade(82, self.Member(), &stranger{self.Raw, state})
	await(t, "refusals", func() bool { return n1.now().Refused[refusedSignature] >= 2 }, n1)
	await(t, "the good record", func() bool { return len(n1.now().Peers) == 2 }, n1)
	p := n1.now().Peers[0]
	if p.Name != "dead" || p.State != Dead || p.Routable || p.Reason != "not seen alive since this node started" || p.Subnet.String() != "10.244.1.0/24" {
		t.Errorf("%+v", p)
	}
}

// What is older than what is known is counted, and not looked at: neither what its node wrote nor what somebody made up.
func TestOutdatedRecords(t *testing.T) {
	c := newCluster(t)
	n1 := c.start(1)
	n1.subnet()
	record := func(seq uint64, name string) []byte {
		return c.signed(66, testKeys[0], func(r *claim.Record) { r.Seq, r.Name = seq, name }).Raw
	}
	last, older, forged := record(7, "last"), record(6, "older"), record(5, "forged")
	forged[len(forged)-1] ^= 1
	n1.store.take(last, "a test")
	for i, raw := range [][]byte{older, forged, older} {
		n1.store.take(raw, "a test")
		if n := n1.store.View().Outdated; n != uint64(i+1) {
			t.Errorf("%d records counted after %d", n, i+1)
		}
	}
	n1.store.take(last, "a test")
	await(t, "the record", func() bool { return len(n1.now().Peers) == 1 }, n1)
	if v := n1.store.View(); v.Outdated != 3 || len(v.Refused) != 0 || v.Peers[0].Name != "last" {
		t.Errorf("%+v", v)
	}
}

func TestPacketsOfStrangers(t *testing.T) {
	c := newCluster(t)
	n1 := c.start(1)
	n1.subnet()
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: c.addr(5).AsSlice()}, net.UDPAddrFromAddrPort(n1.store.endpoint))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ours := label(n1.store.pools)
	for _, p := range []struct {
		packet []byte
		reason string
	}{
		{[]byte("plaintext of another program"), refusedNetwork},
		{append([]byte{244, 5}, "other and so on"...), refusedNetwork},
		{append(append([]byte{244, byte(len(ours))}, ours...), bytes.Repeat([]byte{1}, 60)...), refusedKey},
		{append(append([]byte{244, byte(len(ours))}, ours...), 0), gate.Truncated},
	} {
		count := func() refusal {
			n1.store.mu.Lock()
			defer n1.store.mu.Unlock()
			return n1.store.refusals[p.reason]
		}
		before := count()
		if _, err := conn.Write(p.packet); err != nil {
			t.Fatal(err)
		}
		await(t, "refusal of "+string(p.packet), func() bool {
			now := count()
			return now.count == before.count+1 && strings.Contains(now.last, "the node at "+c.addr(5).String())
		}, n1)
	}
}

// copyState copies a node's state directory, as a cloned machine has it.
func copyState(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range []string{keyFile, stateFile} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestClonedNode(t *testing.T) {
	c := newCluster(t)
	n1, n2, n3 := c.start(1), c.start(2), c.start(3)
	awaitMesh(t, n1, n2, n3)
	id, subnet := n2.now().NodeID, n2.now().Self.Subnet
	clone := c.start(9, func(cfg *Config) { cfg.StateDir = copyState(t, n2.config.StateDir) })
	await(t, "the clone to say so", func() bool {
		return clone.now().Refused[refusedCloned] > 0 && clone.hasProblem("has this node's identity")
	}, clone)
	await(t, "the clone to have a new identity", func() bool { return clone.now().NodeID != id && clone.now().Self.Subnet.IsValid() }, clone)
	awaitMesh(t, n1, n2, n3, clone)
	if v := n2.now(); v.NodeID != id || v.Self.Subnet != subnet {
		t.Errorf("the original: %+v", v)
	}
}

func TestRolledBackDisk(t *testing.T) {
	c := newCluster(t)
	n1, n2 := c.start(1), c.start(2)
	early := copyState(t, n2.config.StateDir) // before it had a subnet, or soon after
	awaitMesh(t, n1, n2)
	id, subnet := n2.now().NodeID, n2.now().Self.Subnet
	n2 = n2.restart()
	n2 = n2.restart()
	awaitMesh(t, n1, n2)
	n2 = n2.restart(func(cfg *Config) { cfg.StateDir = early })
	awaitMesh(t, n1, n2)
	if v := n2.now(); v.NodeID != id || v.Self.Subnet != subnet {
		t.Errorf("%+v, before %s of %s", v, subnet, id)
	}
}
