package main

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

var (
	smallPing = bench.Ping{Count: 3, Size: 56, Timeout: 2 * time.Second}
	largePing = bench.Ping{Count: 2, Size: 9000, Timeout: 2 * time.Second} // fragments
	fullPing  = bench.Ping{Count: 2, Size: 1450 - 28, Timeout: 2 * time.Second, DF: true}
)

// TestPods is two tulle nodes: pods and nodes reach each other with every kind of traffic.
func TestPods(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 2})
	for _, opts := range []bench.Ping{smallPing, largePing, fullPing} {
		pingAll(t, l.PodPairs(), opts)
		pingAll(t, l.NodePairs(), opts)
	}
	pingAll(t, nodeToNode(l), smallPing)
	traffic(t, l)
	for i := 1; i <= 2; i++ {
		if n := status(t, l, i).Verdicts["encapsulated"]; n < 10000 {
			t.Errorf("node %d encapsulated %d segments: the traffic did not go through it", i, n)
		}
	}
}

// TestWorkers is the same with more than one queue and thread on each node.
func TestWorkers(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, NodeArgs: []string{"--workers", "3"}})
	pingAll(t, l.PodPairs(), smallPing)
	traffic(t, l)
}

// TestSmallUnderlay is an underlay of less than 1500 bytes.
func TestSmallUnderlay(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, MTU: 1280})
	pingAll(t, l.PodPairs(), largePing)
	traffic(t, l)
}

// TestKernelPeer is a tulle node and a node that has only a kernel VXLAN device, set up as flannel does, with the
// underlay's offloads on and off.
func TestKernelPeer(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 2, Kernel: map[int]bool{2: true}})
	for _, on := range []bool{true, false} {
		t.Run(fmt.Sprintf("offloads=%t", on), func(t *testing.T) {
			if err := l.SetOffloads(on); err != nil {
				t.Fatal(err)
			}
			for _, opts := range []bench.Ping{smallPing, largePing, fullPing} {
				pingAll(t, l.PodPairs(), opts)
				pingAll(t, l.NodePairs(), opts)
			}
			pingAll(t, nodeToNode(l), smallPing)
			before := status(t, l, 1).Engine.Ports[1]
			traffic(t, l)
			after := status(t, l, 1).Engine.Ports[1]
			frames, segments := after.FramesIn-before.FramesIn, after.SegmentsIn-before.SegmentsIn
			if uncut := segments > frames; uncut != on {
				t.Errorf("offloads %t: %d datagrams in for %d segments: the kernel peer's super-packets came whole only if offloads are on", on, frames, segments)
			}
		})
	}
}

// TestOffloadsOff is two tulle nodes without any offload on the underlay.
func TestOffloadsOff(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	if err := l.SetOffloads(false); err != nil {
		t.Fatal(err)
	}
	traffic(t, l)
}

// traffic sends TCP and UDP between the first pods of nodes 1 and 2, both ways.
func traffic(t *testing.T, l *lab.Lab) {
	t.Helper()
	const bytes = 100 << 20
	for _, p := range []lab.Pair{between(l, 1, 2), between(l, 2, 1)} {
		r := transfer(t, p, bytes)
		t.Logf("%s to %s: %d MB at %.2f Gb/s", p.From, p.To, bytes>>20, r.Gbps())
		for _, size := range []int{8, 64, 1422, 1423, 9000, 60000} {
			exchange(t, p, size, 20)
		}
	}
}

// nodeToNode lists the ways between the nodes' own addresses inside the network.
func nodeToNode(l *lab.Lab) []lab.Pair {
	var pairs []lab.Pair
	for _, a := range l.Nodes() {
		for _, b := range l.Nodes() {
			if a.Number != b.Number {
				pairs = append(pairs, lab.Pair{From: a.Namespace, To: b.Namespace, Addr: b.VTEP})
			}
		}
	}
	return pairs
}

// TestStopped demands that pings fail while a daemon is stopped, so that it really is in the path, and work again after.
func TestStopped(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	p := between(l, 1, 2)
	pingAll(t, []lab.Pair{p}, smallPing)
	if err := l.SignalNode(2, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if r := ping(t, p, bench.Ping{Count: 2, Timeout: 300 * time.Millisecond}); r.Received != 0 {
		t.Errorf("%d pings answered while the daemon was stopped", r.Received)
	}
	if err := l.SignalNode(2, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // the late replies
	pingAll(t, []lab.Pair{p}, smallPing)
}

// TestKilled demands that a daemon which was killed comes back to where it was.
func TestKilled(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	mac := status(t, l, 2).Node.VTEPMAC
	for range 3 {
		if err := l.StopNode(t.Context(), 2, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := l.StartNode(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		pingAll(t, l.PodPairs(), smallPing)
	}
	if now := status(t, l, 2).Node.VTEPMAC; now != mac {
		t.Errorf("VTEP MAC %s after a restart, %s before", now, mac)
	}
}
