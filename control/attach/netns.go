package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
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

var errGoexit = errors.New("ended with runtime.Goexit")

// within runs f in a namespace, on a thread that is thrown away after.
func within(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", ns.Name(), err)
		}
		return f()
	})
}

// onThread never uses the process's main thread: that one cannot be thrown away, and its namespace is what other processes see
// as this one's.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errGoexit
		defer func() { done <- err }()
		if unix.Gettid() == unix.Getpid() {
			err = onThread(f)
			runtime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}
