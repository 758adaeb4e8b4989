// Package netns runs code in other network namespaces (network_namespaces(7), setns(2)). It makes and finds none.
package netns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

var errGoexit = errors.New("ended with runtime.Goexit")

// Within runs f in the namespace that fd refers to, and returns its error. f runs on a goroutine and an OS thread of its own,
// which end with it, so a file descriptor opened by f stays in the namespace and nothing else ever does.
func Within(fd int, f func() error) error {
	return OnThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// OnThread runs f on a locked thread that is thrown away afterwards. It never uses the process's main thread: that one
// cannot be thrown away, and its namespace is what /proc/PID/ns/net shows as the process's own.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := errGoexit
		defer func() { done <- err }()
		if unix.Gettid() == unix.Getpid() {
			err = OnThread(f)
			runtime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}
