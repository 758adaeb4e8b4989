package gossip

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/claim"
)

var nodesFlag = flag.String("nodes", "30", "how many nodes TestNodes starts in one process, several numbers with commas")

// Bounds of what many nodes may take, in simulated time.
const (
	routedWithin = 30 * time.Second
	updateWithin = 5 * time.Second
	quietTime    = 5 * time.Second
	slowTime     = 25 * time.Second
)

// TestNodes runs many Stores in one process: the real memberlist and all of this package, over a network in memory, on the fake
// clock of testing/synctest. Simulated time passes only when every goroutine waits, so that a busy machine changes nothing.
func TestNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(300)) // of one process's many nodes; there is room
	var rows []string
	for text := range strings.SplitSeq(*nodesFlag, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 2 || n > 4000 {
			t.Fatalf("-nodes %q: numbers from 2 to 4000 are needed", *nodesFlag)
		}
		dir := shmDir(t)
		synctest.Test(t, func(t *testing.T) { rows = append(rows, runCrowd(t, n, dir)) })
	}
	fmt.Printf("\n%s\n%s\n", crowdHead, strings.Join(rows, "\n"))
}

// shmDir returns a directory in memory: what is measured is no disk.
func shmDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "tulle-nodes-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A crowd is many nodes on one air.
type crowd struct {
	t     *testing.T
	air   *air
	began time.Time
	said  time.Duration // progress, last
	nodes []*member

	deaths, slowDeaths atomic.Int64 // declared by anybody

	opened   sync.Map // raw records that were verified
	verified atomic.Int64
	verify   time.Duration // what it costs
}

type member struct {
	store    *Store
	routable atomic.Int64
	self     atomic.Bool // has a subnet
}

func runCrowd(t *testing.T, n int, dir string) string {
	c := &crowd{t: t, air: newAir(), began: time.Now(), verify: verifyTime(t)}
	ctx, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	cpu := c.spent()
	for i := range n {
		c.start(ctx, &running, i, dir)
	}
	var r crowdResult
	r.n, r.routed = n, c.routed()
	r.startCPU = c.spent() - cpu
	c.say("all are routed; CPU %s a node", r.startCPU/time.Duration(n))
	r.quiet = c.spend(quietTime)
	r.updated, r.updatedAll = c.update(n / 2)
	c.say("CPU %s a node in %s; an update reached 99%% after %s", r.quiet.cpu/time.Duration(n), quietTime, r.updated)
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.heap, r.stacks = mem.HeapAlloc, mem.StackInuse
	healthy := c.deaths.Load()
	for i := range n / 10 {
		c.slow(i * 10)
	}
	r.slow = c.spend(slowTime)
	r.deaths, r.slowDeaths = c.deaths.Load()-healthy, c.slowDeaths.Load()
	r.early = healthy
	end()
	running.Wait()
	time.Sleep(2 * streamTimeout) // probes that are under way
	r.check(t)
	return r.row()
}

// start starts node i, which joins the first three.
func (c *crowd) start(ctx context.Context, running *sync.WaitGroup, i int, dir string) {
	m := &member{}
	var err error
	if m.store, err = Open(c.config(i, dir)); err != nil {
		c.t.Fatal(err)
	}
	c.nodes = append(c.nodes, m)
	running.Go(func() {
		err := m.store.Run(ctx, func(v View) {
			routable := 0
			for _, p := range v.Peers {
				if p.Routable {
					routable++
				}
			}
			m.routable.Store(int64(routable))
			m.self.Store(v.Self.HasSubnet())
		})
		if err != nil {
			c.t.Error(err)
		}
	})
}

func (c *crowd) addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
}

func (c *crowd) config(i int, dir string) Config {
	ip := c.addr(i)
	var seeds []string
	for s := range 3 {
		seeds = append(seeds, c.addr(s).String())
	}
	return Config{
		Self:    control.Node{Name: fmt.Sprintf("node-%d", i), PublicIP: ip, BackendType: "vxlan", VNI: 1, VTEP: control.VTEPMAC(ip, 1)},
		Network: netip.MustParsePrefix("10.0.0.0/8"), SubnetLen: 24, SubnetMin: netip.MustParseAddr("10.0.0.0"), SubnetMax: netip.MustParseAddr("10.31.255.0"),
		TunnelPort: 8472, Join: seeds, Key: bytes.Repeat([]byte{7}, 32), StateDir: fmt.Sprintf("%s/%d", dir, i),
		Log: slog.New(&deathLog{crowd: c}), listen: c.air.listen, open: c.open,
	}
}

// open verifies each record once for all nodes, as one process has not the CPUs of a thousand; how often nodes would have done it is counted,
// and its price added to what they spent.
func (c *crowd) open(raw []byte) (*claim.Record, error) {
	c.verified.Add(1)
	if known, ok := c.opened.Load(string(raw)); ok {
		r := *known.(*claim.Record)
		r.Raw = bytes.Clone(r.Raw) // each node has its own
		return &r, nil
	}
	r, err := claim.OpenRecord(raw)
	if err == nil {
		c.opened.Store(string(raw), r)
	}
	return r, err
}

// spent is the CPU time of all nodes so far, with verifications that were saved.
func (c *crowd) spent() time.Duration { return cpuTime() + time.Duration(c.verified.Load())*c.verify }

// verifyTime measures what a verification costs on this machine.
func verifyTime(t *testing.T) time.Duration {
	r := plainRecord(func(*claim.Record) {})
	if err := r.Sign(testKeys[0]); err != nil {
		t.Fatal(err)
	}
	const times = 300
	began := cpuTime()
	for range times {
		if _, err := claim.OpenRecord(r.Raw); err != nil {
			t.Fatal(err)
		}
	}
	return (cpuTime() - began) / times
}

// A deathLog counts the nodes that memberlist gives up.
type deathLog struct {
	slog.Handler
	crowd *crowd
}

func (l *deathLog) Enabled(context.Context, slog.Level) bool { return true }

func (l *deathLog) Handle(_ context.Context, r slog.Record) error {
	_, name, ok := strings.Cut(r.Message, "Marking ")
	if !ok {
		return nil
	}
	name, _, _ = strings.Cut(name, " ")
	id, _, _ := claim.ParseMember(name)
	c := l.crowd
	c.air.mu.Lock()
	defer c.air.mu.Unlock()
	for _, m := range c.nodes {
		if m.store.id == id && c.air.slow[m.store.endpoint] {
			c.slowDeaths.Add(1)
			return nil
		}
	}
	c.deaths.Add(1)
	c.say("%s", r.Message)
	return nil
}

// routed waits until every node has a subnet and routes to all others.
func (c *crowd) routed() time.Duration {
	for range 1200 {
		ready := 0
		for _, m := range c.nodes {
			if m.self.Load() && int(m.routable.Load()) == len(c.nodes)-1 {
				ready++
			}
		}
		if ready == len(c.nodes) {
			return time.Since(c.began)
		}
		c.progress("%d of %d nodes have a subnet and all routes", ready, len(c.nodes))
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Errorf("%d nodes were not routed after %s", len(c.nodes), time.Since(c.began))
	return time.Since(c.began)
}

// progress says once in 2 s of simulated time where the run is.
func (c *crowd) progress(format string, args ...any) {
	if at := time.Since(c.began); at-c.said >= 2*time.Second {
		c.said = at
		c.say(format, args...)
	}
}

func (c *crowd) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%4d nodes, %5.1f s: %s\n", len(c.nodes), time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// A usage is what all nodes together spent.
type usage struct {
	passed, cpu          time.Duration
	packets, packetBytes int64
	streamBytes          int64
}

// spend lets time pass.
func (c *crowd) spend(d time.Duration) usage {
	cpu, packets, packetBytes, streamBytes := c.spent(), c.air.packets.Load(), c.air.packetBytes.Load(), c.air.streamBytes.Load()
	for range d / time.Second {
		time.Sleep(time.Second)
		c.progress("%d healthy and %d slow nodes declared dead so far", c.deaths.Load(), c.slowDeaths.Load())
	}
	return usage{d, c.spent() - cpu, c.air.packets.Load() - packets, c.air.packetBytes.Load() - packetBytes, c.air.streamBytes.Load() - streamBytes}
}

// update changes node i's record, and returns after how long 99 in 100 nodes and all of them had it.
func (c *crowd) update(i int) (most, all time.Duration) {
	s, began := c.nodes[i].store, time.Now()
	err := s.between(c.t.Context(), func() error {
		s.config.Self.VTEP[5]++
		if err := s.renew(0); err != nil {
			return err
		}
		s.announce()
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	for range 6000 {
		time.Sleep(10 * time.Millisecond)
		heard := 0
		for _, m := range c.nodes {
			m.store.mu.Lock()
			if r := m.store.known[s.id]; r != nil && r.VTEP == s.config.Self.VTEP {
				heard++
			}
			m.store.mu.Unlock()
		}
		if most == 0 && 100*heard >= 99*len(c.nodes) {
			most = time.Since(began)
		}
		if heard == len(c.nodes) {
			return most, time.Since(began)
		}
	}
	c.t.Errorf("an update did not reach all of %d nodes in a minute", len(c.nodes))
	return most, time.Minute
}

func (c *crowd) slow(i int) {
	c.air.mu.Lock()
	defer c.air.mu.Unlock()
	c.air.slow[c.nodes[i].store.endpoint] = true
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

type crowdResult struct {
	n                   int
	routed              time.Duration
	updated, updatedAll time.Duration
	startCPU            time.Duration
	quiet, slow         usage
	heap, stacks        uint64
	early               int64 // declared dead before anybody was slow
	deaths, slowDeaths  int64
}

const crowdHead = "| nodes | all routed | update to 99% / all | CPU to start | CPU, quiet | CPU, 10% slow | memory | sent, quiet | by push/pull | healthy declared dead |\n" +
	"|---|---|---|---|---|---|---|---|---|---|"

func (r *crowdResult) row() string {
	n, core := time.Duration(r.n), func(u usage) float64 { return 100 * u.cpu.Seconds() / u.passed.Seconds() / float64(r.n) }
	sec := r.quiet.passed.Seconds() * float64(r.n)
	return fmt.Sprintf("| %d | %.1f s | %.2f / %.2f s | %d ms | %.2f%% of a core | %.2f%% | %.1f MiB | %.0f packets/s, %.1f kB/s | %.1f kB/s | %d |",
		r.n, r.routed.Seconds(), r.updated.Seconds(), r.updatedAll.Seconds(), (r.startCPU / n).Milliseconds(), core(r.quiet), core(r.slow),
		float64(r.heap+r.stacks)/float64(r.n)/(1<<20), float64(r.quiet.packets)/sec, float64(r.quiet.packetBytes)/sec/1000, float64(r.quiet.streamBytes)/sec/1000, r.early+r.deaths)
}

func (r *crowdResult) check(t *testing.T) {
	t.Logf("%d nodes: %+v", r.n, *r)
	if r.routed > routedWithin {
		t.Errorf("%d nodes: all routed after %s, want %s", r.n, r.routed, routedWithin)
	}
	if r.updated > updateWithin {
		t.Errorf("%d nodes: an update reached 99%% after %s, want %s", r.n, r.updated, updateWithin)
	}
	if r.early+r.deaths > 0 {
		t.Errorf("%d nodes: healthy nodes were declared dead %d times before and %d times while others were slow", r.n, r.early, r.deaths)
	}
}
