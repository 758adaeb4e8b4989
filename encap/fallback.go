package encap

import (
	"syscall"

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
	s.setControl(i, 1)
	all := s.queue.sendSingly(i, 0, func([]unix.Iovec, int) {})
	if errno == unix.EMSGSIZE {
		u.tooLarge = min(u.tooLarge, s.meta[i].size)
	} else if all {
		s.gso = false
		u.gso.Store(false)
	}
}
