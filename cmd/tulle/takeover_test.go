package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/restarts"
	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// TestTakeover lets a second daemon take over from the first under load, again and again: no datagram is lost, comes twice or out of
// order, no connection is lost, every flow keeps its ID and creation time.
func TestTakeover(t *testing.T) {
	for name, c := range map[string]lab.Config{"udp": {}, "packet": {NodeArgs: []string{"--underlay", "packet", "--workers", "2"}}} {
		t.Run(name, func(t *testing.T) { takeOvers(t, 5, c) })
	}
}

func takeOvers(t *testing.T, times int, c lab.Config) {
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
	r := restarted(t, l, restarts.Plan{Takeover: true, Times: times, Streams: 8, Rate: 20_000, Executables: []string{next, self}})
	if r.Lost != 0 || r.Doubled != 0 || r.Reordered != 0 || r.Corrupt != 0 || r.ConnectionsLost != 0 || r.FlowsKept != r.Flows || r.Processes != times+1 || r.Builds != 2 {
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
