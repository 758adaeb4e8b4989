package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestFailStatic takes the control plane away from nodes that forward: gossip is cut off on every node, or the peers file is damaged, gone or
// not readable. Traffic goes on with the last tables and loses nothing, and new flows begin. For etcd see TestEtcd, for the
// disk TestFullDisk.
func TestFailStatic(t *testing.T) {
	t.Run("gossip", func(t *testing.T) {
		l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
		undisturbed(t, l, func() {
			for _, n := range l.Nodes() {
				runIn(t, n.Namespace, "nft", `table inet cut {
					chain in { type filter hook input priority 0; meta l4proto { tcp, udp } th dport 7946 counter drop; }
					chain out { type filter hook output priority 0; meta l4proto { tcp, udp } th dport 7946 counter drop; }
				}`)
			}
			for number := 1; number <= 2; number++ {
				awaitNode(t, l, number, func(r *statusReport) bool { return answering(r) == 0 && r.Peers[0].Routable })
			}
		})
		for number := 1; number <= 2; number++ {
			if r := status(t, l, number); answering(r) != 0 {
				t.Errorf("node %d: the control plane came back, so that this shows nothing: %+v", number, r.Peers)
			}
		}
	})
	t.Run("file", func(t *testing.T) {
		l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
		path := filepath.Join(l.Dir(), "peers.json")
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name   string
			change func() error
		}{
			{"damaged", func() error { return os.WriteFile(path, []byte(`[{"name": "n1", "publ`), 0o644) }},
			{"gone", func() error { return os.Remove(path) }},
			{"not readable", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }}, // by root neither
		} {
			t.Run(c.name, func(t *testing.T) {
				undisturbed(t, l, func() {
					if err := c.change(); err != nil {
						t.Fatal(err)
					}
					awaitStatus(t, l, func(r *statusReport) bool { return len(r.Problems) > 0 && len(r.Peers) == 1 && r.Peers[0].Routable })
				})
				if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, good, 0o644)); err != nil {
					t.Fatal(err)
				}
				awaitStatus(t, l, func(r *statusReport) bool { return len(r.Problems) == 0 && len(r.Peers) == 1 })
			})
		}
	})
}

// undisturbed does f while datagrams and TCP go both ways between two nodes' pods: nothing is lost. Afterwards new flows begin.
func undisturbed(t *testing.T, l *lab.Lab, f func()) {
	t.Helper()
	ways := []lab.Pair{between(l, 1, 2), between(l, 2, 1)}
	streams, udp := startStreams(t, ways, 2), udpPairs(t, ways)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan []bench.SequenceResult, 1)
	go func() {
		var all []bench.SequenceResult
		for ctx.Err() == nil { // until some of them began after f
			all = append(all, sequences(t, udp, bench.Sequence{Count: 1000, Size: 200, Interval: time.Millisecond})...)
		}
		done <- all
	}()
	f()
	time.Sleep(2 * time.Second) // of traffic without the control plane
	stop()
	sent := 0
	for _, r := range <-done {
		if sent += r.Sent; r.Lost() != 0 || r.Duplicates != 0 || r.Reordered != 0 || r.Corrupt != 0 {
			t.Errorf("%+v", r)
		}
	}
	t.Logf("%d datagrams", sent)
	streams.end(t)
	pingAll(t, l.PodPairs(), smallPing)
	for _, p := range ways {
		transfer(t, p, 4<<20)
	}
}

// TestFailClosed sends a node that never gets a subnet, so that it has no tables, sound packets from its kernel and from a peer: none goes on,
// and each is counted as what it is.
func TestFailClosed(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1, MayFail: map[int]bool{3: true}, NodeArgsFor: func(number int) []string {
		if number == 3 {
			return []string{"--majority", "9"} // which are not there
		}
		return nil
	}})
	peer, closed := l.Nodes()[0], l.Nodes()[2]
	const fromKernel, fromPeer = 300, 500
	before := status(t, l, 3)
	if before.NotReady == "" || before.Node.Subnet != "" {
		t.Fatalf("node 3 has tables: %+v", before.Node)
	}
	f, mac := &forger{t: t}, net.HardwareAddr{2, 5: 9}
	f.udp("sound", "", mac, peer.Pods[0].Addr, netip.MustParseAddr("10.244.77.2"), 4000)
	inner := f.all[0].frame
	in(t, closed, func() error { return sendRaw(tapName, inner, fromKernel) })
	in(t, peer, func() error {
		c, err := net.Dial("udp", net.JoinHostPort(closed.PublicIP.String(), "8472"))
		if err != nil {
			return err
		}
		defer c.Close()
		for range fromPeer {
			_, err = c.Write(append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...))
			if err != nil {
				return err
			}
		}
		return nil
	})
	const sent = fromKernel + fromPeer
	awaitNode(t, l, 3, func(r *statusReport) bool { return r.Engine.Ledger.In >= before.Engine.Ledger.In+sent })
	after := status(t, l, 3)
	for verdict, n := range after.Verdicts {
		if got := n - before.Verdicts[verdict]; got != map[bool]uint64{true: sent}[verdict == "drop_no_tables"] {
			t.Errorf("%s: %d more", verdict, got)
		}
	}
	if out := after.Engine.Ledger.Out; out != 0 || after.Flows.Inserted != 0 {
		t.Errorf("%d segments out, %d flows of a node without tables", out, after.Flows.Inserted)
	}
}

// sendRaw gives a link a frame to send, again and again.
func sendRaw(name string, frame []byte, times int) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for range times {
		err = errors.Join(err, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}))
	}
	return errors.Join(err, unix.Close(fd))
}
