package main

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/tulle-net/tulle/scripts/lab"
)

// tulleOn runs a command against the daemon of a node.
func tulleOn(t *testing.T, l *lab.Lab, node int, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	n, err := l.Node(node)
	if err != nil {
		t.Fatal(err)
	}
	return tulle(t, nil, nil, append(args, "--run-dir", n.RunDir)...)
}

// pingNodeAs runs tulle ping and returns its report.
func pingNodeAs(t *testing.T, l *lab.Lab, node, code int, args ...string) *pingReport {
	t.Helper()
	args = append([]string{"ping", "-i", "20ms", "-W", "500ms", "-o", "json"}, args...)
	out, errOut, got := tulleOn(t, l, node, args...)
	if got != code {
		t.Fatalf("tulle %s: exit %d, want %d: %s%s", strings.Join(args, " "), got, code, errOut, out)
	}
	r := &pingReport{}
	if err := json.Unmarshal([]byte(out), r); err != nil {
		t.Fatalf("tulle %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return r
}

// checkPing demands that all of a target's requests were answered, and figures that add up.
func checkPing(t *testing.T, r *pingReport, target, sent int) {
	t.Helper()
	s := r.Summary[target]
	if s.Sent != sent || s.Received != sent || s.Duplicates != 0 || s.LossPercent != 0 || s.RTT.Min <= 0 || s.RTT.Max < s.RTT.P50 || s.RTT.P50 < s.RTT.Min {
		t.Errorf("%s: %+v, want %d of %d answered", s.To, s, sent, sent)
	}
	for _, p := range r.Replies {
		if p.RTTMillis == nil {
			t.Errorf("%s %d: %s", p.To, p.Seq, p.Problem)
		} else if diff := *p.RTTMillis - p.PathMillis - p.EngineMillis; p.EngineMillis <= 0 || p.PathMillis <= 0 || diff > 1e-6 || diff < -1e-6 {
			t.Errorf("%s %d: time %v is not path %v and engine %v", p.To, p.Seq, *p.RTTMillis, p.PathMillis, p.EngineMillis)
		}
	}
}

// TestPing asks a tulle node and a kernel node, in both families, and those that cannot answer.
func TestPing(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1, Family: lab.FamilyDual, Kernel: map[int]bool{3: true}})
	two := l.Nodes()[1]
	for _, c := range []struct{ name, flag, outer, inner string }{
		{two.Name, "-4", two.PublicIP.String(), two.VTEP.String()},
		{two.Name, "-6", two.PublicIPv6.String(), two.VTEPv6.String()},
		{two.PublicIPv6.String(), "-6", two.PublicIPv6.String(), two.VTEPv6.String()},
		{two.Pods[0].Addr.String(), "-4", two.PublicIP.String(), two.VTEP.String()},
	} {
		r := pingNodeAs(t, l, 1, 0, c.name, c.flag, "-c", "10", "--max-loss", "0")
		if len(r.Summary) != 2 || r.Node != two.Name || r.Outer != c.outer || r.NodeAddr != c.inner || r.Path == nil || r.Path.MTU != 1430 || r.FarKernelMillis == nil {
			t.Fatalf("ping %s: %+v", c.name, r)
		}
		checkPing(t, r, 0, 10)
		checkPing(t, r, 1, 10)
	}
	kernel := pingNodeAs(t, l, 1, 0, "n3", "-c", "3", "--to", "node")
	checkPing(t, kernel, 0, 3)
	if r := pingNodeAs(t, l, 1, 0, "n3", "-c", "3"); r.Summary[0].Received != 3 || r.Summary[1].Received != 0 || r.FarKernelMillis != nil {
		t.Errorf("a kernel node: %+v", r)
	}
	whole := pingNodeAs(t, l, 1, 0, two.Name, "-c", "2", "-s", "1402")
	checkPing(t, whole, 0, 2)
	if r := pingNodeAs(t, l, 1, 4, two.Name, "-c", "2", "-s", "1500"); !strings.Contains(r.Replies[0].Problem, "do not go through the link in one piece") {
		t.Errorf("a ping that does not fit: %+v", r)
	}
	out, _, code := tulleOn(t, l, 1, "ping", two.Name, "-c", "2", "-i", "10ms", "--mtu")
	for _, want := range []string{"ping n2 at ", "seq 2 ", "0.0% loss", "this engine p50", "path MTU 1430 bytes"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit %d and no %q in\n%s", code, want, out)
		}
	}
	t.Log(out)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ping", "n9"}, 1, "n9: no such node is known here (have: n2, n3)"},
		{[]string{"ping", "n1"}, 1, "n1 is this node itself"},
		{[]string{"ping", "198.51.100.1"}, 1, "198.51.100.1: no such node is known here"},
		{[]string{"ping", "n2", "--to", "moon"}, 2, "--to moon: unknown"},
		{[]string{"ping", "n2", "-s", "70000"}, 2, "--size 70000: out of range"},
	} {
		if _, errOut, code := tulleOn(t, l, 1, c.args...); code != c.code || !strings.Contains(errOut, c.want) {
			t.Errorf("%v: exit %d, want %d: %s", c.args, code, c.code, errOut)
		}
	}
}

// TestPingStopped demands exit 4 of a ping to a daemon that is stopped, 3 when it is one's own, and none of the answers that come late.
func TestPingStopped(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
	if err := l.SignalNode(2, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r := pingNodeAs(t, l, 1, 4, "n2", "-c", "3")
	if s := r.Summary[0]; s.Sent != 3 || s.Received != 0 || s.LossPercent != 100 {
		t.Errorf("a stopped daemon: %+v", s)
	}
	if err := l.SignalNode(2, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	checkPing(t, pingNodeAs(t, l, 1, 0, "n2", "-c", "3"), 0, 3)
}

// TestPingUDP is the same over flannel's udp backend: a tulle node, and a flannel node that has no engine.
func TestPingUDP(t *testing.T) {
	l := udpLab(t, 3, 1, lab.DeviceTAP)
	checkPing(t, pingNodeAs(t, l, 1, 0, "n2", "-c", "5"), 1, 5)
	checkPing(t, pingNodeAs(t, l, 1, 0, "n3", "-c", "5", "--to", "node"), 0, 5)
}
