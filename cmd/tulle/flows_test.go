package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestFlowFilter holds each flag of tulle flows against flows that it lets through and keeps back.
func TestFlowFilter(t *testing.T) {
	flow := conntrack.Flow{Tuple: conntrack.Tuple{Src: netip.MustParseAddr("10.244.1.2"), Dst: netip.MustParseAddr("10.244.2.3"), SrcPort: 1, DstPort: 2, Proto: 6}}
	for _, c := range []struct {
		query string
		want  bool
	}{
		{"", true}, {"proto=tcp", true}, {"proto=6", true}, {"proto=udp", false},
		{"src=10.244.1.2", true}, {"src=10.244.1.0/24", true}, {"src=10.244.2.3", false}, {"src=fd00::1", false},
		{"dst=10.244.2.77/24", true}, {"dst=10.244.1.2", false},
		{"peer=n2", true}, {"peer=n3", false}, {"proto=tcp&src=10.244.1.2&dst=10.244.2.3&peer=n2", true}, {"proto=tcp&peer=n3", false},
	} {
		q, err := url.ParseQuery(c.query)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parseFlowFilter(q)
		if err != nil {
			t.Fatalf("%s: %v", c.query, err)
		}
		if got := f.matches(&flow, "n2"); got != c.want {
			t.Errorf("%q lets the flow through: %t, want %t", c.query, got, c.want)
		}
	}
}

// TestFlowErrors demands that a wrong filter is a usage error that says what is allowed, without asking any daemon.
func TestFlowErrors(t *testing.T) {
	for args, want := range map[string]string{
		"--proto sctpp":       "tulle flows: --proto: protocol \"sctpp\": unknown (allowed: tcp, udp, icmp, icmpv6, or a number from 1 to 255)\n",
		"--src here":          "tulle flows: --src: \"here\": an address or a prefix such as 10.244.1.0/24 is needed\n",
		"--sum port":          "tulle flows: --sum port: unknown (allowed: peer, proto, state, src, dst)\n",
		"--limit -1":          "tulle flows: --limit -1: a number of flows is needed, 0 for all\n",
		"-o xml":              "tulle flows: -o xml: unknown format (allowed: table, json)\n",
		"--watch --sum proto": "tulle flows: --watch and --sum exclude each other\n",
	} {
		_, stderr, code := tulle(t, nil, nil, append([]string{"flows"}, strings.Fields(args)...)...)
		if stderr != want || code != 2 {
			t.Errorf("%s: exit %d, %q, want 2 and %q", args, code, stderr, want)
		}
	}
	if _, stderr, code := tulle(t, nil, nil, "flows", "--run-dir", t.TempDir()); code != 3 || !strings.Contains(stderr, "no daemon answers") {
		t.Errorf("without a daemon: exit %d, %q", code, stderr)
	}
}

// TestFlowChanges demands an event for what is new, different and gone, and none for the rest.
func TestFlowChanges(t *testing.T) {
	known := map[string]flowReport{}
	turn := func(now ...flowReport) (events []string) {
		for _, e := range flowChanges(known, now) {
			events = append(events, e.Event+" "+e.Flow.ID)
		}
		return events
	}
	for i, c := range []struct {
		now  []flowReport
		want []string
	}{
		{[]flowReport{{ID: "a", State: "new"}, {ID: "b"}}, []string{"new a", "new b"}},
		{[]flowReport{{ID: "a", State: "new", IdleSeconds: 5}, {ID: "b"}}, nil},
		{[]flowReport{{ID: "a", State: "established"}, {ID: "b", Replied: true}}, []string{"state a", "state b"}},
		{[]flowReport{{ID: "b", Replied: true}, {ID: "c"}}, []string{"new c", "end a"}},
	} {
		if got := turn(c.now...); !slices.Equal(got, c.want) {
			t.Errorf("step %d: %v, want %v", i, got, c.want)
		}
	}
}

// TestFlowsCommand opens connections in a lab and finds them with tulle flows: listed, filtered, summed up, followed, on both nodes.
func TestFlowsCommand(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Family: lab.FamilyDual})
	two := l.Nodes()[1]
	runDirs := []string{l.Nodes()[0].RunDir, two.RunDir}
	flows := func(node int, args ...string) *flowsReport {
		t.Helper()
		stdout, stderr, code := tulle(t, nil, nil, append([]string{"flows", "-o", "json", "--run-dir", runDirs[node-1]}, args...)...)
		if code != 0 {
			t.Fatalf("tulle flows %v: exit %d, %s", args, code, stderr)
		}
		var r flowsReport
		if err := json.Unmarshal([]byte(stdout), &r); err != nil {
			t.Fatal(err)
		}
		return &r
	}
	events := watchFlows(t, runDirs[0], "--proto", "tcp")
	for _, addr := range two.Pods[0].Addrs() {
		p := lab.Pair{From: l.Nodes()[0].Pods[0].Namespace, To: two.Pods[0].Namespace, Addr: addr}
		from, to, err := p.TCP(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		local := netip.MustParseAddrPort(from.LocalAddr().String())
		for node, peer := range []string{"n2", "n1"} {
			r := flows(node+1, "--proto", "tcp", "--dst", addr.String(), "--src", local.Addr().String(), "--peer", peer)
			if len(r.Flows) != 1 || r.Matching != 1 {
				t.Fatalf("node %d: %+v, want the connection", node+1, r)
			}
			f := r.Flows[0]
			if f.SrcPort != local.Port() || f.State != "established" || !f.Replied || f.Peer != peer || f.AgeSeconds > 60 || f.IdleSeconds > 60 {
				t.Errorf("node %d: flow %+v", node+1, f)
			}
		}
		id := flows(1, "--proto", "tcp", "--dst", addr.String()).Flows[0].ID
		events.await(t, "new", id)
		from.Close()
		to.Close()
		events.await(t, "state", id)
	}
	if r := flows(1, "--sum", "proto", "--limit", "1"); r.Matching < 2 || len(r.Flows) > 1 || !slices.ContainsFunc(r.Sums, func(s flowSum) bool { return s == flowSum{"tcp", 2} }) {
		t.Errorf("sums %+v", r)
	}
	stdout, _, code := tulle(t, nil, nil, "flows", "--proto", "tcp", "--run-dir", runDirs[0])
	if code != 0 || strings.Count(stdout, "\n") != 3 || !strings.Contains(stdout, bracketed(two.Pods[0].Addr6)) {
		t.Errorf("the table, exit %d:\n%s", code, stdout)
	}
	if s := status(t, l, 1).Flows; s.Flows4 < 1 || s.Flows6 < 1 || s.Inserted < 2 {
		t.Errorf("status says %+v", s)
	}
}

func bracketed(a netip.Addr) string { return "[" + a.String() + "]:" }

// flowEvents are the lines of a running tulle flows --watch.
type flowEvents struct{ lines chan flowEvent }

func watchFlows(t *testing.T, runDir string, args ...string) *flowEvents {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{"flows", "--watch", "-o", "json", "--run-dir", runDir}, args...)...)
	cmd.Env = append(os.Environ(), asTulle+"=1")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &flowEvents{lines: make(chan flowEvent, 1000)}
	go func() {
		defer close(e.lines)
		for dec := json.NewDecoder(out); ; {
			var event flowEvent
			if dec.Decode(&event) != nil {
				return
			}
			e.lines <- event
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		for range e.lines {
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("tulle flows --watch: %v %s", err, errOut.String())
		}
	})
	return e
}

func (e *flowEvents) await(t *testing.T, event, id string) {
	t.Helper()
	for end := time.After(patience); ; {
		select {
		case got := <-e.lines:
			if got.Event == event && got.Flow.ID == id {
				return
			}
		case <-end:
			t.Fatalf("no event %s of flow %s within %s", event, id, strconv.Quote(patience.String()))
		}
	}
}
