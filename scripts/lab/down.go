package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// termGrace is how long processes have to end on SIGTERM, and again on SIGKILL.
const termGrace = 5 * time.Second

// Down removes the lab whose record is in dir ("" is DefaultDir), whoever made it; with no lab there it does nothing. It
// refuses while a running process owns the lab.
func Down(dir string, progress io.Writer) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	dir, err := cleanDir(dir)
	if err != nil {
		return err
	}
	if progress == nil {
		progress = io.Discard
	}
	lock, err := acquire(context.Background(), downWait, progress)
	if err != nil {
		return err
	}
	defer lock.release()
	rec, err := loadRecord(dir)
	if err != nil {
		return err
	}
	c := lock.claim()
	switch {
	case rec != nil:
		err = (&teardown{rec: rec, progress: progress}).run()
	case c.Dir == dir:
		err = removeEmpty(c.MadeDirs) // killed before the record, or after
	default:
		fmt.Fprintf(progress, "no lab in %s\n", dir)
		return nil
	}
	if err != nil || c.Dir != dir {
		return err
	}
	return lock.clear()
}

// Down removes the lab.
func (l *Lab) Down() error {
	l.op.Lock()
	defer l.op.Unlock()
	for _, wire := range l.wires { // its sockets would keep the underlay's namespace
		if err := wire.remove(); err != nil {
			return err
		}
	}
	if l.lock == nil {
		return Down(l.dir, l.progress)
	}
	defer func() { l.lock.release(); l.lock = nil }()
	if err := (&teardown{rec: l.rec, progress: l.progress}).run(); err != nil {
		return err
	}
	for number := range l.exits {
		l.reap(number)
	}
	return l.lock.clear()
}

// teardown removes what a record names. The record itself goes last, so that an interrupted teardown can be repeated.
type teardown struct {
	rec      *record
	progress io.Writer
}

func (t *teardown) run() error {
	if err := t.clear(); err != nil {
		return err
	}
	path := recordPath(t.rec.Dir)
	if err := errors.Join(os.RemoveAll(path+".tmp"), os.Remove(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := removeEmpty(t.rec.MadeDirs); err != nil {
		return err
	}
	fmt.Fprintf(t.progress, "lab in %s removed: %d namespaces\n", t.rec.Dir, len(t.rec.Namespaces))
	return nil
}

// clear removes processes, namespaces and paths, and leaves the record as it is.
func (t *teardown) clear() error {
	if err := t.endProcesses(); err != nil {
		return err
	}
	for _, ns := range slices.Backward(t.rec.Namespaces) {
		if err := removeNamespace(ns.Name, ns.Inode); err != nil {
			return err
		}
	}
	for _, path := range t.rec.Paths {
		if err := errors.Join(os.RemoveAll(path), os.RemoveAll(path+".tmp")); err != nil {
			return err
		}
	}
	return nil
}

// endProcesses ends the daemons and everything else in the lab's namespaces, until a look finds nobody there.
func (t *teardown) endProcesses() error {
	inodes := map[uint64]bool{}
	for _, ns := range t.rec.Namespaces {
		if ns.Inode != 0 {
			inodes[ns.Inode] = true
		}
	}
	for range 10 {
		found := processesIn(inodes)
		for _, n := range t.rec.Nodes {
			if n.Daemon.alive() && !slices.Contains(found, n.Daemon) {
				found = append(found, n.Daemon)
			}
		}
		if len(found) == 0 {
			return nil
		}
		fmt.Fprintf(t.progress, "ending %d processes\n", len(found))
		if err := terminate(found, termGrace); err != nil {
			return err
		}
	}
	return errors.New("processes in the lab's namespaces keep coming back")
}

// removeEmpty removes directories that the lab made, innermost last made first, unless somebody put something there.
func removeEmpty(dirs []string) error {
	for _, dir := range slices.Backward(dirs) {
		// A half-written record is nobody's.
		if err := os.Remove(recordPath(dir) + ".tmp"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("remove %s: %w", filepath.Clean(dir), err)
		}
	}
	return nil
}

// clear empties the lock file's claim, and removes the directories of a lab killed before it had a record.
func (l *machineLock) clear() error {
	if err := removeEmpty(l.claim().MadeDirs); err != nil {
		return err
	}
	return l.setClaim(claim{})
}
