package main

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// A tcpStream sends as fast as it can until the test's end, and counts what arrives.
type tcpStream struct{ received atomic.Int64 }

func streamTCP(t testing.TB, p lab.Pair) *tcpStream {
	t.Helper()
	from, to, err := p.TCP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &tcpStream{}
	var wg sync.WaitGroup
	buf := make([]byte, 64<<10)
	wg.Go(func() {
		for _, err := from.Write(buf); err == nil; _, err = from.Write(buf) {
		}
	})
	wg.Go(func() { s.count(to) })
	t.Cleanup(func() {
		from.Close()
		to.Close()
		wg.Wait()
	})
	return s
}

func (s *tcpStream) count(from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		s.received.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// pathMTUs returns what a node believes of the paths to another, by outer address.
func pathMTUs(t *testing.T, l *lab.Lab, node int, peer string) map[netip.Addr]int {
	t.Helper()
	mtus := map[netip.Addr]int{}
	for _, p := range status(t, l, node).Peers {
		if p.Name != peer {
			continue
		}
		for _, path := range p.Paths {
			mtus[netip.MustParseAddr(path.To)] = path.MTU
		}
	}
	return mtus
}

// patience bounds what is only measured: how long it takes stands in the log.
const patience = 30 * time.Second

// eventually waits for ok and returns how long that took.
func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > patience {
			t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// TestPathMTU lowers the underlay's MTU under running TCP, in three ways: the router tells, the router is silent, the node's own link.
// The node learns it, TCP goes on, oversize packets with DF get an answer, and it is learned back when the path widens.
func TestPathMTU(t *testing.T) {
	kernel := map[int]bool{2: true}
	for _, c := range []struct {
		name     string
		underlay int
		kernel   map[int]bool
		narrow   func(l *lab.Lab, mtu int) error
	}{
		{"router tells", 1400, nil, func(l *lab.Lab, mtu int) error { return l.SetPathMTU(mtu, true) }},
		{"router is silent", 1400, nil, func(l *lab.Lab, mtu int) error { return l.SetPathMTU(mtu, false) }},
		{"own link", 1400, nil, func(l *lab.Lab, mtu int) error { return l.SetNodeMTU(1, mtu) }},
		{"router is silent, to a kernel VXLAN node", 1400, kernel, func(l *lab.Lab, mtu int) error { return l.SetPathMTU(mtu, false) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Routed: true, Family: lab.FamilyDual, Kernel: c.kernel})
			one, two := l.Nodes()[0], l.Nodes()[1]
			want := map[netip.Addr]int{two.PublicIP: c.underlay - 50, two.PublicIPv6: c.underlay - 70}
			wide := map[netip.Addr]int{two.PublicIP: 1430, two.PublicIPv6: 1430}
			learned := func(want map[netip.Addr]int) func() bool {
				return func() bool {
					got := pathMTUs(t, l, 1, two.Name)
					return got[two.PublicIP] == want[two.PublicIP] && got[two.PublicIPv6] == want[two.PublicIPv6]
				}
			}
			eventually(t, "the wide path", learned(wide))
			for _, addr := range two.Pods[0].Addrs() {
				p := lab.Pair{From: one.Pods[0].Namespace, To: two.Pods[0].Namespace, Addr: addr}
				stream := streamTCP(t, p)
				eventually(t, "TCP on the wide path", func() bool { return stream.received.Load() > 1<<20 })
				if err := c.narrow(l, c.underlay); err != nil {
					t.Fatal(err)
				}
				time.Sleep(200 * time.Millisecond) // what was under way
				before := stream.received.Load()
				resumed := eventually(t, "TCP on the narrow path", func() bool { return stream.received.Load() > before+1<<20 })
				took := eventually(t, "the narrow path", learned(want))
				t.Logf("%s: TCP went on after %v, the exact MTU known after %v more", addr, (resumed + 200*time.Millisecond).Round(time.Millisecond), took.Round(time.Millisecond))
				tooLong(t, p, 1430)
				if err := c.narrow(l, 0); err != nil {
					t.Fatal(err)
				}
				t.Logf("%s: the wide path is known again after %v", addr, eventually(t, "the wide path again", learned(wide)).Round(time.Millisecond))
			}
			if n := status(t, l, 1).Verdicts["drop_too_big"]; n == 0 {
				t.Error("nothing was dropped as too big")
			}
		})
	}
}

// tooLong demands that a ping with DF which does not fit is answered by an error that says how large one may be.
func tooLong(t *testing.T, p lab.Pair, mtu int) {
	t.Helper()
	r := ping(t, p, bench.Ping{Count: 1, Size: fullSize(p.Addr, mtu).Size, DF: true, Timeout: 500 * time.Millisecond})
	if r.Received != 0 {
		t.Errorf("%s: a ping of %d bytes with DF passed", p.Addr, mtu)
	}
}
