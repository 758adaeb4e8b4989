package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

// A capturing is a running tulle capture.
type capturing struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer // valid after the end
	read   chan struct{}
}

// startCapture runs tulle capture on a node and waits until it captures.
func startCapture(t testing.TB, n lab.Node, args ...string) *capturing {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &capturing{t: t, read: make(chan struct{})}
	c.cmd = exec.Command(self, append([]string{"capture", "--run-dir", n.RunDir}, args...)...)
	c.cmd.Env = append(os.Environ(), asTulle+"=1")
	c.cmd.Stdout = &c.stdout
	stderr, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.cmd.Process.Kill(); c.cmd.Wait() })
	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	if err != nil || !strings.HasPrefix(first, "capturing ") {
		t.Fatalf("tulle capture %q: %s", args, first)
	}
	go func() {
		defer close(c.read)
		c.stderr.ReadFrom(lines)
	}()
	return c
}

// stop interrupts the capture and returns what it said at the end.
func (c *capturing) stop() string {
	c.t.Helper()
	c.cmd.Process.Signal(os.Interrupt)
	return c.wait(0)
}

// wait returns what the capture said at its end, which must have this exit code.
func (c *capturing) wait(code int) string {
	c.t.Helper()
	<-c.read
	c.cmd.Wait()
	if got := c.cmd.ProcessState.ExitCode(); got != code {
		c.t.Errorf("tulle capture: exit code %d, want %d: %s", got, code, &c.stderr)
	}
	return c.stderr.String()
}

// goroutines is what the daemon's own metrics say.
func goroutines(t *testing.T, n lab.Node) (count int) {
	t.Helper()
	_, text := fetch(t, n, "/metrics")
	_, rest, _ := strings.Cut(text, "\ngo_goroutines ")
	if _, err := fmt.Sscan(rest, &count); err != nil {
		t.Fatal(err)
	}
	return count
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 100 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("not in time")
}

// pinged demands lines of that many pings to n2, and their answers, at each stage.
func (c *capturing) pinged(times int) {
	c.t.Helper()
	stages := map[string]int{}
	for line := range strings.Lines(c.stdout.String()) {
		var l captureLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			c.t.Fatal(err)
		}
		stages[l.Stage+" "+l.Direction+" "+l.Verdict]++
		if l.Stage != "drop" && (l.Flow == nil || l.Flow.Proto != "icmp" || l.Peer != "n2") {
			c.t.Errorf("line %s", line)
		}
	}
	for _, want := range []string{"tap in encapsulated", "encap out encapsulated", "decap in delivered", "tap out delivered"} {
		if stages[want] < times {
			c.t.Errorf("%s: %d lines of %v", want, stages[want], stages)
		}
	}
}
