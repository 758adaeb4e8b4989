// Package holder keeps a daemon's descriptors open while the daemon is dead: a small process holds copies of one set of them,
// with bytes that say what they are, and hands copies out to the daemon that comes next. What the kernel queues on them meanwhile waits.
//
// The process never reads or writes what it holds, and knows nothing of packets. Server and client speak over a unix socket of
// sequenced packets (unix(7), SOCK_SEQPACKET), descriptors go as SCM_RIGHTS.
package holder

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Limits of a set. A node of 64 workers and both address families has some 2,300 descriptors.
const (
	MaxMeta  = 4 << 20 // bytes
	MaxFiles = 4096
)

// A Set is what is held: open descriptors, and what the daemon says of them. Whoever is handed a Set owns its descriptors.
type Set struct {
	Meta  []byte
	Files []int
}

// ErrEmpty says that the holder has no set.
var ErrEmpty = errors.New("the holder has nothing")

// Close closes the descriptors.
func (s *Set) Close() {
	for _, fd := range s.Files {
		unix.Close(fd)
	}
	s.Files = nil
}

func checkSize(meta, files int) error {
	switch {
	case meta > MaxMeta:
		return fmt.Errorf("%d bytes about a set (at most %d)", meta, MaxMeta)
	case files > MaxFiles:
		return fmt.Errorf("%d descriptors in a set (at most %d)", files, MaxFiles)
	}
	return nil
}
