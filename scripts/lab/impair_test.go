package lab

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/impair"
)

// What the wire is told to do is what the receiver sees, and what devices around it count. Frames are held back for long, so that
// enough comes meanwhile on a busy machine.
func TestImpair(t *testing.T) {
	l := up(t, Config{Nodes: 2, Kernel: kernelNodes(2), Family: FamilyDual})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, spec := range []impair.Spec{
		{},
		{Loss: 0.01},
		{Duplicate: 0.05},
		{Reorder: 0.25},
		{Corrupt: 0.05},
		{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond},
		{Loss: 0.02, Duplicate: 0.05, Reorder: 0.25, Corrupt: 0.02, Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond},
	} {
		spec.Seed, spec.Hold = seed, 500*time.Millisecond
		for _, p := range underlayPairs(t, l, 1, 2) {
			if p.Addr.Is6() && spec.Corrupt == 0 {
				continue // the shim tells the families apart for nothing else
			}
			t.Run(fmt.Sprintf("%+v %s", spec, p.Addr), func(t *testing.T) { testImpair(t, l, p, spec) })
		}
	}
	// The good wire is back.
	for _, p := range underlayPairs(t, l, 1, 2) {
		ping(t, p, bench.Ping{Count: 100, Size: 1400})
	}
}

func testImpair(t *testing.T, l *Lab, p Pair, spec impair.Spec) {
	ping(t, p, bench.Ping{}) // nobody asks for an address below
	wire, err := l.Impair(1, spec, impair.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := wire.Stop(); err != nil {
			t.Error(err)
		}
	}()
	sent, beyond := statistics(t, "tulle-n1", "eth0"), statistics(t, underlayNamespace, underlayPort(2))
	r := sequence(t, p, bench.Sequence{Count: 4000, Size: 200, Interval: 20 * time.Microsecond, Quiet: 700 * time.Millisecond})
	out := settled(wire, spec.Hold)
	passed := statistics(t, underlayNamespace, impairLink(1))
	if n := statistics(t, "tulle-n1", "eth0").TxPackets - sent.TxPackets; n != out.In || passed.TxPackets+passed.TxDropped != out.Out {
		t.Errorf("the kernel counts %d frames in and %d out, the shim %+v", n, passed.TxPackets, out)
	}
	if out.In+out.Duplicated != out.Out+out.Lost || out.Refused+out.Missed+out.Held != 0 || r.Refused != 0 {
		t.Errorf("%+v does not add up", out)
	}
	checkRates(t, spec, out)
	// A veth drops what a busy processor has no room for, and counts it.
	dropped := passed.TxDropped + statistics(t, underlayNamespace, underlayPort(2)).TxDropped - beyond.TxDropped +
		statistics(t, "tulle-n1", "eth0").TxDropped - sent.TxDropped
	checkArrivals(t, p, out, r, int(dropped))
	if r := pingResult(t, p, bench.Ping{Count: 20, Interval: time.Millisecond}); r.Received == 0 || r.Min() < spec.Delay {
		t.Errorf("round trip %v with a delay of %v, %d received", r.Min(), spec.Delay, r.Received)
	}
}

// settled is what went out once the wire holds nothing back: a frame that was none of the test's may have come late.
func settled(wire *Impairment, hold time.Duration) impair.Stats {
	for end := time.Now().Add(4 * hold); ; time.Sleep(10 * time.Millisecond) {
		if out, _ := wire.Stats(); out.Held == 0 || time.Now().After(end) {
			return out
		}
	}
}

// checkRates allows six standard deviations.
func checkRates(t *testing.T, spec impair.Spec, s impair.Stats) {
	t.Helper()
	kept := s.In - s.Lost
	for _, c := range []struct {
		name          string
		count, trials uint64
		probability   float64
	}{{"loss", s.Lost, s.In, spec.Loss}, {"duplication", s.Duplicated, kept, spec.Duplicate},
		{"reordering", s.Reordered, kept, spec.Reorder}, {"corruption", s.Corrupted, kept + s.Duplicated, spec.Corrupt}} {
		n := float64(c.trials)
		if math.Abs(float64(c.count)-n*c.probability) > 6*math.Sqrt(n*c.probability*(1-c.probability)) {
			t.Errorf("%s: %d of %d, want about %v", c.name, c.count, c.trials, n*c.probability)
		}
	}
}

// checkArrivals holds the receiver's socket against the shim. UDP's checksum, and IPv4's of the header, keep every corrupt frame
// away; of IPv6 some of the header may change unnoticed. As many as dropped may be missing.
func checkArrivals(t *testing.T, p Pair, s impair.Stats, r bench.SequenceResult, dropped int) {
	t.Helper()
	t.Logf("shim %+v, receiver %+v, %d dropped", s, r, dropped)
	strangers := int(s.In) - r.Sent // ARP or ND
	if strangers < -dropped || strangers > 10 {
		t.Errorf("%d frames on the wire for %d datagrams", s.In, r.Sent)
	}
	slack := max(strangers, 0) + dropped
	if r.Corrupt != 0 {
		t.Errorf("%d corrupt datagrams arrived", r.Corrupt)
	}
	arrived, most := r.Received+r.Duplicates, int(s.Out-s.Corrupted)
	if p.Addr.Is6() {
		most = int(s.Out)
	}
	if arrived > most || arrived < int(s.Out-s.Corrupted)-slack {
		t.Errorf("%d datagrams arrived", arrived)
	}
	// A corrupt copy of two leaves one, and a corrupt one held back is not seen; the last ones held back nothing overtakes.
	if r.Duplicates > int(s.Duplicated) || r.Duplicates < int(s.Duplicated-min(s.Duplicated, s.Corrupted))-slack {
		t.Errorf("%d duplicates arrived", r.Duplicates)
	}
	if r.Reordered > int(s.Reordered) || r.Reordered < int(s.Reordered-min(s.Reordered, s.Corrupted))-slack-30 {
		t.Errorf("%d arrived after a later one", r.Reordered)
	}
}

func sequence(t *testing.T, p Pair, s bench.Sequence) bench.SequenceResult {
	t.Helper()
	from, to, err := p.UDP()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	r, err := s.Run(testContext(t), from, to)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func statistics(t *testing.T, namespace, name string) (s netlink.LinkStatistics) {
	t.Helper()
	err := In(namespace, func() error {
		link, err := netlink.LinkByName(name)
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

// A wire that loses everything in one direction only, beside one that is whole; TCP gets over a bad one.
func TestImpairDirections(t *testing.T) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2), Routed: true})
	wire, err := l.Impair(2, impair.Spec{}, impair.Spec{Loss: 1})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.Impair(2, impair.Spec{}, impair.Spec{}); err == nil {
		t.Errorf("a second wire for one node: %+v", again)
	}
	back := Pair{From: "tulle-n2", To: "tulle-n1", Addr: nodeOf(t, l, 1).PublicIP}
	there := sequence(t, back, bench.Sequence{Count: 10, Quiet: 200 * time.Millisecond})
	if out, in := wire.Stats(); there.Received != 0 || out.In == 0 || out.Lost != 0 || in.Lost != in.In {
		// Nothing gets there: node 2 learns no address, but asks.
		t.Errorf("one way: %+v, out %+v, in %+v", there, out, in)
	}
	if err := wire.Stop(); err != nil {
		t.Fatal(err)
	}
	bad := impair.Spec{Loss: 0.01, Duplicate: 0.05, Reorder: 0.05, Corrupt: 0.01}
	if wire, err = l.Impair(2, bad, bad); err != nil {
		t.Fatal(err)
	}
	transfer(t, l.PodPairs()[0], 2<<20)
	if out, in := wire.Stats(); in.Corrupted == 0 || in.Lost == 0 || out.Lost == 0 {
		t.Errorf("out %+v, in %+v", out, in)
	}
	if err := wire.Stop(); err != nil {
		t.Fatal(err)
	}
	if on := offloadsOf(t, "tulle-n2"); !on {
		t.Error("the offloads stay off")
	}
	pingAll(t, l)
}

func offloadsOf(t *testing.T, namespace string) (on bool) {
	t.Helper()
	if err := In(namespace, func() (err error) { on, err = offloadsOn("eth0"); return err }); err != nil {
		t.Fatal(err)
	}
	return on
}

// A wire that nobody stops ends with its node, and with the lab.
func TestImpairEnds(t *testing.T) {
	l := up(t, Config{Nodes: 3, Kernel: kernelNodes(3)})
	var wires []*Impairment
	for number := 1; number <= 2; number++ {
		wire, err := l.Impair(number, impair.Spec{}, impair.Spec{})
		if err != nil {
			t.Fatal(err)
		}
		wires = append(wires, wire)
	}
	if err := l.RemoveNode(testContext(t), 1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := In(underlayNamespace, func() error {
		for name, there := range map[string]bool{impairLink(1): false, impairPort(1): false, impairLink(2): true} {
			if _, err := netlink.LinkByName(name); (err == nil) != there {
				t.Errorf("%s is there: %t", name, !there)
			}
		}
		return nil
	})
	if err := errors.Join(err, l.Down()); err != nil {
		t.Fatal(err)
	}
	for _, wire := range wires {
		if err := wire.Stop(); err != nil {
			t.Error(err)
		}
	}
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, link := range links {
		fd, _ := strconv.Atoi(filepath.Base(link))
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_PACKET {
			t.Errorf("packet socket %d is still open", fd)
		}
	}
}

// With the offloads of the wire's devices on, the kernel would hand over what it has not summed.
func TestImpairOffloads(t *testing.T) {
	l := up(t, Config{Nodes: 2, Kernel: kernelNodes(2)})
	wire, err := l.Impair(1, impair.Spec{}, impair.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	defer wire.Stop()
	for namespace, links := range map[string][]string{"tulle-n1": {"eth0"},
		underlayNamespace: {underlayPort(1), impairLink(1), impairPort(1)}} {
		for _, link := range links {
			var on bool
			if err := In(namespace, func() (err error) { on, err = offloadsOn(link); return err }); err != nil || on {
				t.Errorf("%s: offloads on: %t, %v", link, on, err)
			}
		}
	}
	if _, err := net.InterfaceByName(impairLink(1)); err == nil {
		t.Error("the wire's device is in the host's own namespace")
	}
}
