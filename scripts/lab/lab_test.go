package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// up builds a lab that the test's end removes.
func up(t *testing.T, c Config) *Lab {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	c.Ephemeral, c.Progress = true, t.Output()
	before := hostState(t)
	l, err := Up(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		if after := hostState(t); after != before {
			t.Errorf("the host's links or routes changed: before %s, after %s", before, after)
		}
	})
	if during := hostState(t); during != before {
		t.Errorf("the host's links or routes changed: before %s, now %s", before, during)
	}
	return l
}

// hostState is what the lab must leave alone.
func hostState(t *testing.T) string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var s string
	for _, l := range links {
		s += l.Attrs().Name + " "
	}
	for _, r := range routes {
		s += "[" + r.String() + "] "
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv4/conf/all/rp_filter", "ipv6/conf/all/disable_ipv6"} {
		b, _ := os.ReadFile("/proc/sys/net/" + key)
		s += key + "=" + string(b)
	}
	return s
}

func kernelNodes(n int) map[int]bool {
	m := map[int]bool{}
	for i := 1; i <= n; i++ {
		m[i] = true
	}
	return m
}

func TestKernelNodes(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 2, Kernel: kernelNodes(2)})
	for _, on := range []bool{true, false, true} {
		t.Run(fmt.Sprintf("offloads %t", on), func(t *testing.T) {
			if err := l.SetOffloads(on); err != nil {
				t.Fatal(err)
			}
			for _, p := range append(l.PodPairs(), l.NodePairs()...) {
				ping(t, p, bench.Ping{Count: 3, Interval: time.Millisecond, Size: 56})
			}
			far := Pair{From: "tulle-n1-p1", To: "tulle-n2-p2", Addr: l.Nodes()[1].Pods[1].Addr}
			ping(t, far, bench.Ping{Count: 3, Size: l.MTU() - vxlanOverhead - 28, DF: true})
			ping(t, far, bench.Ping{Count: 3, Size: 4000})
			transfer(t, far, 20<<20)
			exchange(t, far, 64)
			exchange(t, far, 9000)
		})
	}
}

func TestJumboUnderlay(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2), MTU: 9000})
	far := l.PodPairs()[0]
	ping(t, far, bench.Ping{Size: 9000 - vxlanOverhead - 28, DF: true})
	transfer(t, far, 20<<20)
	p, err := pinger(far, bench.Ping{Size: 9000 - vxlanOverhead - 27, DF: true, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if r, err := p.Run(testContext(t)); err != nil || r.Received != 0 || r.Err == nil {
		t.Errorf("one byte above the MTU with DF: %+v, %v", r, err)
	}
}

func pinger(p Pair, opts bench.Ping) (pinger *bench.Pinger, err error) {
	err = In(p.From, func() (err error) {
		pinger, err = bench.NewPinger(p.Addr, opts)
		return err
	})
	return pinger, err
}

func ping(t *testing.T, p Pair, opts bench.Ping) {
	t.Helper()
	pinger, err := pinger(p, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer pinger.Close()
	r, err := pinger.Run(testContext(t))
	if err != nil || r.Lost()+r.Duplicates+r.Corrupt > 0 {
		t.Fatalf("ping %s to %s: %+v, %v", p.From, p.To, r, err)
	}
}

func transfer(t *testing.T, p Pair, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(testContext(t), 30*time.Second)
	defer cancel()
	from, to, err := p.TCP(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	r, err := bench.Transfer(ctx, rand.Reader, n, from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes in %v: %.2f Gb/s", r.Received, r.Duration, r.Gbps())
}

func exchange(t *testing.T, p Pair, size int) {
	t.Helper()
	from, to, err := p.UDP()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	r, err := bench.Exchange(testContext(t), from, to, size, 20, time.Second)
	if want := (bench.ExchangeResult{Sent: 20, Answered: 20}); err != nil || r != want {
		t.Errorf("exchange of %d bytes: got %+v, %v, want %+v", size, r, err, want)
	}
}

// The offload switch must change what crosses the underlay: off, nothing larger than the MTU does.
func TestOffloadsOnTheWire(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2)})
	far := l.PodPairs()[0]
	for _, on := range []bool{true, false} {
		if err := l.SetOffloads(on); err != nil {
			t.Fatal(err)
		}
		perPacket := func() float64 {
			packets, bytes := underlayCounters(t)
			transfer(t, far, 20<<20)
			packets2, bytes2 := underlayCounters(t)
			return float64(bytes2-bytes) / float64(packets2-packets)
		}()
		// Acknowledgements are in the other direction: these counters are of the sender's frames only.
		t.Logf("offloads %t: %.0f bytes per frame", on, perPacket)
		if on != (perPacket > 1514) {
			t.Errorf("offloads %t: %.0f bytes per frame", on, perPacket)
		}
	}
}

func underlayCounters(t *testing.T) (packets, bytes uint64) {
	t.Helper()
	err := In("tulle-n1", func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		s := link.Attrs().Statistics
		packets, bytes = s.TxPackets, s.TxBytes
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets, bytes
}

// The kernel nodes must send what flannel's do: outer UDP checksums are there (zero would mean none).
func TestKernelNodeSendsOuterChecksums(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2), Family: FamilyDual})
	if err := l.SetOffloads(false); err != nil {
		t.Fatal(err)
	}
	for i, outer := range []string{"ip4:udp", "ip6:udp"} {
		from := []netip.Addr{nodeOf(t, l, 1).PublicIP, nodeOf(t, l, 1).PublicIPv6}[i]
		t.Run(outer, func(t *testing.T) { testOuterChecksum(t, farPairs(l)[i], outer, from) })
	}
}

func testOuterChecksum(t *testing.T, p Pair, outer string, want netip.Addr) {
	var sniffer net.PacketConn
	err := In("tulle-n2", func() (err error) {
		sniffer, err = net.ListenPacket(outer, "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sniffer.Close()
	ping(t, p, bench.Ping{Size: 56})
	sniffer.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 2048)
	n, from, err := sniffer.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	if port := int(b[2])<<8 | int(b[3]); n < 16 || port != vxlanPort || from.String() != want.String() {
		t.Fatalf("got %d bytes from %v to port %d", n, from, port)
	}
	if b[6] == 0 && b[7] == 0 {
		t.Error("the outer UDP checksum is zero")
	}
	if b[8] != 0x08 || b[12] != 0 || b[13] != 0 || b[14] != 1 {
		t.Errorf("VXLAN header % x, want flags 08 and VNI 1", b[8:16])
	}
}
