package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tulle-net/tulle/scripts/lab"
)

// TestForgetAndLeave takes the subnet of a dead node away, on two nodes at once, and lets another node give its own back: all see the same,
// both blocks rest, nobody alive loses anything, and what must be refused is.
func TestForgetAndLeave(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 4, Pods: 1})
	nodes := l.Nodes()
	n1, n2, n3, n4 := nodes[0], nodes[1], nodes[2], nodes[3]
	said := func(n lab.Node, code int, want string, args ...string) {
		t.Helper()
		stdout, stderr, got := tulle(t, nil, nil, append(args, "--run-dir", n.RunDir)...)
		if got != code || !strings.Contains(stdout+stderr, want) {
			t.Errorf("tulle %q: exit code %d, want %d with %q: %s%s", args, got, code, want, stdout, stderr)
		}
	}
	for _, n := range nodes {
		demandSubnet(t, n1, n.Subnet, n.Name, "confirmed", true)
	}
	said(n1, 1, "n3 is alive (192.168.77.3): end its daemon first", "forget", "n3")
	said(n1, 1, "n1 is this node: tulle leave gives its subnet back", "forget", "n1")
	said(n1, 1, "no node n9 is known: tulle peers lists them", "forget", "n9")
	said(n1, 2, "one node is needed", "forget")
	if err := l.StopNode(t.Context(), 3, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		s := claimsOf(t, n1)[n3.Subnet]
		return s.Live == "dead" && claimsOf(t, n2)[n3.Subnet].Live == "dead"
	})
	var both sync.WaitGroup
	for _, n := range []lab.Node{n1, n2} {
		both.Go(func() { said(n, 0, fmt.Sprintf("forgot n3: %s: free again in 10m0s", n3.Subnet), "forget", "n3") })
	}
	both.Wait()
	said(n1, 0, "forgot n3", "forget", "n3") // again is no error
	for _, n := range []lab.Node{n1, n2} {
		demandSubnet(t, n, n3.Subnet, "n3", "ended by a fence", false)
	}
	said(n2, 0, fmt.Sprintf("left: %s: free again in 10m0s; the daemon ends", n2.Subnet), "leave")
	for _, n := range []lab.Node{n1, n4} {
		waitFor(t, func() bool { s := claimsOf(t, n)[n2.Subnet]; return s.State == "released" && s.QuarantineSeconds > 0 })
	}
	waitFor(t, func() bool { return !l.Nodes()[1].Alive })
	if err := l.RemoveNode(t.Context(), 2, syscall.SIGKILL); err != nil { // its daemon is gone already
		t.Fatal(err)
	}
	if r := ping(t, lab.Pair{From: n1.Pods[0].Namespace, To: n4.Pods[0].Namespace, Addr: n4.Pods[0].Addr}, smallPing); r.Lost() > 0 {
		t.Errorf("%d pings between others lost", r.Lost())
	}
	demandSubnet(t, n1, n1.Subnet, "n1", "confirmed", true)
	demandSubnet(t, n1, n4.Subnet, "n4", "confirmed", true)
	if table, _, code := tulle(t, nil, nil, "subnets", "--run-dir", n1.RunDir); code != 0 || !strings.HasPrefix(table, "SUBNET ") || strings.Count(table, "\n") < 5 {
		t.Errorf("exit code %d:\n%s", code, table)
	}
}

func claimsOf(t *testing.T, n lab.Node) map[netip.Prefix]subnetReport {
	t.Helper()
	stdout, stderr, code := tulle(t, nil, nil, "subnets", "-o", "json", "--run-dir", n.RunDir)
	var r subnetsReport
	if err := json.Unmarshal([]byte(stdout), &r); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, stderr)
	}
	all := map[netip.Prefix]subnetReport{}
	for _, s := range r.Subnets {
		all[s.Block] = s
	}
	return all
}

func demandSubnet(t *testing.T, at lab.Node, block netip.Prefix, node, state string, owner bool) {
	t.Helper()
	waitFor(t, func() bool {
		s := claimsOf(t, at)[block]
		return s.Node == node && s.State == state && s.Owner == owner && (s.QuarantineSeconds > 0) == !owner
	})
}
