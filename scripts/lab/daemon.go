package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// stopWait is how long a daemon has to end on a signal: on SIGTERM it says goodbye to the others.
const stopWait = 10 * time.Second

func (n *node) runDir(lab string) string   { return filepath.Join(n.dir(lab), "run") }
func (n *node) stateDir(lab string) string { return filepath.Join(n.dir(lab), "state") }
func (n *node) logFile(lab string) string  { return filepath.Join(n.dir(lab), "log") }

// start runs node n's daemon.
func (l *Lab) start(n *node) error {
	for _, d := range []string{n.runDir(l.dir), n.stateDir(l.dir)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if l.rec.Holder && !n.Holder.alive() {
		if err := l.startHolder(n); err != nil {
			return err
		}
	}
	seed := l.rec.seed(n)
	daemon, argv, err := l.launch(n, n.Number, l.rec.Executable, l.rec.daemonArgs(n, seed))
	if err != nil {
		return err
	}
	return l.edit(func() {
		n.Daemon, n.Args, n.Seed = daemon, argv, seed.Number
		if !n.MayFail {
			l.started = time.Now()
		}
	})
}

// startHolder runs the holder of node n's daemon, and waits until it answers.
func (l *Lab) startHolder(n *node) error {
	l.reap(-n.Number)
	holder, _, err := l.launch(n, -n.Number, l.rec.Executable, []string{"holder", "--run-dir", n.runDir(l.dir)})
	if err != nil {
		return err
	}
	if err := l.edit(func() { n.Holder = holder }); err != nil {
		return err
	}
	for range 500 {
		if c, err := net.Dial("unixpacket", filepath.Join(n.runDir(l.dir), "holder.sock")); err == nil {
			return c.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("node %s: its holder does not answer\n%s", n.name(), l.logTail(n))
}

// launch runs a program in a node's namespace, in a session of its own so that a terminal's signals pass it by. Its end is known by the key.
func (l *Lab) launch(n *node, key int, path string, args []string) (started process, argv []string, err error) {
	log, err := os.OpenFile(n.logFile(l.dir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return started, nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), l.rec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := In(n.namespace(), cmd.Start); err != nil {
		return started, nil, fmt.Errorf("node %s: start %s: %w", n.name(), filepath.Base(path), err)
	}
	exit := make(chan struct{})
	l.exits[key] = exit
	// Ends with the process; Down and RemoveNode end that, and wait for exit.
	go func() { cmd.Wait(); close(exit) }()
	if started, err = identify(cmd.Process.Pid); err != nil && !n.MayFail {
		return started, nil, fmt.Errorf("node %s: %w at once\n%s", n.name(), errEnded, l.logTail(n))
	}
	return started, cmd.Args, nil
}

func (r *record) daemonArgs(n, seed *node) []string {
	args := []string{"node", "--name", n.name(), "--run-dir", n.runDir(r.Dir), "--state-dir", n.stateDir(r.Dir)}
	if r.Store != StoreEtcd {
		args = append(args, "--config", netConfPath(r.Dir))
	}
	if n.V4.PublicIP.IsValid() {
		args = append(args, "--public-ip", n.V4.PublicIP.String())
	}
	if n.V6.PublicIP.IsValid() {
		args = append(args, "--public-ipv6", n.V6.PublicIP.String())
	}
	switch r.Store {
	case StoreFile:
		args = append(args, "--store", StoreFile, "--subnet", joined(n.subnets()))
	case StoreGossip:
		args = append(args, "--join", seed.publicIP().String(), "--key-file", keyPath(r.Dir))
	}
	if r.Device != "" && r.Device != DeviceTAP {
		args = append(args, "--device", r.Device)
	}
	if r.StaticPeers {
		args = append(args, "--peers", peersPath(r.Dir))
	}
	return slices.Concat(args, r.NodeArgs, n.MoreArgs)
}

// seed is the node that n's daemon joins: always the same, as in a unit file, unless that one was removed. It is the first
// one with a daemon that has to work, and for the first of all daemons itself.
func (r *record) seed(n *node) *node {
	first := n
	for _, other := range slices.Backward(r.Nodes) {
		if other.Number == n.Seed {
			return other
		}
		if other.Daemon.alive() && !other.MayFail && !other.Kernel && r.apart(other) == r.apart(n) {
			first = other
		}
	}
	return first
}

// stop sends sig to a node's daemon and waits for its end.
func (l *Lab) stop(n *node, sig syscall.Signal) error {
	if err := n.Daemon.signal(sig); err != nil {
		return fmt.Errorf("node %s: stop daemon: %w", n.name(), err)
	}
	if left := awaitEnd([]process{n.Daemon}, stopWait); len(left) > 0 {
		return fmt.Errorf("node %s: process %d still runs %v after %v", n.name(), n.Daemon.PID, stopWait, sig)
	}
	l.reap(n.Number)
	return l.edit(func() { n.Daemon = process{} })
}

func (l *Lab) reap(number int) {
	if exit := l.exits[number]; exit != nil {
		<-exit
		delete(l.exits, number)
	}
}

// joined lists prefixes, separated by commas.
func joined(prefixes []netip.Prefix) string {
	var texts []string
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}
