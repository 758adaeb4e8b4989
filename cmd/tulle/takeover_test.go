package main

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/restarts"
	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// TestTakeover lets a second daemon take over from the first under load, again and again: no datagram is lost, comes twice or out of
// order, no connection is lost, every flow keeps its ID and creation time. Datagrams in fragments lie on both sides of a takeover now and then.
func TestTakeover(t *testing.T) {
	packetSockets := lab.Config{NodeArgs: []string{"--underlay", "packet", "--workers", "2"}}
	for name, c := range map[string]struct {
		lab  lab.Config
		plan restarts.Plan
	}{
		"udp":       {plan: restarts.Plan{Times: 5, Rate: 20_000}},
		"packet":    {packetSockets, restarts.Plan{Times: 5, Rate: 20_000}},
		"fragments": {plan: restarts.Plan{Times: 20, Rate: 5000, Size: 4000}},
	} {
		t.Run(name, func(t *testing.T) { takeOvers(t, c.lab, c.plan) })
	}
}

func takeOvers(t *testing.T, c lab.Config, p restarts.Plan) {
	c.Nodes, c.Pods, c.Holder = 2, 1, true
	l := labUnderTest(t, c)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	next, err := need.Binary(t.Context(), t.TempDir(), "cmd/tulle")
	if err != nil {
		t.Fatal(err)
	}
	p.Takeover, p.Streams, p.Executables = true, 8, []string{next, self}
	r := restarted(t, l, p)
	if r.Lost != 0 || r.Doubled != 0 || r.Reordered != 0 || r.Corrupt != 0 || r.ConnectionsLost != 0 || r.FlowsKept != r.Flows || r.Processes != p.Times+1 || r.Builds != 2 {
		t.Errorf("%+v", *r)
	}
	stopClean(t, l)
}

// TestTakeoverGivenUp lets the first daemon go on: the second one has another configuration, or stops before it says that it is ready.
func TestTakeoverGivenUp(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Holder: true})
	ways := []lab.Pair{between(l, 1, 2), between(l, 2, 1)}
	streams, udp := startStreams(t, ways, 2), udpPairs(t, ways)
	n, err := l.Node(1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan []bench.SequenceResult)
	go func() {
		done <- sequences(t, udp, bench.Sequence{Count: 7500, Size: 200, Interval: 200 * time.Microsecond})
	}()
	time.Sleep(100 * time.Millisecond)
	if err := request(t.Context(), n.RunDir, pathYield); err != nil { // and nothing after
		t.Error(err)
	}
	if err := request(t.Context(), n.RunDir, pathYield); err == nil {
		t.Error("yielded twice")
	}
	time.Sleep(2 * readyWithin)
	if err := request(t.Context(), n.RunDir, pathYielded); err == nil {
		t.Error("gave way after the time was over")
	}
	if err := l.SetNodeArgs(t.Context(), 1, "--workers", "2"); err != nil {
		t.Fatal(err)
	}
	if err := l.TakeOver(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "configured: ") {
		t.Errorf("taken over with another configuration: %v", err)
	}
	for _, r := range <-done {
		if r.Lost() != 0 || r.Duplicates != 0 || r.Reordered != 0 || r.Corrupt != 0 {
			t.Errorf("the first daemon goes on: %+v", r)
		}
		t.Logf("longest gap %v", r.LongestGap)
	}
	if r := status(t, l, 1); r.PID != n.PID || !r.Engine.Balanced || r.Holder.Keeps == 0 {
		t.Errorf("%+v", r)
	}
	streams.end(t)
	if err := syscall.Kill(n.PID, 0); err != nil {
		t.Error(err)
	}
}

// TestTakeoverOfFragments lets a daemon give way while a fragment waits in it for its first one, and between the first fragments of other
// datagrams, one each way, and the rest: the next daemon delivers them all.
func TestTakeoverOfFragments(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Holder: true})
	var all []*splitDatagram
	for i, p := range []lab.Pair{between(l, 1, 2), between(l, 1, 2), between(l, 2, 1)} {
		d := split(t, p, i == 0)
		d.send(t, d.before)
		all = append(all, d)
	}
	awaitNode(t, l, 1, func(r *statusReport) bool { return r.Engine.Ledger.Queued == 1 })
	if err := l.TakeOver(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if r := status(t, l, 1); r.Engine.Ledger.Inherited != 1 || r.Engine.Ledger.Queued != 1 {
		t.Errorf("the next daemon: %+v", r.Engine.Ledger)
	}
	for _, d := range all {
		d.send(t, d.after)
		d.receive(t)
	}
	stopClean(t, l)
}

// A splitDatagram is a UDP datagram from pod to pod in two fragments.
type splitDatagram struct {
	to            *net.UDPConn
	raw           *os.File
	dst           netip.Addr
	before, after []byte // which fragment goes first
	payload       []byte
}

func split(t *testing.T, p lab.Pair, lastFirst bool) *splitDatagram {
	t.Helper()
	tx, rx, err := p.UDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Close(); rx.Close() })
	d := &splitDatagram{to: rx, dst: p.Addr, payload: make([]byte, 1992)}
	rand.NewChaCha8([32]byte{}).Read(d.payload)
	err = lab.In(p.From, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		d.raw = os.NewFile(uintptr(fd), "raw socket")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.raw.Close() })
	from, to := tx.LocalAddr().(*net.UDPAddr), rx.LocalAddr().(*net.UDPAddr)
	ip := &layers.IPv4{Version: 4, TTL: 64, Id: uint16(1000 + to.Port), Protocol: layers.IPProtocolUDP, SrcIP: from.IP, DstIP: p.Addr.AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port), DstPort: layers.UDPPort(to.Port)}
	udp.SetNetworkLayerForChecksum(ip)
	whole := serialized(t, udp, gopacket.Payload(d.payload))
	const cut = 1000 // a multiple of 8
	ip.Flags = layers.IPv4MoreFragments
	d.before = serialized(t, ip, gopacket.Payload(whole[:cut]))
	ip.Flags, ip.FragOffset = 0, cut/8
	d.after = serialized(t, ip, gopacket.Payload(whole[cut:]))
	if lastFirst {
		d.before, d.after = d.after, d.before
	}
	return d
}

func serialized(t *testing.T, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (d *splitDatagram) send(t *testing.T, fragment []byte) {
	t.Helper()
	if err := unix.Sendto(int(d.raw.Fd()), fragment, 0, &unix.SockaddrInet4{Addr: d.dst.As4()}); err != nil {
		t.Fatal(err)
	}
}

func (d *splitDatagram) receive(t *testing.T) {
	t.Helper()
	b := make([]byte, 4096)
	d.to.SetReadDeadline(time.Now().Add(testTimeout))
	if n, err := d.to.Read(b); err != nil || !bytes.Equal(b[:n], d.payload) {
		t.Errorf("%v: %d bytes, %v", d.dst, n, err)
	}
}
