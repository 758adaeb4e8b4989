package lab

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/need"
)

// udpConfig is a lab of nodes that run flannelpeer.
func udpConfig(t *testing.T, nodes, pods int) Config {
	t.Helper()
	path, err := need.Binary(testContext(t), t.TempDir(), "scripts/lab/flannelpeer")
	if err != nil {
		t.Fatal(err)
	}
	return Config{Nodes: nodes, Pods: pods, Kernel: kernelNodes(nodes), Backend: BackendUDP, FlannelPeer: path}
}

func flannelStatus(t *testing.T, l *Lab, number int) FlannelStatus {
	t.Helper()
	s, err := l.FlannelStatus(number)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestUDP(t *testing.T) {
	l := up(t, udpConfig(t, 2, 2))
	if l.PodMTU() != 1472 {
		t.Errorf("pods' MTU %d", l.PodMTU())
	}
	pingAll(t, l)
	p := farPairs(l)[0]
	ping(t, p, bench.Ping{Count: 3, Size: 1472 - 28, DF: true})
	tooLong(t, p, bench.Ping{Size: 1472 - 27, DF: true})
	ping(t, p, bench.Ping{Count: 3, Size: 4000})
	transfer(t, p, 20<<20)
	exchange(t, p, 64)
	exchange(t, p, 9000)
	for number, from := range map[int]string{1: "192.168.77.2:8285", 2: "192.168.77.1:8285"} {
		s := flannelStatus(t, l, number)
		if s.Sent == 0 || s.Sources[from] != s.Received || len(s.Sources) != 1 || s.NotIPv4+s.NoRoute+s.Expired+s.Refused > 0 {
			t.Errorf("node %d: %+v, want all from %s", number, s, from)
		}
	}
}

// Daemons in a lab of the udp backend are told so, and the flannelpeer among them of their subnets.
func TestUDPDaemons(t *testing.T) {
	for _, store := range []string{StoreGossip, StoreFile} {
		c := fakeConfig(labDir(t), store)
		c.Backend, c.FlannelPeer = BackendUDP, udpConfig(t, 1, 0).FlannelPeer
		l := up(t, c)
		var conf, wantConf netConf
		readJSON(t, netConfPath(l.Dir()), &conf)
		wantConf.EnableIPv4, wantConf.Network, wantConf.Backend.Type, wantConf.Backend.Port = true, "10.244.0.0/16", "udp", 8285
		if conf != wantConf {
			t.Errorf("net-conf.json: %+v", conf)
		}
		n := nodeOf(t, l, 3)
		var peers []peer
		readJSON(t, peersPath(l.Dir()), &peers)
		want := peer{Name: "n3", PublicIP: "192.168.77.3", Subnet: n.Subnet.String(), BackendType: "udp"}
		if got := peers[len(peers)-1]; got != want {
			t.Errorf("peers.json: %+v, want %+v", got, want)
		}
		if s := flannelStatus(t, l, 3); s.Peers != 2 || n.PID != 0 || n.LogFile == "" {
			t.Errorf("node 3 knows %d peers; %+v", s.Peers, n)
		}
		if _, err := l.FlannelStatus(1); err == nil {
			t.Error("a daemon gives a flannelpeer's status")
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	}
}

func TestUDPRouted(t *testing.T) {
	c := udpConfig(t, 2, 1)
	c.Routed = true
	l := up(t, c)
	pingAll(t, l)
	ping(t, farPairs(l)[0], bench.Ping{Count: 3, Size: 1472 - 28, DF: true})
}

// Each side takes one off the TTL, beside each node's kernel.
func TestUDPTTL(t *testing.T) {
	l := up(t, udpConfig(t, 2, 1))
	p := farPairs(l)[0]
	if r := pingResult(t, p, bench.Ping{TTL: 5}); r.Received != 1 || r.TTL != 60 {
		t.Errorf("with TTL 5: %+v, want an answer with 60 left", r)
	}
	for ttl, expiresAt := range map[int]int{2: 1, 3: 2} { // after one kernel, and after one kernel and one peer
		before := flannelStatus(t, l, expiresAt).Expired
		if r := pingResult(t, p, bench.Ping{TTL: ttl, Timeout: 50 * time.Millisecond}); r.Received != 0 {
			t.Errorf("with TTL %d: %+v", ttl, r)
		}
		if after := flannelStatus(t, l, expiresAt).Expired; after != before+1 {
			t.Errorf("with TTL %d: %d expired at node %d", ttl, after-before, expiresAt)
		}
	}
}

// A subnet that nobody has is answered with ICMP "net unreachable".
func TestUDPUnreachable(t *testing.T) {
	l := up(t, udpConfig(t, 2, 1))
	var icmp *net.IPConn
	err := In("tulle-n1-p1", func() (err error) {
		icmp, err = net.ListenIP("ip4:icmp", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer icmp.Close()
	nobody := Pair{From: "tulle-n1-p1", Addr: netip.MustParseAddr("10.244.7.7")}
	pingResult(t, nobody, bench.Ping{Size: 56, Timeout: 50 * time.Millisecond})
	b := make([]byte, 2048)
	icmp.SetReadDeadline(time.Now().Add(time.Second))
	n, from, err := icmp.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	if n != 8+28 || b[0] != 3 || b[1] != 0 || from.String() != l.Nodes()[0].VTEP.String() {
		t.Errorf("got % x from %s", b[:n], from)
	}
}

// Nodes come and go, a killed peer's among them, and nothing stays behind.
func TestUDPChange(t *testing.T) {
	c := udpConfig(t, 2, 1)
	c.Dir = labDir(t)
	l := up(t, c)
	if _, err := l.AddKernelNode(testContext(t)); err != nil {
		t.Fatal(err)
	}
	pingAll(t, l)
	if err := l.RemoveNode(testContext(t), 1, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pingAll(t, l)
	if s := flannelStatus(t, l, 3); s.Peers != 1 {
		t.Errorf("node 3 has %d peers", s.Peers)
	}
	n := l.rec.Nodes[0]
	if err := l.stop(n, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := l.FlannelStatus(n.Number); err == nil {
		t.Error("a killed flannelpeer answers")
	}
	if err := l.Down(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, c.Dir)
}

// Whenever the maker is killed, the record covers what exists.
func TestUDPKilled(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	path := udpConfig(t, 1, 0).FlannelPeer
	for range 6 {
		dir := labDir(t)
		cmd := role(t, "up", dir, "ephemeral", StoreFile, path)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		delay := 30*time.Millisecond + time.Duration(random.Int64N(int64(150*time.Millisecond)))
		time.Sleep(delay)
		cmd.Process.Kill()
		cmd.Wait()
		stdin.Close()
		sockets, _ := filepath.Glob(dir + "/n*/socket")
		t.Logf("killed after %v: %d flannelpeers listened", delay, len(sockets))
		if err := Down(dir, nil); err != nil {
			t.Errorf("down after a kill at %v: %v", delay, err)
		}
		nothingLeft(t, dir)
	}
}

func TestUDPRefuses(t *testing.T) {
	c := Config{Nodes: 1, Kernel: kernelNodes(1), Backend: BackendUDP}
	if _, err := Up(testContext(t), c); err == nil || !strings.Contains(err.Error(), "flannelpeer") {
		t.Errorf("without a flannelpeer: %v", err)
	}
	c.FlannelPeer = "/bin/false"
	_, err := Up(testContext(t), c)
	if err == nil || !strings.Contains(err.Error(), "does not answer") && !strings.Contains(err.Error(), errEnded.Error()) {
		t.Errorf("with one that ends: %v", err)
	}
	c.Family = FamilyDual
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "IPv4 only") {
		t.Errorf("with IPv6: %v", err)
	}
	c.Family = "v5"
	if err := c.Check(); err == nil || err.Error() != "family v5: no such family (have: v4, v6, dual)" {
		t.Errorf("with IPv5: %v", err)
	}
}
