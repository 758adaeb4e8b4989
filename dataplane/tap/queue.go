package tap

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// maxReads bounds a batch, so that a busy queue cannot keep its worker from the underlay.
const maxReads = 64

// ErrGone says that the device was removed while its queue was open.
var ErrGone = errors.New("the device was removed")

// A Queue is one queue of a TAP, a dataplane.Port. The kernel hands over and takes one frame in
// each system call; there is no batched read.
type Queue struct {
	fd    int
	vnet  [packet.VNetLen]byte
	iovec [3 + packet.MaxJoined]unix.Iovec
}

// FD returns the descriptor, for polling.
func (q *Queue) FD() int { return q.fd }

// Close closes the descriptor.
func (q *Queue) Close() error {
	if err := unix.Close(q.fd); err != nil {
		return fmt.Errorf("close tap queue: %w", err)
	}
	return nil
}

// Read appends the frames that wait in the queue, up to 64 or what the arena holds.
func (q *Queue) Read(b *packet.Batch) (int, error) {
	const vnetStart = packet.Headroom - packet.VNetLen
	for n := range maxReads {
		slot := b.Slot(packet.MaxFrame)
		if slot == nil {
			return n, nil
		}
		got, errno := rawRead(q.fd, slot[vnetStart:])
		switch errno {
		case 0:
		case unix.EAGAIN, unix.EINTR: // polling finds what a signal kept from being read
			return n, nil
		case unix.EBADFD:
			return n, fmt.Errorf("read tap: %w", ErrGone)
		default:
			return n, fmt.Errorf("read tap: %w", errno)
		}
		end := vnetStart + got
		f := b.Append(slot, min(packet.Headroom, end), end)
		f.Truncated = got < packet.VNetLen || end == len(slot)
		if !f.Truncated {
			f.VNet = packet.DecodeVNet(slot[vnetStart:])
		}
		b.Claim(end)
	}
	return maxReads, nil
}

// gather returns what a write of the frame consists of, and the length of its Ethernet frame.
func (q *Queue) gather(f *packet.Frame) (iovecs []unix.Iovec, length int) {
	f.VNet.Encode(q.vnet[:])
	q.iovec[0].Base, q.iovec[0].Len = &q.vnet[0], packet.VNetLen
	iovecs = q.iovec[:1]
	for _, part := range [...][]byte{f.DetachedLink(), f.Bytes()} {
		if len(part) > 0 {
			iovecs = append(iovecs, unix.Iovec{Base: &part[0], Len: uint64(len(part))})
			length += len(part)
		}
	}
	for _, part := range f.More {
		iovecs = append(iovecs, unix.Iovec{Base: &part[0], Len: uint64(len(part))})
		length += len(part)
	}
	return iovecs, length
}

// Write writes each frame with its offload metadata. The kernel refuses a frame when the
// link is down, when memory is short or when it finds the metadata impossible.
func (q *Queue) Write(b *packet.Batch) error {
	unsettle(b.Frames)
	for _, f := range b.Frames {
		if f.VNet.GSOType != packet.GSONone {
			f.VNet.HdrLen = uint16(f.Payload - f.L2) // the linear part of the kernel's copy
		}
		if err := q.write(f); err != nil {
			refuseRest(b.Frames)
			return err
		}
	}
	return nil
}

func (q *Queue) write(f *packet.Frame) error {
	iovecs, length := q.gather(f)
	var errno syscall.Errno
	for range 3 { // a signal may interrupt a write; more than once is not worth a packet
		if _, errno = rawWritev(q.fd, iovecs); errno != unix.EINTR {
			break
		}
	}
	switch errno {
	case 0:
		f.Sent, f.SentBytes = f.Segments, length
	case unix.EBADFD:
		return fmt.Errorf("write tap: %w", ErrGone)
	case unix.EBADF:
		return fmt.Errorf("write tap: %w", errno)
	default:
		f.Refused = f.Segments
	}
	return nil
}
