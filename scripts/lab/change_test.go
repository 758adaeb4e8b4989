package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
)

// peersOf is what a kernel node knows of others: FDB entries, then routes.
func peersOf(t *testing.T, namespace string) (s string) {
	t.Helper()
	err := In(namespace, func() error {
		link, err := netlink.LinkByName(ipv4.vxlanName())
		if err != nil {
			return err
		}
		entries, err := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
		for _, e := range entries {
			s += e.HardwareAddr.String() + " " + e.IP.String() + ", "
		}
		routes, err2 := netlink.RouteList(link, netlink.FAMILY_V4)
		for _, r := range routes {
			s += r.Dst.String() + ", "
		}
		return errors.Join(err, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nodeOf looks a node up, which must be there.
func nodeOf(t *testing.T, l *Lab, number int) Node {
	t.Helper()
	n, err := l.Node(number)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestStopStartNode(t *testing.T) {
	for _, store := range []string{StoreGossip, StoreFile} {
		t.Run(store, func(t *testing.T) { testStopStart(t, store) })
	}
}

func testStopStart(t *testing.T, store string) {
	dir := labDir(t)
	l := up(t, fakeConfig(dir, store))
	ctx := testContext(t)
	before := nodeOf(t, l, 1)
	if err := l.StartNode(ctx, 1); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("start of a running daemon: %v", err)
	}
	if err := l.StopNode(ctx, 1, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if n := nodeOf(t, l, 1); n.Alive || n.PID != 0 {
		t.Errorf("stopped, but %+v", n)
	}
	if err := l.StartNode(ctx, 1); err != nil {
		t.Fatal(err)
	}
	after := nodeOf(t, l, 1)
	if !after.Alive || after.PID == before.PID || after.VtepMAC == before.VtepMAC || after.Subnet != before.Subnet ||
		!slices.Equal(after.Args, before.Args) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	// Everybody learns the new MAC: the kernel node from the lab, the daemons from the file unless they gossip.
	peers, _ := os.ReadFile(filepath.Join(dir, "peers.json"))
	if bytes.Contains(peers, []byte(after.VtepMAC)) != (store == StoreFile) || bytes.Contains(peers, []byte(before.VtepMAC)) {
		t.Errorf("peers.json: %s", peers)
	}
	if known := peersOf(t, "tulle-n3"); !strings.Contains(known, after.VtepMAC) || strings.Contains(known, before.VtepMAC) {
		t.Errorf("the kernel node knows %s, want %s and not %s", known, after.VtepMAC, before.VtepMAC)
	}
	again, err := Open(dir)
	if err != nil || again.Nodes()[0].PID != after.PID {
		t.Errorf("the record has %+v, %v", again.Nodes()[0], err)
	}
	for _, err := range []error{l.StopNode(ctx, 3, syscall.SIGTERM), l.StartNode(ctx, 4), l.SignalNode(0, syscall.SIGSTOP)} {
		if err == nil {
			t.Error("no error for a kernel node or one that does not exist")
		}
	}
}

// What a daemon is told, and what the lab makes of the subnet it claims.
func TestGossipNodes(t *testing.T) {
	dir := labDir(t)
	l := up(t, fakeConfig(dir, StoreGossip))
	for number, want := range map[int]string{1: "10.244.101.0/24", 2: "10.244.102.0/24", 3: "10.244.252.0/24"} {
		n := nodeOf(t, l, number)
		pod := netip.PrefixFrom(n.Subnet.Addr().Next().Next(), 32).Addr()
		if n.Subnet.String() != want || n.VTEP != n.Subnet.Addr() || len(n.Pods) != 2 || n.Pods[0].Addr != pod {
			t.Errorf("node %d: %+v, want %s and its pods in there", number, n, want)
		}
		if line := strings.Join(n.Args, " "); number != 3 && (!strings.Contains(line, "--join 192.168.77.1 --key-file "+dir+"/key") ||
			strings.Contains(line, "--subnet") || !strings.Contains(line, "--peers")) {
			t.Errorf("node %d: %s", number, line)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", st, err)
	}
	if l.Converged() <= 0 {
		t.Error("no time of convergence")
	}
	if known := peersOf(t, "tulle-n3"); !strings.Contains(known, "10.244.101.0/24") || !strings.Contains(known, "10.244.102.0/24") {
		t.Errorf("the kernel node knows %s", known)
	}
	// A daemon that comes back with another subnet is an error, and its pods stay what they were.
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "fickle"), nil, 0o644), l.StopNode(testContext(t), 2, syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(dir, "fickle"))
	err := l.StartNode(testContext(t), 2)
	if err == nil || !strings.Contains(err.Error(), "changed from 10.244.102.0/24 to 10.244.152.0/24") {
		t.Errorf("got %v", err)
	}
}

func TestMayFail(t *testing.T) {
	dir := labDir(t)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "mute"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	c := fakeConfig(dir, StoreGossip)
	c.Nodes, c.Kernel, c.MayFail = 2, nil, map[int]bool{1: true, 2: true}
	c.NodeArgs = []string{"--workers", "1"}
	c.NodeArgsFor = func(number int) []string {
		return map[int][]string{2: {"--name", "n7"}}[number]
	}
	l := up(t, c)
	for _, n := range l.Nodes() {
		if n.Subnet.IsValid() || len(n.Pods) > 0 || !n.Alive {
			t.Errorf("got %+v", n)
		}
		if _, err := l.Status(testContext(t), n.Number); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(nodeOf(t, l, 2).Args, " "); !strings.HasSuffix(got, "--workers 1 --name n7") {
		t.Errorf("got %s", got)
	}
	if err := os.Remove(filepath.Join(dir, "mute")); err != nil {
		t.Fatal(err)
	}
	for number := 1; number <= 2; number++ {
		restartAndSettle(t, l, number)
	}
}

func restartAndSettle(t *testing.T, l *Lab, number int) {
	t.Helper()
	err := errors.Join(l.StopNode(testContext(t), number, syscall.SIGTERM), l.StartNode(testContext(t), number))
	if err != nil {
		t.Fatal(err)
	}
	if n := nodeOf(t, l, number); n.Subnet.IsValid() {
		t.Errorf("not settled yet, but %+v", n)
	}
	if err := l.Settle(testContext(t), number); err != nil {
		t.Fatal(err)
	}
	if n := nodeOf(t, l, number); len(n.Pods) != 2 || n.VtepMAC == "" {
		t.Errorf("settled, but %+v", n)
	}
}

func TestAddRemoveDaemonNode(t *testing.T) {
	for _, store := range []string{StoreGossip, StoreFile} {
		t.Run(store, func(t *testing.T) {
			dir := labDir(t)
			l := up(t, fakeConfig(dir, store))
			n, err := l.AddNode(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			if n.Number != 4 || !n.Alive || len(n.Pods) != 2 || !strings.Contains(peersOf(t, "tulle-n3"), n.Subnet.String()) {
				t.Errorf("added %+v", n)
			}
			// Node 4 joined node 1 and would come back there; without node 1 it joins another.
			for _, number := range []int{1, 4} {
				if err := l.RemoveNode(testContext(t), number, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if known := peersOf(t, "tulle-n3"); strings.Contains(known, n.Subnet.String()) || strings.Contains(known, n.VtepMAC) {
				t.Errorf("the kernel node still knows %s", known)
			}
			if _, err := os.Stat(filepath.Join(dir, "n4")); err == nil || namespaceExists("tulle-n4") || namespaceExists("tulle-n4-p2") {
				t.Error("something of node 4 is left")
			}
			if n, err = l.AddNode(testContext(t)); err != nil || n.Number != 5 {
				t.Errorf("added %+v, %v", n, err)
			}
			if line := strings.Join(n.Args, " "); strings.Contains(line, "--join 192.168.77.2") != (store == StoreGossip) {
				t.Errorf("node 5 was started with %s", line)
			}
		})
	}
}

// What a failed AddNode made is gone; the lab goes on.
func TestAddNodeFails(t *testing.T) {
	dir := labDir(t)
	l := up(t, fakeConfig(dir, StoreGossip))
	crash := filepath.Join(dir, "crash")
	if err := os.WriteFile(crash, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddNode(testContext(t)); err == nil || !strings.Contains(err.Error(), "add node n4: ") ||
		!strings.Contains(err.Error(), "crash was asked for") {
		t.Errorf("got %v", err)
	}
	cancelled, cancel := context.WithCancel(testContext(t))
	cancel()
	if _, err := l.AddNode(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(netnsDir + "/tulle-n[45]*"); len(left) > 0 || len(l.Nodes()) != 3 {
		t.Errorf("left: %v, %+v", left, l.Nodes())
	}
	if err := os.Remove(crash); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddNode(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := l.RemoveNode(testContext(t), 17, syscall.SIGTERM); err == nil {
		t.Error("no error for a node that does not exist")
	}
}

func TestAddRemoveKernelNode(t *testing.T) {
	for _, routed := range []bool{false, true} {
		t.Run(fmt.Sprintf("routed=%t", routed), func(t *testing.T) { testAddRemoveKernel(t, routed) })
	}
}

func testAddRemoveKernel(t *testing.T, routed bool) {
	l := up(t, Config{Nodes: 2, Pods: 1, Kernel: kernelNodes(2), Routed: routed})
	if _, err := l.AddNode(testContext(t)); err == nil {
		t.Error("a daemon without an executable")
	}
	n, err := l.AddKernelNode(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	pingAll(t, l)
	if err := l.RemoveNode(testContext(t), 1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	pingAll(t, l)
	if known := peersOf(t, n.Namespace); strings.Contains(known, "10.244.254.0") {
		t.Errorf("node 3 still knows of node 1: %s", known)
	}
}

// A kernel node that comes late takes no subnet that a daemon has claimed or that a removed node has left.
func TestSubnetOfLateKernelNode(t *testing.T) {
	r := newRecord(Config{Nodes: 3, Kernel: map[int]bool{2: true}, Store: StoreGossip})
	r.Nodes[0].V4.Subnet, r.Nodes[2].V4.Subnet = ipv4.subnetAt(251), ipv4.subnetAt(250)
	r.remove(r.only(r.Nodes[0]))
	if n := r.newNode(4, true, Config{}); n.V4.Subnet != ipv4.subnetAt(249) {
		t.Errorf("node 4 has %s beside %s, after %v", n.V4.Subnet, r.Nodes[1].V4.Subnet, r.OldSubnets)
	}
	if n := r.newNode(5, true, Config{}); n.V4.Subnet != ipv4.subnetAt(249) {
		t.Errorf("node 5 has %s", n.V4.Subnet)
	}
}

func pingAll(t *testing.T, l *Lab) {
	t.Helper()
	for _, p := range append(l.PodPairs(), l.NodePairs()...) {
		ping(t, p, bench.Ping{Count: 2, Interval: time.Millisecond, Size: 56})
	}
}

// Two processes that change a lasting lab see each other's changes.
func TestTwoChangers(t *testing.T) {
	dir := labDir(t)
	if out, err := role(t, "up", dir, "lasting", StoreGossip).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range []*Lab{a, b, a} {
		if n, err := l.AddNode(testContext(t)); err != nil || n.Number != 4+i || len(l.Nodes()) != 4+i {
			t.Errorf("added %+v to %d, %v", n, len(l.Nodes()), err)
		}
	}
	if err := a.Down(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, dir)
	if _, err := b.AddNode(testContext(t)); err == nil || !strings.Contains(err.Error(), "there no more") {
		t.Errorf("node for a lab that is gone: %v", err)
	}
}

// What a killed process left half done does not stand in the way: a kernel node half gone, pods half linked.
func TestHalfDone(t *testing.T) {
	l := up(t, fakeConfig(labDir(t), StoreGossip))
	gone := l.rec.Nodes[2]
	err := errors.Join(l.edit(func() { gone.Leaving = true }), (&teardown{rec: l.rec.only(gone), progress: l.progress}).clear(),
		l.edit(func() { l.rec.Nodes[0].Wired = false }))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(testContext(t), 1); err != nil || len(nodeOf(t, l, 1).Pods) != 2 {
		t.Errorf("got %v, %+v", err, nodeOf(t, l, 1))
	}
	if _, err := l.AddNode(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := l.RemoveNode(testContext(t), 3, syscall.SIGTERM); err != nil || len(l.Nodes()) != 3 {
		t.Errorf("got %v, %d nodes", err, len(l.Nodes()))
	}
}
