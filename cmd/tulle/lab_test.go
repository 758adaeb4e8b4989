package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/dataplane/tap"
	"github.com/tulle-net/tulle/scripts/lab"
)

// testTimeout bounds one end-to-end test.
const testTimeout = 2 * time.Minute

// testWriter writes a lab's progress to the test's log.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// labUnderTest brings a lab up for one test. At the test's end every daemon's ledger must balance and agree with the
// kernel's own counters, and the lab is removed.
func labUnderTest(t testing.TB, c lab.Config) *lab.Lab {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c.Dir, c.Executable, c.Ephemeral, c.Progress = t.TempDir(), cmp.Or(c.Executable, self), true, testWriter{t}
	c.Env = append(c.Env, asTulle+"=1", "GORACE=atexit_sleep_ms=0") // a race build sleeps a second at each exit
	l, err := lab.Up(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, n := range l.Nodes() {
			if n.PID != 0 {
				checkNode(t, l, n)
			}
			if t.Failed() && !n.Kernel {
				log, _ := os.ReadFile(n.LogFile)
				t.Logf("log of %s:\n%s", n.Name, log)
			}
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// status asks a node's daemon.
func status(t testing.TB, l *lab.Lab, number int) *statusReport {
	t.Helper()
	out, err := l.Status(context.WithoutCancel(t.Context()), number)
	if err != nil {
		t.Fatal(err)
	}
	var r statusReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

// checkNode holds a daemon at rest against itself and against the kernel: what the engine read from the TAP is what the
// kernel says it sent there, and the other way round. With a library's device frames are not what the kernel counts (it cuts
// and joins them); what the device says of itself is.
func checkNode(t testing.TB, l *lab.Lab, n lab.Node) {
	t.Helper()
	var r *statusReport
	var link netlink.LinkStatistics
	var in, out uint64
	for range 250 { // until what was under way has arrived, and fragments that wait for their first have given up
		link = tapStatistics(t, n)
		r = status(t, l, n.Number)
		if in, out = r.Engine.Ports[0].FramesIn, r.Engine.Ports[0].FramesOut; r.TAP.Device != tap.TAP {
			in, out = r.TAP.Read, r.TAP.Written
		}
		if in == link.TxPackets && out == link.RxPackets && r.Engine.Ledger.Queued == 0 && r.Underlay.QueuedBytes == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if in != link.TxPackets || out != link.RxPackets || r.TAP.Lost != 0 {
		t.Errorf("%s: engine counts %d frames from and %d to the %s, the kernel %d and %d; %d lost", n.Name, in, out, r.TAP.Device, link.TxPackets, link.RxPackets, r.TAP.Lost)
	}
	if k := r.TAP.Kernel; r.TAP.Device == tap.TAP && (k == nil || !k.Agrees) {
		t.Errorf("%s: the daemon's own look at the kernel's counters: %+v", n.Name, k)
	}
	if !r.Engine.Balanced || !r.Engine.Ledger.Balanced() || r.Engine.Ledger.Queued != 0 {
		t.Errorf("%s: the ledger does not balance: %+v", n.Name, r.Engine.Ledger)
	}
	if r.Underlay.QueuedBytes != 0 {
		t.Errorf("%s: %d bytes wait in the underlay sockets at rest", n.Name, r.Underlay.QueuedBytes)
	}
	t.Logf("%s: ledger %+v verdicts %v fallbacks %d socket drops %d", n.Name, r.Engine.Ledger, nonZero(r.Verdicts), r.Underlay.Fallbacks, r.Underlay.SocketDrops)
}

func nonZero(m map[string]uint64) string {
	var out []string
	for name, n := range m {
		if n > 0 {
			out = append(out, fmt.Sprintf("%s:%d", name, n))
		}
	}
	return strings.Join(out, " ")
}

func tapStatistics(t testing.TB, n lab.Node) (s netlink.LinkStatistics) {
	t.Helper()
	err := lab.In(n.Namespace, func() error {
		link, err := netlink.LinkByName(tapName)
		if err == nil {
			s = *link.Attrs().Statistics
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ping returns how many of count echo requests of a pair were answered right.
func ping(t testing.TB, p lab.Pair, opts bench.Ping) bench.PingResult {
	t.Helper()
	return pingBy(t, func(f func() error) error { return lab.In(p.From, f) }, p.Addr, opts)
}

// pingBy pings from the namespace that from enters.
func pingBy(t testing.TB, from func(func() error) error, to netip.Addr, opts bench.Ping) bench.PingResult {
	t.Helper()
	var pinger *bench.Pinger
	if err := from(func() (err error) {
		pinger, err = bench.NewPinger(to, opts)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer pinger.Close()
	r, err := pinger.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// pingAll demands that every pair answers every request.
func pingAll(t testing.TB, pairs []lab.Pair, opts bench.Ping) {
	t.Helper()
	var wg sync.WaitGroup
	for _, p := range pairs {
		wg.Go(func() {
			if r := ping(t, p, opts); r.Lost() != 0 || r.Duplicates != 0 || r.Corrupt != 0 {
				t.Errorf("ping %s to %s: %+v", p.From, p.Addr, r)
			}
		})
	}
	wg.Wait()
}

// between returns the pair from the first pod of one node to the first pod of another.
func between(l *lab.Lab, from, to int) lab.Pair {
	nodes := l.Nodes()
	a, b := nodes[from-1].Pods[0], nodes[to-1].Pods[0]
	return lab.Pair{From: a.Namespace, To: b.Namespace, Addr: b.Addr}
}

// transfer streams random bytes between two pods and demands equal hashes.
func transfer(t testing.TB, p lab.Pair, bytes int64) bench.TransferResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	tx, rx, err := p.TCP(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Close()
	defer rx.Close()
	random, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer random.Close()
	r, err := bench.Transfer(ctx, random, bytes, tx, rx)
	if err != nil {
		t.Fatalf("%s to %s: %v", p.From, p.To, err)
	}
	return r
}

// exchange sends UDP requests and demands that each is answered unchanged.
func exchange(t testing.TB, p lab.Pair, size, count int) {
	t.Helper()
	from, to, err := p.UDP()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	r, err := bench.Exchange(t.Context(), from, to, size, count, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if r.Answered != count || r.Mismatched != 0 {
		t.Errorf("%s to %s, %d bytes: %+v, want %d answered", p.From, p.To, size, r, count)
	}
}
