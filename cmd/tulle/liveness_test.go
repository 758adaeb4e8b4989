package main

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"github.com/tulle-net/tulle/scripts/lab"
)

// TestLiveness cuts the tunnel between nodes whose pods talk, in one direction and in both, and nothing else: the gossip goes on. Both
// ends have to know it soon, with the reason, and that it is over. The third node is a kernel's.
func TestLiveness(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1, Kernel: map[int]bool{3: true}})
	nodes := l.Nodes()
	for _, pair := range [][2]int{{1, 2}, {2, 1}, {1, 3}} {
		talk(t, nodes[pair[0]-1].Pods[0], nodes[pair[1]-1].Pods[0])
	}
	up := func(p pathReport) bool { return p.State == "up" && p.Reason == "" }
	dead := func(states ...string) func(pathReport) bool {
		return func(p pathReport) bool {
			for _, s := range states {
				if p.State == s && strings.HasPrefix(p.Reason, s+": probes to ") {
					return true
				}
			}
			return false
		}
	}
	awaitPath(t, l, 1, "n2", time.Now(), up)
	awaitPath(t, l, 2, "n1", time.Now(), up)
	awaitPath(t, l, 1, "n3", time.Now(), up)
	time.Sleep(time.Second) // the traffic is noticed

	cut := time.Now()
	in(t, nodes[1], func() error { return dropTunnel(nodes[0].PublicIP) })
	awaitPath(t, l, 1, "n2", cut, dead("one-way"))
	awaitPath(t, l, 2, "n1", cut, dead("silent"))
	cut = time.Now()
	in(t, nodes[0], func() error { return dropTunnel(nodes[1].PublicIP) })
	awaitPath(t, l, 1, "n2", cut, dead("silent"))
	healed := time.Now()
	in(t, nodes[0], letTunnel)
	in(t, nodes[1], letTunnel)
	awaitPath(t, l, 1, "n2", healed, up)
	awaitPath(t, l, 2, "n1", healed, up)

	cut = time.Now()
	in(t, nodes[2], func() error { return dropTunnel(nodes[0].PublicIP) })
	awaitPath(t, l, 1, "n3", cut, dead("silent", "one-way"))
	in(t, nodes[2], letTunnel)
	awaitPath(t, l, 1, "n3", time.Now(), up)
	for _, p := range status(t, l, 1).Problems {
		t.Errorf("a problem after all: %s", p)
	}
}

// talk sends a datagram every 5 ms until the test ends. Nobody has to listen.
func talk(t *testing.T, from, to lab.Pod) {
	t.Helper()
	var rx net.PacketConn
	var tx net.Conn
	err := lab.In(to.Namespace, func() (err error) {
		rx, err = net.ListenPacket("udp", netip.AddrPortFrom(to.Addr, 0).String())
		return err
	})
	if err == nil {
		err = lab.In(from.Namespace, func() (err error) { tx, err = net.Dial("udp", rx.LocalAddr().String()); return err })
	}
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				tx.Write([]byte("still here"))
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		tx.Close()
		rx.Close()
	})
}

// awaitPath waits until a node says of the path to a peer what ok demands, and logs how long that took.
func awaitPath(t *testing.T, l *lab.Lab, node int, peer string, since time.Time, ok func(pathReport) bool) {
	t.Helper()
	var last pathReport
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, p := range status(t, l, node).Peers {
			if p.Name == peer && len(p.Paths) > 0 {
				last = p.Paths[0]
			}
		}
		if ok(last) {
			t.Logf("n%d knows of the path to %s after %s: %s %s", node, peer, time.Since(since).Round(10*time.Millisecond), last.State, last.Reason)
			return
		}
	}
	t.Fatalf("n%d: path to %s: %+v", node, peer, last)
}

const testDropTable = "tulle-test"

// dropTunnel drops the tunnel's datagrams from a node, before sockets and devices get them.
func dropTunnel(from netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: testDropTable, Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(8472)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return c.Flush()
}

// letTunnel ends that.
func letTunnel() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(&nftables.Table{Name: testDropTable, Family: nftables.TableFamilyIPv4})
	return c.Flush()
}
