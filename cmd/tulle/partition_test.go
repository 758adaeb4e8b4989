package main

import (
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestPartition cuts five nodes into three and two for a minute, lets a node join on each side, and heals it: all know each other again, no subnet
// is doubled, and connections of pods on one side of the cut lose nothing from before it till after.
func TestPartition(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 5, Pods: 1})
	subnets := map[string]string{}
	for _, n := range l.Nodes() {
		subnets[n.Name] = n.Subnet.String()
	}
	ways := []lab.Pair{between(l, 1, 2), between(l, 5, 4)}
	streams := startStreams(t, ways, 2)
	udp := udpPairs(t, ways)
	datagrams := make(chan []bench.SequenceResult)
	go func() {
		datagrams <- sequences(t, udp, bench.Sequence{Count: 38_000, Size: 200, Interval: 2 * time.Millisecond})
	}()

	if err := l.Split(t.Context(), 4, 5, 7); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	awaitAll(t, l, time.Minute, func(n lab.Node, r *statusReport) bool {
		return answering(r) == map[bool]int{false: 2, true: 1}[n.Number > 3]
	})
	t.Logf("either side sees the other as gone %s after the cut", time.Since(cut).Round(100*time.Millisecond))
	for range 2 { // node 6 on the near side, node 7 on the far side
		if _, err := l.AddNode(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(cut.Add(time.Minute)))
	if err := l.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	awaitAll(t, l, time.Minute, func(_ lab.Node, r *statusReport) bool { return answering(r) == 6 })
	t.Logf("all of seven nodes know all %s after the healing", time.Since(healed).Round(100*time.Millisecond))

	owner := map[string]string{}
	for _, n := range l.Nodes() {
		subnet := status(t, l, n.Number).Node.Subnet
		if other := owner[subnet]; other != "" {
			t.Errorf("%s has %s, and so has %s", n.Name, subnet, other)
		}
		if had := subnets[n.Name]; had != "" && had != subnet {
			t.Errorf("%s has %s, it had %s", n.Name, subnet, had)
		}
		owner[subnet] = n.Name
	}
	for _, r := range <-datagrams {
		if r.Lost() != 0 || r.Duplicates != 0 || r.Reordered != 0 || r.Corrupt != 0 {
			t.Errorf("on one side of the cut: %+v", r)
		}
	}
	streams.end(t)
	pingAll(t, l.PodPairs(), smallPing)
}

// answering counts the peers that answer and have a route: a node that believes itself cut off keeps the routes of those that don't.
func answering(r *statusReport) (n int) {
	for _, p := range r.Peers {
		if p.Routable && p.State == "alive" {
			n++
		}
	}
	return n
}

// awaitAll waits until every daemon's status is as it should be.
func awaitAll(t *testing.T, l *lab.Lab, patience time.Duration, ok func(lab.Node, *statusReport) bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for _, n := range l.Nodes() {
		for r := status(t, l, n.Number); !ok(n, r); r = status(t, l, n.Number) {
			if time.Now().After(deadline) {
				t.Fatalf("node %s: %+v", n.Name, r)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}
