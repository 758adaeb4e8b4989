package lab

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
)

func TestRouted(t *testing.T) {
	l := up(t, Config{Nodes: 3, Pods: 2, Kernel: kernelNodes(3), Routed: true})
	for i, want := range []string{"192.168.77.1", "192.168.78.2", "192.168.77.3"} {
		if n := l.Nodes()[i]; n.PublicIP.String() != want {
			t.Errorf("node %d is %s, want %s", n.Number, n.PublicIP, want)
		}
	}
	if r := l.Router(); len(r) != 2 || r[0].String() != "192.168.77.254" || r[1].String() != "192.168.78.254" {
		t.Errorf("router %v", r)
	}
	for _, on := range []bool{true, false} {
		if err := l.SetOffloads(on); err != nil {
			t.Fatal(err)
		}
		pingAll(t, l)
		near := Pair{From: "tulle-n1-p1", To: "tulle-n3-p1", Addr: l.Nodes()[2].Pods[0].Addr}
		far := Pair{From: "tulle-n1-p1", To: "tulle-n2-p2", Addr: l.Nodes()[1].Pods[1].Addr}
		for _, p := range []Pair{near, far} {
			ping(t, p, bench.Ping{Count: 3, Size: l.MTU() - vxlanOverhead - 28, DF: true})
			before := forwarded(t)
			transfer(t, p, 20<<20)
			if crossed := forwarded(t) - before; (crossed > 20<<20) != (p == far) {
				t.Errorf("%s to %s: the router forwarded %d bytes of 20 MiB", p.From, p.To, crossed)
			}
			exchange(t, p, 9000)
		}
	}
}

// forwarded counts the bytes that the router has sent.
func forwarded(t *testing.T) (n uint64) {
	t.Helper()
	err := In(RouterNamespace, func() error {
		for _, s := range segments {
			link, err := netlink.LinkByName(s.routerLink())
			if err != nil {
				return err
			}
			n += link.Attrs().Statistics.TxBytes
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Without the router nothing gets from one segment to the other.
func TestRouterIsTheOnlyWay(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2), Routed: true})
	far := Pair{From: "tulle-n1", To: "tulle-n2", Addr: l.Nodes()[1].PublicIP}
	ping(t, far, bench.Ping{Count: 2, Size: 56})
	if err := In(RouterNamespace, func() error { return sysctl("ipv4/ip_forward", "0") }); err != nil {
		t.Fatal(err)
	}
	p, err := pinger(far, bench.Ping{Count: 2, Size: 56, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if r, err := p.Run(testContext(t)); err != nil || r.Received != 0 {
		t.Errorf("with a router that does not forward: %+v, %v", r, err)
	}
}
