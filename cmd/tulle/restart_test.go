package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
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
	ways := []lab.Pair{between(l, 1, 2), between(l, 2, 1)}
	streams := startStreams(t, ways, 4)
	udp := udpPairs(t, ways)
	load := bench.Sequence{Count: 10_000, Size: 200, Interval: 100 * time.Microsecond} // for longer than a second
	sequences(t, udp, bench.Sequence{Count: 10, Size: 200})
	before := flowsOf(t, l, 1)
	if len(before) < len(udp)+8 {
		t.Fatalf("%d flows before the first kill: %v", len(before), before)
	}
	var gaps []time.Duration
	lost := 0
	for range times {
		done := make(chan []bench.SequenceResult)
		go func() { done <- sequences(t, udp, load) }()
		time.Sleep(200*time.Millisecond + time.Duration(rand.IntN(300_000))*time.Microsecond)
		restart(t, l, func() {})
		for _, r := range <-done {
			if r.Duplicates != 0 || r.Reordered != 0 || r.Corrupt != 0 {
				t.Errorf("after a kill: %+v", r)
			}
			gaps, lost = append(gaps, r.LongestGap), lost+r.Lost()
		}
		checkAdopted(t, l, len(before))
	}
	t.Logf("%d kills: longest gap of each of %d UDP flows: %s; %d of %d datagrams lost", times, len(udp), distribution(gaps), lost, len(gaps)*load.Count)
	for key, was := range before {
		if now := flowsOf(t, l, 1)[key]; now != was {
			t.Errorf("flow %s is %+v, was %+v", key, now, was)
		}
	}
	t.Run("control", func(t *testing.T) { restartWiped(t, l, before) })
	streams.end(t)
	stopClean(t, l)
}

// distribution is durations in words.
func distribution(d []time.Duration) string {
	slices.Sort(d)
	at := func(percent int) time.Duration { return d[(len(d)-1)*percent/100].Round(time.Millisecond) }
	return fmt.Sprintf("least %v, median %v, p90 %v, p99 %v, most %v", at(0), at(50), at(90), at(99), at(100))
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
	h := status(t, l, 1).Holder
	for _, part := range []string{partUnderlay, partFlows, partTAP, partState} {
		if !slices.Contains(h.Adopted, part) {
			t.Errorf("%s is not adopted: %+v", part, h)
		}
	}
	if len(h.NotAdopted) != 0 || h.Flows.Kept < flows || h.Flows.Foreign != 0 || h.Keeps == 0 {
		t.Errorf("after a kill: %+v", h)
	}
}

// restartWiped is the control.
func restartWiped(t *testing.T, l *lab.Lab, before map[string]flowName) {
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

// flowName is what a flow has for life.
type flowName struct {
	ID      string
	Created float64
}

// flowsOf lists a node's TCP and UDP flows by what they are of.
func flowsOf(t *testing.T, l *lab.Lab, number int) map[string]flowName {
	t.Helper()
	n, err := l.Node(number)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ask[*flowsReport](t.Context(), n.RunDir, pathFlows)
	if err != nil {
		t.Fatal(err)
	}
	flows := map[string]flowName{}
	for _, f := range r.Flows {
		if f.Proto == "tcp" || f.Proto == "udp" {
			flows[fmt.Sprintf("%s %s:%d %s:%d", f.Proto, f.Src, f.SrcPort, f.Dst, f.DstPort)] = flowName{f.ID, f.CreatedSeconds}
		}
	}
	return flows
}

// streams are TCP connections on which something flows all the time.
type streams struct {
	stop    atomic.Bool
	group   sync.WaitGroup
	mu      sync.Mutex
	lost    []error
	count   int
	bytes   int64
	slowest time.Duration // between two arrivals
}

func startStreams(t *testing.T, ways []lab.Pair, each int) *streams {
	t.Helper()
	s := new(streams)
	for _, p := range ways {
		for range each {
			from, to, err := p.TCP(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.stop.Store(true); from.Close(); to.Close() })
			sent, got := sha256.New(), sha256.New()
			var both sync.WaitGroup
			both.Go(func() { s.fail(s.write(from.(*net.TCPConn), sent)) })
			both.Go(func() { s.fail(s.read(to, got)) })
			s.group.Go(func() {
				both.Wait()
				if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
					s.fail(fmt.Errorf("%s to %s: other bytes came than were sent", p.From, p.To))
				}
			})
			s.count++
		}
	}
	return s
}

func (s *streams) fail(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, err)
}

func (s *streams) write(c *net.TCPConn, sum hash.Hash) error {
	b := make([]byte, 2000)
	random := rand.NewChaCha8([32]byte{byte(rand.Uint32())})
	for !s.stop.Load() {
		random.Read(b)
		sum.Write(b)
		if _, err := c.Write(b); err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return c.CloseWrite()
}

func (s *streams) read(c net.Conn, sum hash.Hash) error {
	b, last := make([]byte, 1<<16), time.Now()
	for {
		n, err := c.Read(b)
		sum.Write(b[:n])
		s.mu.Lock()
		s.bytes += int64(n)
		s.slowest = max(s.slowest, time.Since(last))
		s.mu.Unlock()
		last = time.Now()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// end lets the streams end, and demands that all arrived.
func (s *streams) end(t *testing.T) {
	t.Helper()
	s.stop.Store(true)
	ended := make(chan struct{})
	go func() { s.group.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(testTimeout):
		t.Fatal("TCP connections do not end")
	}
	for _, err := range s.lost {
		t.Errorf("a TCP connection was lost: %v", err)
	}
	t.Logf("%d TCP connections, %d MB, nothing came on one for %v at most", s.count, s.bytes>>20, s.slowest.Round(time.Millisecond))
}
