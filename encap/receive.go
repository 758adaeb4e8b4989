package encap

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// receiveBatch is the number of datagrams, each up to 64 KiB when the kernel joined or never
// cut segments, that one system call takes.
const receiveBatch = 16

// maxDatagram is one byte more than UDP can carry over IPv6, and more than that over IPv4.
const maxDatagram = 65536 - outerUDPLen

// A receiveRing is what one recvmmsg(2) fills besides the frames' bytes.
type receiveRing struct {
	front   int // bytes that come before a datagram's payload, which is to lie at Headroom
	msgs    [receiveBatch]mmsghdr
	iovecs  [receiveBatch]unix.Iovec
	names   [receiveBatch]sockaddr
	control [receiveBatch][controlLen]byte
	slots   [receiveBatch][]byte
}

func (r *receiveRing) init(front int) {
	r.front = front
	for i := range r.msgs {
		h := &r.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovecs[i]
		h.SetIovlen(1)
		h.Control = &r.control[i][0]
	}
}

// arm gives as many messages a slot of the batch's arena as there is room for, and returns
// their number.
func (r *receiveRing) arm(b *packet.Batch) int {
	for i := range r.msgs {
		slot := b.Slot(maxDatagram)
		if slot == nil {
			return i
		}
		b.Claim(len(slot))
		r.slots[i] = slot
		r.iovecs[i].Base = &slot[packet.Headroom-r.front]
		r.iovecs[i].SetLen(r.front + maxDatagram)
		h := &r.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlLen)
		h.Flags = 0
	}
	return len(r.msgs)
}

// Read appends the datagrams that wait in the socket, up to 16 reads of it. Datagrams that the
// kernel joined (UDP_GRO) become a frame each.
func (u *Underlay) Read(b *packet.Batch) (int, error) {
	armed := u.recv.arm(b)
	if armed == 0 {
		return 0, nil
	}
	n, errno := recvmmsg(u.receiver, u.recv.msgs[:armed])
	switch errno {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	default:
		return 0, fmt.Errorf("read underlay: %w", errno)
	}
	before := len(b.Frames)
	for i := range n {
		u.split(b, i)
	}
	return len(b.Frames) - before, nil
}

// split appends the frames of message i to the batch.
func (u *Underlay) split(b *packet.Batch, i int) {
	m := &u.recv.msgs[i]
	size, tos := readControl(u.recv.control[i][:m.hdr.Controllen])
	j := joined{
		slot: u.recv.slots[i], start: packet.Headroom, end: packet.Headroom + int(m.len), size: size, tos: tos,
		remote: addrPort(&u.recv.names[i]), truncated: m.hdr.Flags&unix.MSG_TRUNC != 0,
	}
	j.split(b, u.framing)
}

// A joined is what the kernel hands over as one: a datagram, several of one flow, or one that was never cut.
type joined struct {
	slot       []byte // its payload is slot[start:end]
	start, end int    // start is at Headroom or behind it
	size       int    // of each datagram but the last, or of the inner segments if it was never cut; 0: unknown
	whole      bool   // known not to be joined
	remote     netip.AddrPort
	tos        uint8
	truncated  bool
}

// split appends the frames to the batch.
func (j *joined) split(b *packet.Batch, framing Framing) {
	size, length, hint := j.size, j.end-j.start, 0
	if size <= 0 || size >= length {
		size = length
	} else if j.whole || framing.DatagramLen(j.slot[j.start:j.end]) == length {
		// Not joined but never cut: a super-packet of a kernel peer on the same machine, and
		// the size is that of its inner segments.
		size, hint = length, size
	}
	room := packet.Headroom
	for start := j.start; ; start += size {
		f := b.Append(j.slot[start-room:], room, room+min(size, j.end-start))
		room = 0 // in front of the others lies another frame
		f.Remote, f.OuterTOS, f.SegmentHint, f.Truncated = j.remote, j.tos, hint, j.truncated
		if start+size >= j.end {
			return
		}
	}
}
