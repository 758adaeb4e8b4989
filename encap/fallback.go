package encap

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusesSegments reports whether the error says that this send cannot be done with
// UDP_SEGMENT: EIO without checksum offload or under xfrm, EINVAL where the kernel's limits
// are lower, EMSGSIZE when a segment does not fit the device's MTU.
func refusesSegments(errno syscall.Errno) bool {
	return errno == unix.EIO || errno == unix.EINVAL || errno == unix.EMSGSIZE
}

// sendSingly sends message i of s datagram by datagram, after errno refused it whole. When
// that works the socket does without UDP_SEGMENT from then on, unless it was the size that did not
// fit: the path may have another MTU for the next peer.
func (u *Underlay) sendSingly(s *sender, i int, errno syscall.Errno) {
	u.fallbacks.Add(1)
	m := &s.meta[i]
	single := s.msgs[i : i+1]
	iovecs := unsafe.Slice(single[0].hdr.Iov, single[0].hdr.Iovlen)
	s.setControl(i, 1, 0)
	for ; len(iovecs) >= 2; iovecs = iovecs[2:] { // header and payload
		single[0].hdr.Iov = &iovecs[0]
		single[0].hdr.SetIovlen(2)
		part := message{frame: m.frame, segments: 1, bytes: int(iovecs[0].Len + iovecs[1].Len)}
		n, errno := sendmmsg(s.fd, single)
		if errno == unix.EAGAIN {
			waitWritable(s.fd)
			n, errno = sendmmsg(s.fd, single)
		}
		part.settle(errno == 0 && n == 1)
	}
	if errno != unix.EMSGSIZE && m.frame.Refused == 0 {
		s.gso = false
		u.gso.Store(false)
	}
}
