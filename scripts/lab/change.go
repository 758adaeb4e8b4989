package lab

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// StartNode starts the daemon of a node that was stopped, with the command line it had, waits until it has the subnet it had
// (another one is an error) and all nodes know each other. Of a node that may fail it waits for a sign of life only.
func (l *Lab) StartNode(ctx context.Context, number int) error {
	return l.changeDaemon(ctx, number, func(n *node) error {
		if n.Daemon.alive() {
			return fmt.Errorf("node %s: its daemon runs already (process %d)", n.name(), n.Daemon.PID)
		}
		l.reap(n.Number)
		if err := l.start(n); err != nil {
			return err
		}
		return l.settle(ctx, []*node{n})
	})
}

// TakeOver starts a second daemon of a node that takes over from the one that runs, with the same command line, and waits for the end of
// that one and as StartNode does. When the second one gives up, the first one goes on and stays the node's.
func (l *Lab) TakeOver(ctx context.Context, number int) error {
	return l.changeDaemon(ctx, number, func(n *node) error {
		old, exit := n.Daemon, l.exits[n.Number]
		next, argv, err := l.launch(n, n.Number, l.rec.Executable, append(l.rec.daemonArgs(n, l.rec.seed(n)), "--takeover"))
		if err != nil {
			return err
		}
		ended := l.exits[n.Number]
		select {
		case <-exit:
		case <-ended:
			l.exits[n.Number] = exit
			return fmt.Errorf("node %s: %w: nothing was taken over\n%s", n.name(), errEnded, l.logTail(n))
		case <-time.After(stopWait):
			return fmt.Errorf("node %s: process %d still runs %v after another took over", n.name(), old.PID, stopWait)
		}
		if err := l.edit(func() { n.Daemon, n.Args = next, argv[:len(argv)-1] }); err != nil {
			return err
		}
		return l.settle(ctx, []*node{n})
	})
}

// SetNodeArgs appends args to the command line of a node's daemon from its next start on, in place of those of Config.NodeArgsFor.
func (l *Lab) SetNodeArgs(ctx context.Context, number int, args ...string) error {
	return l.changeDaemon(ctx, number, func(n *node) error { return l.edit(func() { n.MoreArgs = args }) })
}

// SetExecutable makes path the tulle binary of daemons that start or take over from now on.
func (l *Lab) SetExecutable(ctx context.Context, path string) error {
	return l.change(ctx, func() error { return l.edit(func() { l.rec.Executable = path }) })
}

// StopNode sends sig to a node's daemon and waits for its end, at most 10 seconds. What the daemon leaves stays, and so do
// the pods.
func (l *Lab) StopNode(ctx context.Context, number int, sig syscall.Signal) error {
	return l.changeDaemon(ctx, number, func(n *node) error { return l.stop(n, sig) })
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

// Settle waits for a node of Config.MayFail as for any other: until it has its subnet, its pods, and all nodes know each
// other. From then on it counts as the others do.
func (l *Lab) Settle(ctx context.Context, number int) error {
	return l.changeDaemon(ctx, number, func(n *node) error {
		if err := l.edit(func() { n.MayFail = false }); err != nil {
			return err
		}
		err := l.settle(ctx, []*node{n})
		if err != nil {
			err = errors.Join(err, l.edit(func() { n.MayFail = true }))
		}
		return err
	})
}

// AddNode makes one more node with a daemon, and its pods, and waits until all nodes know each other. Its number is one that
// no node of this lab ever had. On any error what was made is removed again.
func (l *Lab) AddNode(ctx context.Context) (Node, error) { return l.add(ctx, false) }

// AddKernelNode is AddNode for a node that has what flannel has, see Node.Kernel. The lab's daemons must read a peers file: they do in a lab on files
// and in one that was made with a kernel node.
func (l *Lab) AddKernelNode(ctx context.Context) (Node, error) { return l.add(ctx, true) }

func (l *Lab) add(ctx context.Context, kernel bool) (added Node, err error) {
	err = l.change(ctx, func() error {
		if err := l.rec.canAdd(kernel); err != nil {
			return err
		}
		n := l.rec.newNode(l.rec.LastNumber+1, kernel, l.config)
		if err := checkForeign(l.rec.namespacesOf(n), []string{n.dir(l.dir)}); err != nil {
			return err
		}
		if err := l.edit(func() { l.rec.add(n) }); err != nil {
			return err
		}
		if err := l.buildNode(ctx, n); err != nil {
			return errors.Join(fmt.Errorf("add node %s: %w", n.name(), err), l.drop(n))
		}
		added = l.rec.view(n)
		return nil
	})
	return added, err
}

func (r *record) canAdd(kernel bool) error {
	switch {
	case r.LastNumber >= maxNodes:
		return fmt.Errorf("the lab has had %d nodes, that is all", maxNodes)
	case !kernel && r.Executable == "":
		return errors.New("the lab was made without an executable for daemons")
	case kernel && r.Backend == BackendUDP && r.FlannelPeer == "":
		return errors.New("the lab was made without an executable for nodes without daemon (flannelpeer)")
	case kernel && !r.StaticPeers:
		return errors.New("the lab's daemons read no peers file: make the lab with a kernel node from the start")
	}
	return nil
}

func (l *Lab) buildNode(ctx context.Context, n *node) error {
	if err := l.makeNamespaces(ctx, l.rec.namespacesOf(n)); err != nil {
		return err
	}
	if err := l.rec.setUpNode(n); err != nil {
		return err
	}
	start := l.start
	if n.Kernel {
		start = l.startKernelNode
	}
	if err := start(n); err != nil {
		return err
	}
	return l.settle(ctx, []*node{n})
}

// RemoveNode ends a node's daemon with sig (SIGTERM: it takes its leave; SIGKILL: a crash), then removes the node, its pods,
// its state and its log. It does not wait until the other daemons have noticed.
func (l *Lab) RemoveNode(ctx context.Context, number int, sig syscall.Signal) error {
	return l.change(ctx, func() error {
		n, err := l.rec.find(number)
		if err != nil {
			return err
		}
		if n.Daemon.alive() {
			if err := l.stop(n, sig); err != nil {
				return err
			}
		}
		return l.drop(n)
	})
}

// drop removes what a node is made of, and from the record last, so that it can be repeated.
func (l *Lab) drop(n *node) error {
	if err := l.edit(func() { n.Leaving = true }); err != nil {
		return err
	}
	if wire := l.wires[n.Number]; wire != nil {
		if err := wire.remove(); err != nil {
			return err
		}
	}
	own := l.rec.only(n)
	if err := (&teardown{rec: own, progress: l.progress}).clear(); err != nil {
		return err
	}
	l.reap(n.Number)
	l.reap(-n.Number)
	if err := l.edit(func() { l.rec.remove(own) }); err != nil {
		return err
	}
	return l.publishPeers()
}

// changeDaemon is change for a daemon node.
func (l *Lab) changeDaemon(ctx context.Context, number int, f func(*node) error) error {
	return l.change(ctx, func() error {
		n, err := l.rec.find(number)
		if err != nil {
			return err
		}
		if n.Kernel {
			return fmt.Errorf("node %s is a kernel node: it has no daemon", n.name())
		}
		return f(n)
	})
}

// change runs f with the machine's lock held and the record as it is on disk: other processes may change a lasting lab.
func (l *Lab) change(ctx context.Context, f func() error) error {
	l.op.Lock()
	defer l.op.Unlock()
	if l.lock != nil {
		return f()
	}
	lock, err := acquire(ctx, downWait, l.progress)
	if err != nil {
		return err
	}
	defer lock.release()
	rec, err := loadRecord(l.dir)
	if err != nil {
		return err
	}
	if rec == nil || !rec.Created.Equal(l.rec.Created) {
		return fmt.Errorf("the lab in %s is there no more", l.dir)
	}
	l.mu.Lock()
	l.rec = rec
	l.mu.Unlock()
	return f()
}
