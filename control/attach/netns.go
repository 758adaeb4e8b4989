package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/netns"
)

// ErrNetns: what a path names is no network namespace of a pod.
var ErrNetns = errors.New("not a network namespace of a container")

// openNetns opens the namespace that a path names. It refuses the node's own: a pod with host network needs no interface, and
// moving one there would take the node's configuration for the pod's.
func openNetns(path string) (*os.File, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, fmt.Errorf("%q is not an absolute and clean path: %w", path, ErrNetns)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // nonblocking: the path may be a FIFO
	if err != nil {
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrNetns, err)
	}
	if err := checkNetns(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

func checkNetns(f *os.File) error {
	fd := int(f.Fd())
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return ErrNetns
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return ErrNetns
	}
	var own, its unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/thread-self/ns/net", &own), unix.Fstat(fd, &its)); err != nil {
		return err
	}
	if own.Dev == its.Dev && own.Ino == its.Ino {
		return fmt.Errorf("the node's own namespace: %w", ErrNetns)
	}
	return nil
}

// within runs f in a namespace.
func within(ns *os.File, f func() error) error { return netns.Within(int(ns.Fd()), f) }
