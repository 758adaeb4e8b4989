package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// readGuard bounds how long a library's Read can block. It blocks only when what poll(2) saw is gone before it is read, and
// nobody else reads: the kernel has dropped it because the link's queue was made shorter. A worker that is kept from the
// processor for longer between guard and read reads nothing, and polls again.
const readGuard = 100 * time.Millisecond

// Counts are packets through a device as its kernel link counts them, a super-packet as one. Lost are those among Read
// that the library gave an error for, or not the whole of. A TAP has none of them: the engine's frames are the kernel's.
type Counts struct{ Read, Written, Lost uint64 }

// Add returns the sum.
func (c Counts) Add(o Counts) Counts {
	return Counts{c.Read + o.Read, c.Written + o.Written, c.Lost + o.Lost}
}

// A library is what the ports of both libraries share: a descriptor that they read and write through Go's poller, where
// an empty queue blocks. A port asks poll(2) first. Counts are safe for concurrent use, the rest is the worker's.
type library struct {
	file                *os.File
	fd                  int
	polled              [1]unix.PollFd
	read, written, lost atomic.Uint64
}

// attachLibrary takes the descriptor from the library's file. File.Fd would make it blocking.
func attachLibrary(l *library, file *os.File) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	l.file = file
	return conn.Control(func(fd uintptr) { l.fd = int(fd) })
}

// FD returns the descriptor, for polling.
func (l *library) FD() int { return l.fd }

func (l *library) counts() Counts { return Counts{l.read.Load(), l.written.Load(), l.lost.Load()} }

// guard is called before a batch of reads.
func (l *library) guard() error {
	if err := l.file.SetReadDeadline(time.Now().Add(readGuard)); err != nil {
		return fmt.Errorf("read device: deadline: %w", err)
	}
	return nil
}

// ready reports whether a Read returns at once, with a packet or with an error.
func (l *library) ready() bool {
	l.polled[0] = unix.PollFd{Fd: int32(l.fd), Events: unix.POLLIN}
	n, err := unix.Poll(l.polled[:], 0)
	return err == nil && n > 0
}

// failedRead says what a library's read error means: the port is gone; no packet was read (nil); or the library refused a
// packet that it had read, which is counted (nil).
func (l *library) failedRead(err error) error {
	switch {
	case l.gone():
		return fmt.Errorf("read device: %w", ErrGone)
	case errors.Is(err, os.ErrDeadlineExceeded) || l.polled[0].Revents&unix.POLLERR != 0:
		return nil // nothing there, or the kernel is at removing the device
	case errors.As(err, new(*fs.PathError)):
		return fmt.Errorf("read device: %w", err)
	}
	l.read.Add(1)
	l.lost.Add(1)
	return nil
}

// failedWrite is ErrGone when the port is gone. Else the kernel refused a packet, which is no error.
func (l *library) failedWrite() error {
	if l.gone() {
		return fmt.Errorf("write device: %w", ErrGone)
	}
	return nil
}

// gone asks the kernel whether the descriptor still has a device: the libraries' own errors depend on who noticed first.
func (l *library) gone() bool {
	req, err := unix.NewIfreq("")
	return err == nil && errors.Is(unix.IoctlIfreq(l.fd, unix.TUNGETIFF, req), unix.EBADFD)
}

// A cutter writes out the wire segments of a frame one by one, each with its Ethernet header and finished checksums.
type cutter struct {
	frame    *packet.Frame
	segments packet.Segmenter // valid iff the frame is a super-packet
	ended    bool
}

// cut refuses a super-packet of joined segments (Device.Joining), whose payloads a Segmenter does not see.
func cut(f *packet.Frame) cutter {
	if len(f.More) > 0 {
		f.Refused = f.Segments
		return cutter{ended: true}
	}
	if f.VNet.GSOType == packet.GSONone {
		f.CompleteChecksum()
		return cutter{frame: f}
	}
	return cutter{frame: f, segments: packet.NewSegmenter(f)}
}

// next writes the next segment into buf, which has room for MaxFrame, and returns its length; 0 when none is left.
func (c *cutter) next(buf []byte) int {
	if c.ended {
		return 0
	}
	n := copy(buf, c.frame.DetachedLink())
	if c.frame.VNet.GSOType == packet.GSONone {
		c.ended = true
		return n + copy(buf[n:], c.frame.Bytes())
	}
	header := buf[n : n+c.segments.HeaderLen()]
	payload, ok := c.segments.Next(header)
	if c.ended = !ok; c.ended {
		return 0
	}
	n += len(header)
	return n + copy(buf[n:], payload)
}

// unsettle takes back what an earlier write said of the frames.
func unsettle(frames []*packet.Frame) {
	for _, f := range frames {
		f.Sent, f.Refused, f.SentBytes = 0, 0, 0
	}
}

// refuseRest settles the frames of a batch whose port went away while it was written.
func refuseRest(frames []*packet.Frame) {
	for _, f := range frames {
		f.Refused = f.Segments - f.Sent
	}
}
