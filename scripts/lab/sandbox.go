package lab

import (
	"fmt"
	"os"

	"github.com/tulle-net/tulle/control/netns"
)

// A Sandbox is the network namespace of a container that a runtime is about to start. It has no name, and goes with the process at the
// latest.
type Sandbox struct{ file *os.File }

// NewSandbox makes one.
func NewSandbox() (*Sandbox, error) {
	fd, err := anonymousNamespace()
	if err != nil {
		return nil, err
	}
	return &Sandbox{os.NewFile(uintptr(fd), "sandbox")}, nil
}

// Path names the namespace to other processes.
func (s *Sandbox) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// In runs f in the namespace, as In does.
func (s *Sandbox) In(f func() error) error { return netns.Within(int(s.file.Fd()), f) }

// Close lets go of the namespace.
func (s *Sandbox) Close() error { return s.file.Close() }
