package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

// TestTenNodes demands that ten nodes which know one seed find each other, with a subnet each, and that their pods reach
// each other. How long it took is logged, not judged.
func TestTenNodes(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 10, Pods: 1})
	t.Logf("all nodes knew each other %s after the last start", l.Converged().Round(time.Millisecond))
	pingAll(t, l.PodPairs(), smallPing)
	subnets := map[string]string{}
	for _, n := range l.Nodes() {
		if other := subnets[n.Subnet.String()]; other != "" {
			t.Errorf("%s and %s both have %s", other, n.Name, n.Subnet)
		}
		subnets[n.Subnet.String()] = n.Name
	}
}

// TestRouted is two segments with a router between them.
func TestRouted(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 4, Pods: 1, Routed: true, Kernel: map[int]bool{4: true}})
	pingAll(t, l.PodPairs(), smallPing)
	transfer(t, between(l, 1, 2), 20<<20)
	transfer(t, between(l, 4, 1), 20<<20)
}

// TestAddAndRemove demands that routes follow a node that comes, one that leaves and one that dies.
func TestAddAndRemove(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1})
	added, err := l.AddNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pingAll(t, l.PodPairs(), smallPing)
	for _, c := range []struct {
		number int
		sig    syscall.Signal
		state  string
	}{{added.Number, syscall.SIGTERM, "left"}, {3, syscall.SIGKILL, "dead"}} {
		n, err := l.Node(c.number)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := l.RemoveNode(t.Context(), c.number, c.sig); err != nil {
			t.Fatal(err)
		}
		awaitStatus(t, l, func(r *statusReport) bool {
			for _, p := range r.Peers {
				if p.Name == n.Name {
					return p.State == c.state && !p.Routable
				}
			}
			return false
		})
		t.Logf("%s: no route left on any node %s after %v", n.Name, time.Since(start).Round(time.Millisecond), c.sig)
	}
	pingAll(t, l.PodPairs(), smallPing)
}

// TestRestartKeepsSubnet demands that a node has its subnet again after any end, whoever started last.
func TestRestartKeepsSubnet(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1})
	for _, number := range []int{1, 3} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			before := status(t, l, number).Node.Subnet
			if err := l.StopNode(t.Context(), number, sig); err != nil {
				t.Fatal(err)
			}
			if err := l.StartNode(t.Context(), number); err != nil {
				t.Fatal(err)
			}
			if after := status(t, l, number).Node.Subnet; after != before {
				t.Errorf("node %d: subnet %s after %v, %s before", number, after, sig, before)
			}
		}
	}
	pingAll(t, l.PodPairs(), smallPing)
}

// TestRefused demands that a node which must not join is refused, that the reason stands in the status of both sides, and
// that it is counted where it was refused; and that the others do not suffer.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	key, conf := filepath.Join(dir, "key"), filepath.Join(dir, "net-conf.json")
	if _, stderr, code := tulle(t, nil, nil, "keygen", "-w", key); code != 0 {
		t.Fatal(stderr)
	}
	if err := os.WriteFile(conf, []byte(`{"Network": "10.50.0.0/16", "Backend": {"Type": "vxlan"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		reason, own string // own: what the refused node says of itself
		args        []string
	}{
		{"key", "another cluster key", []string{"--key-file", key}},
		{"network", "another network", []string{"--config", conf}},
		{"name", "n1", []string{"--name", "n1"}},
	} {
		t.Run(c.reason, func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, MayFail: map[int]bool{3: true}, NodeArgsFor: func(number int) []string {
				if number == 3 {
					return c.args
				}
				return nil
			}})
			if _, err := l.AddNode(t.Context()); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(30 * time.Second)
			for {
				refused, other := status(t, l, 3), status(t, l, 1)
				said := strings.Join(refused.Problems, "; ")
				if other.Refused[c.reason] > 0 && strings.Contains(said, c.own) {
					t.Logf("refused node: %s", said)
					t.Logf("the other: refused %v, problems %q", other.Refused, other.Problems)
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("refused node says %q; the other counts %v, problems %q", said, other.Refused, other.Problems)
				}
				time.Sleep(100 * time.Millisecond)
			}
			pingAll(t, []lab.Pair{between(l, 1, 2), between(l, 2, 1)}, smallPing)
		})
	}
}
