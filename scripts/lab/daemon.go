package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	startWait = 20 * time.Second
	stopWait  = 5 * time.Second
	pollEvery = 25 * time.Millisecond
	tailBytes = 2048
)

func (n node) runDir(lab string) string   { return filepath.Join(n.dir(lab), "run") }
func (n node) stateDir(lab string) string { return filepath.Join(n.dir(lab), "state") }
func (n node) logFile(lab string) string  { return filepath.Join(n.dir(lab), "log") }

// start runs node n's daemon in its namespace, in a session of its own so that a terminal's signals pass it by.
func (l *Lab) start(n *node) error {
	dir := l.rec.Dir
	for _, d := range []string{n.runDir(dir), n.stateDir(dir)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(n.logFile(dir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append([]string{"node", "--name", n.name(), "--subnet", n.subnet().String(), "--public-ip", n.publicIP().String(),
		"--config", netConfPath(dir), "--peers", peersPath(dir), "--run-dir", n.runDir(dir), "--state-dir", n.stateDir(dir)},
		l.rec.NodeArgs...)
	cmd := exec.Command(l.rec.Executable, args...)
	cmd.Env = append(os.Environ(), l.rec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := In(n.namespace(), cmd.Start); err != nil {
		return fmt.Errorf("node %s: start daemon: %w", n.name(), err)
	}
	exit := make(chan struct{})
	l.exits[n.Number] = exit
	// Ends with the process; Down ends that, and waits for exit.
	go func() { cmd.Wait(); close(exit) }()
	n.Daemon, err = identify(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("node %s: daemon ended at once\n%s", n.name(), l.logTail(n))
	}
	n.Args = cmd.Args
	return l.rec.save()
}

// StartNode starts the daemon of a node that was stopped, waits until it answers and knows its peers, and tells the others
// of its MAC if that is a new one.
func (l *Lab) StartNode(ctx context.Context, number int) error {
	return l.change(ctx, number, func(n *node) error {
		if n.Daemon.alive() {
			return fmt.Errorf("node %s: its daemon runs already (process %d)", n.name(), n.Daemon.PID)
		}
		if err := l.start(n); err != nil {
			return err
		}
		before := n.VtepMAC
		if err := l.learnMACs(ctx); err != nil {
			return err
		}
		if n.VtepMAC != before {
			if err := l.publishPeers(); err != nil {
				return err
			}
		}
		return l.awaitPeers(ctx)
	})
}

// StopNode sends sig to a node's daemon and waits for its end, at most 5 seconds.
func (l *Lab) StopNode(ctx context.Context, number int, sig syscall.Signal) error {
	return l.change(ctx, number, func(n *node) error {
		if err := n.Daemon.signal(sig); err != nil {
			return fmt.Errorf("node %s: stop daemon: %w", n.name(), err)
		}
		if left := awaitEnd([]process{n.Daemon}, stopWait); len(left) > 0 {
			return fmt.Errorf("node %s: process %d still runs %v after %v", n.name(), n.Daemon.PID, stopWait, sig)
		}
		l.reap(n.Number)
		n.Daemon = process{}
		return l.rec.save()
	})
}

// SignalNode sends sig to a node's daemon: SIGSTOP and SIGCONT, say.
func (l *Lab) SignalNode(number int, sig syscall.Signal) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.rec.find(number)
	if err != nil {
		return err
	}
	if err := n.Daemon.signal(sig); err != nil {
		return fmt.Errorf("node %s: signal daemon: %w", n.name(), err)
	}
	return nil
}

// change runs f on a daemon node with the machine's lock held.
func (l *Lab) change(ctx context.Context, number int, f func(*node) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		lock, err := acquire(ctx, downWait, l.progress)
		if err != nil {
			return err
		}
		defer lock.release()
	}
	n, err := l.rec.find(number)
	if err != nil {
		return err
	}
	if n.Kernel {
		return fmt.Errorf("node %s is a kernel node: it has no daemon", n.name())
	}
	return f(n)
}

func (l *Lab) reap(number int) {
	if exit := l.exits[number]; exit != nil {
		<-exit
		delete(l.exits, number)
	}
}

// status is what the lab reads of `tulle status -o json`.
type status struct {
	Node struct {
		VtepMAC string `json:"vtepMAC"`
	} `json:"node"`
	Peers []json.RawMessage `json:"peers"`
}

// Status is the output of `tulle status -o json` for a node.
func (l *Lab) Status(ctx context.Context, number int) ([]byte, error) {
	l.mu.Lock()
	n, err := l.rec.find(number)
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return l.status(ctx, n)
}

func (l *Lab) status(ctx context.Context, n *node) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, l.rec.Executable, "status", "--run-dir", n.runDir(l.rec.Dir), "-o", "json")
	cmd.Env = append(os.Environ(), l.rec.Env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// In the node's namespace Down finds it, should this process be killed before it ends.
	err := In(n.namespace(), cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("node %s: status: %w: %s", n.name(), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// await polls a node's status until ok accepts it. The error of a daemon that died or never gets there has the log's end.
func (l *Lab) await(ctx context.Context, n *node, what string, ok func(status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	for {
		out, err := l.status(ctx, n)
		var s status
		if err == nil {
			err = json.Unmarshal(out, &s)
		}
		if err == nil && ok(s) {
			return nil
		}
		if !n.Daemon.alive() {
			return fmt.Errorf("node %s: daemon ended\n%s", n.name(), l.logTail(n))
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

func (l *Lab) logTail(n *node) string {
	b, err := os.ReadFile(n.logFile(l.rec.Dir))
	if err != nil {
		return err.Error()
	}
	if len(b) > tailBytes {
		b = b[len(b)-tailBytes:]
		b = b[bytes.IndexByte(b, '\n')+1:]
	}
	return n.logFile(l.rec.Dir) + ":\n" + strings.TrimRight(string(b), "\n")
}
