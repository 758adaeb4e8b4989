package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// Up builds a lab. It waits (at most 5 minutes) while another process works on a lab or owns an ephemeral one, removes an
// ephemeral lab whose owner is gone, and refuses when another lab is up or a namespace of the lab's names is not a
// lab's. On any error, a cancelled ctx included, what was made is removed again.
func Up(ctx context.Context, c Config) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if err := c.normalize(); err != nil {
		return nil, err
	}
	lock, err := acquire(ctx, upWait, c.Progress)
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: c.Dir, lock: lock, progress: c.Progress, config: c, exits: map[int]chan struct{}{}, wires: map[int]*Impairment{}}
	if err := l.begin(c); err != nil {
		lock.release()
		return nil, err
	}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	if !c.Ephemeral {
		l.lock.release()
		l.lock = nil
	}
	return l, nil
}

// begin clears the way and writes the claim and the record; nothing else of the lab exists before they do.
func (l *Lab) begin(c Config) error {
	if err := l.clearStale(c.Dir); err != nil {
		return err
	}
	l.rec = newRecord(c)
	owner, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	l.rec.Owner = owner
	if err := checkForeign(l.rec.names(), l.rec.Paths); err != nil {
		return err
	}
	for _, dir := range []string{netnsDir, c.Dir} {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			l.rec.MadeDirs = append(l.rec.MadeDirs, dir)
		}
	}
	if err := l.lock.setClaim(claim{Dir: c.Dir, MadeDirs: l.rec.MadeDirs, Owner: owner}); err != nil {
		return fmt.Errorf("write %s: %w", lockPath, err)
	}
	for _, dir := range l.rec.MadeDirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return errors.Join(fmt.Errorf("make directory: %w", err), l.lock.clear())
		}
	}
	if err := l.rec.save(); err != nil {
		return errors.Join(fmt.Errorf("write record: %w", err), l.lock.clear())
	}
	return nil
}

// clearStale looks at the lab that was claimed last and at the one recorded in dir, which may be the same.
func (l *Lab) clearStale(dir string) error {
	last := l.lock.claim().Dir
	for _, d := range []string{last, dir} {
		if d == "" {
			continue
		}
		rec, err := loadRecord(d)
		if err != nil {
			return err
		}
		if rec == nil {
			continue
		}
		if !rec.stale() {
			return fmt.Errorf("a lab is already up (%d nodes, since %s); remove it with: %s",
				len(rec.Nodes), rec.Created.Local().Format(time.DateTime), downCommand(d))
		}
		fmt.Fprintf(l.progress, "removing the lab that process %d left in %s\n", rec.Owner.PID, d)
		if err := (&teardown{rec: rec, progress: l.progress}).run(); err != nil {
			return fmt.Errorf("remove the lab left in %s: %w", d, err)
		}
	}
	return l.lock.clear()
}

func downCommand(dir string) string {
	if dir == DefaultDir {
		return "tulle lab down"
	}
	return "tulle lab down --dir " + dir
}

// checkForeign refuses to take over what no record names.
func checkForeign(namespaces, paths []string) error {
	for _, name := range namespaces {
		if namespaceExists(name) {
			return fmt.Errorf("namespace %s exists and is in no lab's record: remove it with: ip netns delete %s", name, name)
		}
	}
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s exists and is in no lab's record: remove it or choose another --dir", path)
		}
	}
	return nil
}

func (l *Lab) build(ctx context.Context) error {
	l.op.Lock()
	defer l.op.Unlock()
	if err := l.makeNamespaces(ctx, l.rec.names()); err != nil {
		return err
	}
	if err := l.rec.setUpUnderlay(); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	for _, n := range l.rec.Nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.rec.setUpNode(n); err != nil {
			return err
		}
	}
	fmt.Fprintf(l.progress, "%d nodes with %d pods each: links are up\n", len(l.rec.Nodes), l.rec.Pods)
	if err := l.writeFiles(ctx); err != nil {
		return err
	}
	return l.startAll(ctx)
}

// makeNamespaces makes namespaces that the record has by name, and records each before it can be seen.
func (l *Lab) makeNamespaces(ctx context.Context, names []string) error {
	for i := range l.rec.Namespaces {
		ns := &l.rec.Namespaces[i]
		if !slices.Contains(names, ns.Name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := makeNamespace(ns.Name, func(ino uint64) error {
			return l.edit(func() { ns.Inode = ino })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// startAll brings up what joins the nodes. Kernel nodes come first: daemons have to know from the start which subnets are
// taken. Those that may fail come when all others are settled: whose name or subnet is the right one is then no race.
func (l *Lab) startAll(ctx context.Context) error {
	for _, n := range l.rec.Nodes {
		if n.Kernel {
			if err := l.startKernelNode(n); err != nil {
				return err
			}
		}
	}
	if err := l.publishPeers(); err != nil {
		return err
	}
	if l.config.Prepare != nil {
		if err := l.config.Prepare(l.Nodes()); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	for _, mayFail := range []bool{false, true} {
		var group []*node
		for _, n := range l.rec.Nodes {
			if n.MayFail != mayFail {
				continue
			}
			group = append(group, n)
			if n.Kernel {
				continue
			}
			if err := l.start(n); err != nil {
				return err
			}
		}
		if err := l.settle(ctx, group); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) startKernelNode(n *node) error {
	if l.rec.Backend == BackendUDP {
		if err := os.MkdirAll(n.dir(l.dir), 0o755); err != nil {
			return err
		}
		if err := l.writeFlannelPeers(n); err != nil {
			return err
		}
		return l.startFlannel(n)
	}
	macs := map[family]string{}
	for _, f := range l.rec.families() {
		mac, err := l.rec.setUpVXLAN(n, f)
		if err != nil {
			return err
		}
		macs[f] = mac
	}
	return l.edit(func() {
		for f, mac := range macs {
			n.side(f).VtepMAC = mac
		}
		n.Ready = true
	})
}
