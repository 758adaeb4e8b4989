package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	l := &Lab{lock: lock, progress: c.Progress, exits: map[int]chan struct{}{}}
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
	if err := l.rec.checkForeign(); err != nil {
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

func newRecord(c Config) *record {
	r := &record{SchemaVersion: schemaVersion, Dir: c.Dir, Created: time.Now().UTC(), Ephemeral: c.Ephemeral, MTU: c.MTU,
		Pods: c.Pods, Executable: c.Executable, NodeArgs: c.NodeArgs, Env: c.Env}
	r.Namespaces = append(r.Namespaces, namespace{Name: underlayNamespace})
	r.Paths = []string{filepath.Join(c.Dir, "net-conf.json"), filepath.Join(c.Dir, "peers.json")}
	for i := 1; i <= c.Nodes; i++ {
		n := node{Number: i, Kernel: c.Kernel[i]}
		r.Nodes = append(r.Nodes, n)
		r.Namespaces = append(r.Namespaces, namespace{Name: n.namespace()})
		for j := 1; j <= c.Pods; j++ {
			r.Namespaces = append(r.Namespaces, namespace{Name: n.pod(j)})
		}
		if !n.Kernel {
			r.Paths = append(r.Paths, n.dir(c.Dir))
		}
	}
	return r
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
func (r *record) checkForeign() error {
	for _, ns := range r.Namespaces {
		if namespaceExists(ns.Name) {
			return fmt.Errorf("namespace %s exists and is in no lab's record: remove it with: ip netns delete %s",
				ns.Name, ns.Name)
		}
	}
	for _, path := range r.Paths {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s exists and is in no lab's record: remove it or choose another --dir", path)
		}
	}
	return nil
}

func (l *Lab) build(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.rec.Namespaces {
		if err := ctx.Err(); err != nil {
			return err
		}
		ns := &l.rec.Namespaces[i]
		err := makeNamespace(ns.Name, func(ino uint64) error {
			ns.Inode = ino
			return l.rec.save()
		})
		if err != nil {
			return err
		}
	}
	if err := l.buildLinks(ctx); err != nil {
		return err
	}
	fmt.Fprintf(l.progress, "%d nodes with %d pods each: links are up\n", len(l.rec.Nodes), l.rec.Pods)
	return l.buildNetwork(ctx)
}

func (l *Lab) buildLinks(ctx context.Context) error {
	if err := setUpUnderlay(); err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	for _, n := range l.rec.Nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := setUpNode(n, l.rec.MTU); err != nil {
			return err
		}
		for j := 1; j <= l.rec.Pods; j++ {
			if err := setUpPod(n, j, l.rec.MTU); err != nil {
				return err
			}
		}
	}
	return nil
}

// buildNetwork brings up what joins the nodes: daemons and kernel VXLAN devices, then everyone's peers.
func (l *Lab) buildNetwork(ctx context.Context) error {
	if err := l.writeNetConf(); err != nil {
		return err
	}
	for i := range l.rec.Nodes {
		n := &l.rec.Nodes[i]
		var err error
		if n.Kernel {
			n.VtepMAC, err = setUpKernelNode(*n, l.rec.MTU)
		} else {
			err = l.start(n)
		}
		if err != nil {
			return err
		}
	}
	if err := l.learnMACs(ctx); err != nil {
		return err
	}
	if err := l.publishPeers(); err != nil {
		return err
	}
	return l.awaitPeers(ctx)
}
