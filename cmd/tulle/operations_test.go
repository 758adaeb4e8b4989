package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// A machine is a shell in a node of the lab that has /etc, /run, /var/lib and a host name for itself.
type machine struct {
	t      *testing.T
	node   lab.Node
	stdin  io.Writer
	stdout *bufio.Scanner
}

// newMachine starts the shell. Its end, and that of what it started, is the lab's.
func newMachine(t *testing.T, n lab.Node, path string) *machine {
	t.Helper()
	cmd := exec.Command("/bin/sh")
	cmd.Env = []string{"PATH=" + path + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(t, n, cmd.Start)
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	m := &machine{t, n, stdin, bufio.NewScanner(stdout)}
	for _, dir := range []string{"/etc", "/var/lib", "/run"} {
		m.run("mount -t tmpfs tulle-test " + dir)
	}
	m.run("echo " + n.Name + " >/proc/sys/kernel/hostname")
	return m
}

const endMark = "@@ exit status"

// run runs a piece of the page and returns what it printed.
func (m *machine) run(script string) string {
	m.t.Helper()
	fmt.Fprintf(m.stdin, "( set -e\n%s\n) 2>&1\necho \"%s $?\"\n", script, endMark)
	var out strings.Builder
	for m.stdout.Scan() {
		line := m.stdout.Text()
		if status, ok := strings.CutPrefix(line, endMark+" "); ok {
			if status != "0" {
				m.t.Fatalf("%s: exit %s of\n%s\n%s", m.node.Name, status, script, &out)
			}
			return out.String()
		}
		fmt.Fprintln(&out, line)
	}
	m.t.Fatalf("%s: the shell ended in\n%s", m.node.Name, script)
	return ""
}

// await asks for the status until ok accepts it.
func (m *machine) await(what string, ok func(*statusReport) bool) *statusReport {
	m.t.Helper()
	for range 100 {
		var r statusReport
		out := m.run("tulle status -o json || true")
		if json.Unmarshal([]byte(out), &r) == nil && ok(&r) {
			return &r
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.t.Fatalf("%s: not in time: %s\n%s", m.node.Name, what, m.run("cat /run/daemon.log"))
	return nil
}

// TestOperationsPage does what docs/operations.md says, word for word but for the addresses.
func TestOperationsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0, Store: lab.StoreFile})
	path := installTulle(t)
	machines := map[string]*machine{}
	for i, n := range l.Nodes() {
		if err := l.StopNode(t.Context(), n.Number, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		machines[string("ab"[i])] = newMachine(t, n, path)
	}
	a, b := machines["a"], machines["b"]
	blocks := 0
	for _, block := range strings.Split(string(page), "```sh ")[1:] {
		head, rest, _ := strings.Cut(block, "\n")
		script, _, ok := strings.Cut(rest, "\n```")
		if !ok {
			t.Fatalf("a block does not end: %s", block)
		}
		blocks++
		name, kind, _ := strings.Cut(head, " ")
		runBlock(machines[name], a, kind, strings.ReplaceAll(script, "192.0.2.11", a.node.PublicIP.String()))
	}
	if blocks < 7 {
		t.Errorf("%d blocks found on the page", blocks)
	}
	know := func(r *statusReport) bool { return len(r.Peers) == 1 && r.Peers[0].Routable && len(r.Problems) == 0 }
	a.await("a lists b", know)
	far := b.await("b lists a", know)
	p := lab.Pair{From: a.node.Namespace, To: b.node.Namespace, Addr: netip.MustParseAddr(far.Node.TunnelAddr)}
	if r := ping(t, p, bench.Ping{Count: 3, Timeout: time.Second}); r.Lost() != 0 {
		t.Errorf("ping %s: %+v", p.Addr, r)
	}
	if env := b.run("cat /run/tulle/subnet.env"); !strings.Contains(env, "FLANNEL_NETWORK=10.42.0.0/16\n") {
		t.Errorf("subnet.env: %s", env)
	}
}

// runBlock runs one block of the page on its machine; first is the one that things are copied from.
func runBlock(m, first *machine, kind, script string) {
	m.t.Helper()
	switch kind {
	case "daemon":
		m.run(script + " >/run/daemon.log 2>&1 &")
		m.await("the daemon is ready", func(r *statusReport) bool { return r.NotReady == "" })
	case "copied":
		for _, file := range []string{"/etc/tulle/key", "/etc/tulle/net-conf.json"} {
			m.run("mkdir -p /etc/tulle\ncat >" + file + " <<'END'\n" + first.run("cat "+file) + "END")
		}
		m.run(script)
	default:
		m.t.Logf("%s$ %s\n%s", m.node.Name, script, m.run(script))
	}
}

// installTulle makes a directory with a tulle in it, which is this test binary.
func installTulle(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n%s=1 exec %s \"$@\"\n", asTulle, self)
	if err := os.WriteFile(filepath.Join(dir, "tulle"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
