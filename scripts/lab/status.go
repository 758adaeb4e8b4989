package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	startWait   = 30 * time.Second
	commandWait = 5 * time.Second
	pollEvery   = 50 * time.Millisecond
	atOnce      = 4 // status commands: they must not take the processors from the daemons
	tailBytes   = 2048
)

var errEnded = errors.New("daemon ended")

// status is what the lab reads of `tulle status -o json`.
type status struct {
	Node struct {
		Subnet     string `json:"subnet"` // empty until it is this node's for sure
		IPv6Subnet string `json:"ipv6Subnet"`
		VtepMAC    string `json:"vtepMAC"`
	} `json:"node"`
	Peers []struct {
		Subnet     string `json:"subnet"`
		IPv6Subnet string `json:"ipv6Subnet"`
		Routable   bool   `json:"routable"`
	} `json:"peers"`
}

// subnet is the zero prefix while there is none.
func (s status) subnet(f family) netip.Prefix {
	text := s.Node.Subnet
	if f == ipv6 {
		text = s.Node.IPv6Subnet
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// ready says that a daemon has all that the others have to know of it.
func (r *record) ready(s status) bool {
	for _, f := range r.families() {
		if !s.subnet(f).IsValid() {
			return false
		}
	}
	return s.Node.VtepMAC != "" || r.Backend != BackendVXLAN
}

// reaches says that packets for all subnets of a node have a way.
func (s status) reaches(n *node) bool {
	for _, subnet := range n.subnets() {
		found := false
		for _, p := range s.Peers {
			found = found || p.Routable && (p.Subnet == subnet.String() || p.IPv6Subnet == subnet.String())
		}
		if !found {
			return false
		}
	}
	return true
}

// Status is the output of `tulle status -o json` for a node.
func (l *Lab) Status(ctx context.Context, number int) ([]byte, error) {
	l.mu.Lock()
	rec := l.rec
	n, err := rec.find(number)
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return rec.status(ctx, n)
}

func (r *record) status(ctx context.Context, n *node) ([]byte, error) {
	out, err := r.run(ctx, n.namespace(), "status", "--run-dir", n.runDir(r.Dir), "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.name(), err)
	}
	return out, nil
}

// run runs a command of the executable and gives its stdout. In a namespace of the lab Down finds it, should this process
// be killed before it ends.
func (r *record) run(ctx context.Context, namespace string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandWait)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, r.Executable, args...)
	cmd.Env = append(os.Environ(), r.Env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := In(namespace, cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// await polls a node's status until ok accepts it. The error of a daemon that ended (then it is errEnded) or never gets
// there has the log's end.
func (l *Lab) await(ctx context.Context, n *node, what string, ok func(status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	for {
		out, err := l.rec.status(ctx, n)
		var s status
		if err == nil {
			err = json.Unmarshal(out, &s)
		}
		if err == nil && ok(s) {
			return nil
		}
		if !n.Daemon.alive() {
			return fmt.Errorf("node %s: %w\n%s", n.name(), errEnded, l.logTail(n))
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("node %s: %s: not after %v: %w\n%s", n.name(), what, startWait, errors.Join(ctx.Err(), err), l.logTail(n))
		case <-time.After(pollEvery):
		}
	}
}

// settle waits until nodes are what their records say, tells everyone of them, waits until all know all, and links the
// pods. Of a node that may fail it waits only for a sign of life or death.
func (l *Lab) settle(ctx context.Context, nodes []*node) error {
	if err := each(ctx, nodes, l.learn); err != nil {
		return err
	}
	if err := l.publishPeers(); err != nil {
		return err
	}
	if err := l.awaitPeers(ctx); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := l.wire(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// each runs f for nodes, some at a time, and gives the first error, which ends the others.
func each(ctx context.Context, nodes []*node, f func(context.Context, *node) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := f(ctx, n); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// learn waits for a daemon and records its subnets and its VTEP's MAC. A subnet that it has already must stay.
func (l *Lab) learn(ctx context.Context, n *node) error {
	if n.Kernel || n.Daemon.PID == 0 {
		return nil
	}
	if n.MayFail {
		err := l.await(ctx, n, "an answer to status", func(status) bool { return true })
		if errors.Is(err, errEnded) {
			return nil
		}
		return err
	}
	var s status
	err := l.await(ctx, n, "a subnet and a VTEP of its own", func(now status) bool { s = now; return l.rec.ready(now) })
	if err != nil {
		return err
	}
	for _, f := range l.rec.families() {
		if had, has := n.side(f).Subnet, s.subnet(f); had.IsValid() && had != has {
			return fmt.Errorf("node %s: its subnet changed from %s to %s\n%s", n.name(), had, has, l.logTail(n))
		}
	}
	return l.edit(func() {
		for _, f := range l.rec.families() {
			n.side(f).Subnet, n.side(f).VtepMAC = s.subnet(f), s.Node.VtepMAC
		}
		n.Ready = true
		fmt.Fprintf(l.progress, "node %s: has %v (process %d)\n", n.name(), n.subnets(), n.Daemon.PID)
	})
}

// awaitPeers waits until every daemon that runs reaches all other nodes that do.
func (l *Lab) awaitPeers(ctx context.Context) error {
	var want []*node
	for _, n := range l.rec.Nodes {
		if n.known() && (n.Kernel || n.Daemon.running()) {
			want = append(want, n)
		}
	}
	err := each(ctx, want, func(ctx context.Context, n *node) error {
		if n.Kernel {
			return nil
		}
		return l.await(ctx, n, fmt.Sprintf("a way to all of the %d others", len(want)-1), func(s status) bool {
			return !slices.ContainsFunc(want, func(other *node) bool { return other != n && l.rec.apart(other) == l.rec.apart(n) && !s.reaches(other) })
		})
	})
	if err != nil {
		return err
	}
	if l.started.IsZero() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.converged, l.started = time.Since(l.started), time.Time{}
	fmt.Fprintf(l.progress, "%d nodes know each other, %v after the last daemon's start\n", len(want), l.converged.Round(time.Millisecond))
	return nil
}

// wire links a node's pods to it as soon as it has a subnet.
func (l *Lab) wire(ctx context.Context, n *node) error {
	if n.Wired || !n.known() {
		return nil
	}
	for j := 1; j <= l.rec.Pods; j++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, f := range l.rec.families() {
			if s := n.side(f); !s.Subnet.Contains(s.podIP(j)) {
				return fmt.Errorf("pod %s: subnet %s has no room for it", n.pod(j), s.Subnet)
			}
		}
		if err := l.rec.setUpPod(n, j); err != nil {
			return err
		}
	}
	return l.edit(func() { n.Wired = true })
}

func (l *Lab) logTail(n *node) string {
	path := n.logFile(l.dir)
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(b) > tailBytes {
		b = b[len(b)-tailBytes:]
		b = b[bytes.IndexByte(b, '\n')+1:]
	}
	return path + ":\n" + strings.TrimRight(string(b), "\n")
}
