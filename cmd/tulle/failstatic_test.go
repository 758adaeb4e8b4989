package main

import (
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestFailStatic takes the gossip away from two nodes, for longer than it takes to believe the other one dead: each forwards with what it
// knew last, flows that begin meanwhile too, and loses nothing. The tests of the engine show that it forwards nothing without tables.
func TestFailStatic(t *testing.T) {
	const gossipPort = 7946
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	nodes := l.Nodes()
	in(t, nodes[0], func() error { return dropPort(nodes[1].PublicIP, gossipPort) })
	in(t, nodes[1], func() error { return dropPort(nodes[0].PublicIP, gossipPort) })
	steady := bench.Ping{Count: 500, Interval: 20 * time.Millisecond, Size: 56, Timeout: 2 * time.Second}
	r := pingBy(t, inPod(nodes[0].Pods[0]), nodes[1].Pods[0].Addr, steady)
	if r.Lost() != 0 || r.Duplicates != 0 || r.Corrupt != 0 {
		t.Errorf("without the gossip: %+v", r)
	}
	for number, other := range map[int]string{1: "n2", 2: "n1"} {
		awaitNode(t, l, number, func(r *statusReport) bool {
			p := r.Peers[0]
			return p.Name == other && p.State != "alive" && p.Routable
		})
	}
	transfer(t, between(l, 1, 2), 20<<20)
	for _, n := range nodes {
		in(t, n, dropNothing)
	}
	for number := range 2 {
		awaitNode(t, l, number+1, func(r *statusReport) bool { return r.Peers[0].State == "alive" && r.Peers[0].Routable })
	}
}
