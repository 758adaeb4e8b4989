package encap

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A sender is one sending UDP socket.
type sender struct {
	port uint16 // local
	queue
	gso   bool // UDP_SEGMENT works on this socket
	names [maxMessages]sockaddr
	ctl   [maxMessages][controlLen]byte
}

// Write sends each frame to its Remote. Super-packets leave whole, or are cut here, into iovecs, and what goes the same way in datagrams of
// one size leaves in one send, whatever flows it is of.
func (u *Underlay) Write(b *packet.Batch) error {
	u.tunnel.load()
	for _, f := range b.Frames {
		f.Sent, f.Refused, f.SentBytes = 0, 0, 0
		u.queue(f)
	}
	for i := range u.senders {
		if s := &u.senders[i]; s.count > 0 {
			u.flush(s)
		}
	}
	return nil
}

// queue turns a frame into messages of the sender that its flow hashes to.
func (u *Underlay) queue(f *packet.Frame) {
	if familyOf(f.Remote.Addr()) != u.family {
		f.Refused = f.Segments
		return
	}
	s := u.senderOf(f)
	d := datagrams{way: way{remote: f.Remote, tos: f.OuterTOS}, size: f.Len(), most: 1}
	if f.VNet.GSOType == packet.GSONone {
		if s.gso && d.size < u.tooLarge {
			d.most = maxSegments
		}
		s.place(&d, func() { u.flush(s) })
		s.out.iovec(f.Bytes())
		s.add(f, 1, d.size)
		return
	}
	if u.tunnel.trySend(f, s.port, func() { u.flush(s) }, &u.fallbacks) {
		return
	}
	cut := packet.NewSegmenter(f)
	d.header = cut.HeaderLen()
	d.size = d.header + int(f.VNet.GSOSize)
	if s.gso {
		d.most = maxSegments
	}
	for !cut.Done() {
		room, _ := s.place(&d, func() { u.flush(s) })
		segments, bytes := s.out.cut(&cut, room)
		s.add(f, segments, bytes)
	}
}

// flush sends what is queued on one socket.
func (u *Underlay) flush(s *sender) {
	for i := range s.count {
		m, h := &s.meta[i], &s.msgs[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), putSockaddr(&s.names[i], m.remote)
		s.setControl(i, m.segments)
	}
	s.waited = false
	s.send(func(i int, errno syscall.Errno) { u.sendSingly(s, i, errno) })
}

// setControl writes the control messages of message i: the segment size when it is to be sent as
// several segments, the TOS byte or traffic class when it is not zero.
func (s *sender) setControl(i, segments int) {
	used, m := 0, &s.meta[i]
	if segments > 1 {
		used = putControl(&s.ctl[i], used, unix.IPPROTO_UDP, unix.UDP_SEGMENT, uint32(m.size), 2)
	}
	if m.tos != 0 {
		used = putControl(&s.ctl[i], used, int32(s.family.level), int32(s.family.tos), uint32(m.tos), 4)
	}
	h := &s.msgs[i].hdr
	h.Control = nil
	if used > 0 {
		h.Control = &s.ctl[i][0]
	}
	h.SetControllen(used)
}
