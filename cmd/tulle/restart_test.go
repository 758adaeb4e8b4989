package main

import (
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/restarts"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/dataplane/holder"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestRestartWithoutLoss kills a node's daemon at random moments under load and starts it again, with a holder beside it: no TCP connection
// is lost, no UDP datagram comes twice or out of order, every flow keeps its ID and creation time. How long nothing came is logged, not
// judged. The control wipes the flow table while the daemon is dead: no flow passes the same check.
func TestRestartWithoutLoss(t *testing.T) { restartWithoutLoss(t, 10, lab.Config{}) }

// TestRestartUnderlays is the same for the other kinds of sockets, and for several workers.
func TestRestartUnderlays(t *testing.T) {
	for name, c := range map[string]lab.Config{
		"packet": {NodeArgs: []string{"--underlay", "packet"}}, "udp": {Backend: lab.BackendUDP}, "workers": {NodeArgs: []string{"--workers", "3"}},
	} {
		t.Run(name, func(t *testing.T) { restartWithoutLoss(t, 2, c) })
	}
}

func restartWithoutLoss(t *testing.T, times int, c lab.Config) {
	c.Nodes, c.Pods, c.Holder = 2, 1, true
	l := labUnderTest(t, c)
	r := restarted(t, l, restarts.Plan{Times: times, Streams: 8, Rate: 20_000})
	if r.Doubled != 0 || r.Reordered != 0 || r.Corrupt != 0 || r.ConnectionsLost != 0 || r.FlowsKept != r.Flows || r.Processes != times+1 {
		t.Errorf("%+v", *r)
	}
	t.Run("control", func(t *testing.T) { restartWiped(t, l) })
	stopClean(t, l)
}

// restarted carries the plan out and demands that each daemon adopts everything.
func restarted(t *testing.T, l *lab.Lab, p restarts.Plan) *result.Restarts {
	t.Helper()
	r, err := p.Run(t.Context(), l, testWriter{t}, func() error { checkAdopted(t, l, p.Streams); return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %d times: %s; of %d TCP connections %d lost, longest stall %v", r.What, r.Times, r.Sum(), r.Connections, r.ConnectionsLost, r.Stall.Round(time.Millisecond))
	return r
}

// restart kills node 1's daemon, does f and starts it again.
func restart(t *testing.T, l *lab.Lab, f func()) {
	t.Helper()
	if err := l.StopNode(t.Context(), 1, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f()
	if err := l.StartNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
}

// checkAdopted demands that the daemon has taken over everything.
func checkAdopted(t *testing.T, l *lab.Lab, flows int) {
	t.Helper()
	r := status(t, l, 1)
	h := r.Holder
	for _, part := range keptParts(r) {
		if !slices.Contains(h.Adopted, part) {
			t.Errorf("%s is not adopted: %+v", part, h)
		}
	}
	if len(h.NotAdopted) != 0 || h.Flows.Kept < flows || h.Flows.Foreign != 0 || h.Keeps == 0 {
		t.Errorf("after a kill: %+v", h)
	}
}

// keptParts returns what a daemon has that outlives it.
func keptParts(r *statusReport) []string {
	parts := []string{partUnderlay, partFlows, partTAP, partState}
	if slices.Contains(r.Underlay.Offloads, "udp_tunnel_gso") {
		parts = append(parts, partTunnel)
	}
	return parts
}

// restartWiped is the control.
func restartWiped(t *testing.T, l *lab.Lab) {
	streams := startStreams(t, []lab.Pair{between(l, 1, 2), between(l, 2, 1)}, 4)
	time.Sleep(100 * time.Millisecond) // of traffic
	before := flowsOf(t, l, 1)
	restart(t, l, func() { wipeFlows(t, l) })
	if h := status(t, l, 1).Holder; h.NotAdopted[partFlows] == "" || h.Flows.Kept != 0 {
		t.Errorf("with its flow table wiped: %+v", h)
	}
	time.Sleep(time.Second) // of traffic
	after, same, there := flowsOf(t, l, 1), 0, 0
	for key, was := range before {
		if now, ok := after[key]; ok {
			if there++; now == was {
				same++
			}
		}
	}
	if same != 0 || there == 0 {
		t.Errorf("with its flow table wiped %d of %d flows have the ID and time that they had", same, there)
	}
	streams.end(t)
}

// withSet has what a node's holder keeps.
func withSet(t *testing.T, n lab.Node, f func(*holder.Client, holder.Set)) {
	t.Helper()
	c, err := holder.Dial(filepath.Join(n.RunDir, holderSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	set, err := c.Take()
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	f(c, set)
}

// wipeFlows writes zeros over the flow table that the holder of node 1 has.
func wipeFlows(t *testing.T, l *lab.Lab) {
	t.Helper()
	withSet(t, l.Nodes()[0], func(_ *holder.Client, set holder.Set) { wipe(t, set) })
}

func wipe(t *testing.T, set holder.Set) {
	t.Helper()
	var meta heldMeta
	if err := json.Unmarshal(set.Meta, &meta); err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, p := range meta.Parts {
		if p.Name == partFlows {
			var st unix.Stat_t
			if err := unix.Fstat(set.Files[at], &st); err != nil {
				t.Fatal(err)
			}
			if n, err := unix.Pwrite(set.Files[at], make([]byte, st.Size), 0); err != nil || int64(n) != st.Size {
				t.Fatal(n, err)
			}
			return
		}
		at += p.Files
	}
	t.Fatalf("the holder has no flows: %+v", meta.Parts)
}

// stopClean ends the daemon with SIGTERM: nothing is left, in the kernel and with the holder.
func stopClean(t *testing.T, l *lab.Lab) {
	t.Helper()
	n, err := l.Node(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StopNode(t.Context(), 1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	in(t, n, func() error {
		if _, err := netlink.LinkByName(tapName); !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("the TAP after a clean stop: %v", err)
		}
		return nil
	})
	c, err := holder.Dial(filepath.Join(n.RunDir, holderSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Take(); !errors.Is(err, holder.ErrEmpty) {
		t.Errorf("the holder after a clean stop: %v", err)
	}
}

// udpPairs opens two flows for each way.
func udpPairs(t *testing.T, ways []lab.Pair) (udp []udpPair) {
	t.Helper()
	for _, p := range slices.Concat(ways, ways) {
		from, to, err := p.UDP()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { from.Close(); to.Close() })
		udp = append(udp, udpPair{from, to})
	}
	return udp
}

type udpPair struct{ from, to *net.UDPConn }

// sequences sends over all pairs at once.
func sequences(t *testing.T, pairs []udpPair, s bench.Sequence) []bench.SequenceResult {
	results := make([]bench.SequenceResult, len(pairs))
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() {
			var err error
			if results[i], err = s.Run(t.Context(), p.from, p.to); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return results
}

// flowsOf lists a node's TCP and UDP flows by what they are of.
func flowsOf(t *testing.T, l *lab.Lab, number int) map[string]restarts.Flow {
	t.Helper()
	n, err := l.Node(number)
	if err != nil {
		t.Fatal(err)
	}
	flows, err := restarts.Flows(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// streams are TCP connections on which something flows all the time.
type streams struct{ bench.Streams }

func startStreams(t *testing.T, ways []lab.Pair, each int) *streams {
	t.Helper()
	s := new(streams)
	for _, p := range ways {
		for range each {
			from, to, err := p.TCP(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Stop(); from.Close(); to.Close() })
			s.Start(from.(*net.TCPConn), to, 2*time.Millisecond)
		}
	}
	return s
}

// end lets the streams end, and demands that all arrived.
func (s *streams) end(t *testing.T) {
	t.Helper()
	r, all := s.End(testTimeout)
	if !all {
		t.Fatal("TCP connections do not end")
	}
	for _, err := range r.Lost {
		t.Errorf("a TCP connection was lost: %v", err)
	}
	t.Logf("%d TCP connections, %d MB, nothing came on one for %v at most", r.Connections, r.Bytes>>20, r.Stall.Round(time.Millisecond))
}
