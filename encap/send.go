package encap

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

const (
	// maxSegments is what every kernel with UDP_SEGMENT takes in one send: 64 before
	// Linux 6.9, of which older checks lose one to the header.
	maxSegments = 63

	// Capacity of a sendArena. A flush makes room, so these bound memory and not what can be sent.
	maxMessages = 64
	maxIovecs   = 4096
	headerArena = 256 << 10

	// writableWait bounds how long a worker waits for a full socket buffer, in
	// milliseconds; then the datagrams are dropped and counted.
	writableWait = 5
)

// A sender is one sending socket with the messages queued for it.
type sender struct {
	fd     int
	family *family
	gso    bool // UDP_SEGMENT works on this socket
	count  int
	msgs   [maxMessages]mmsghdr
	meta   [maxMessages]message
	names  [maxMessages]sockaddr
	ctl    [maxMessages][controlLen]byte
}

// A message says whose datagrams a mmsghdr sends.
type message struct {
	frame    *packet.Frame
	segments int
	bytes    int
}

// A sendArena holds what the queued messages of all senders point to: iovecs and segment
// headers. Payloads stay in their frames.
type sendArena struct {
	iovecs  []unix.Iovec
	headers []byte
	nIovecs int
	nHeader int
}

func (a *sendArena) init() {
	a.iovecs = make([]unix.Iovec, maxIovecs)
	a.headers = make([]byte, headerArena)
}

func (a *sendArena) reset() { a.nIovecs, a.nHeader = 0, 0 }

// hasRoom reports whether segments with headers of headerLen bytes each still fit.
func (a *sendArena) hasRoom(segments, headerLen int) bool {
	return a.nIovecs+2*segments <= len(a.iovecs) && a.nHeader+segments*headerLen <= len(a.headers)
}

func (a *sendArena) iovec(b []byte) {
	a.iovecs[a.nIovecs].Base = &b[0]
	a.iovecs[a.nIovecs].SetLen(len(b))
	a.nIovecs++
}

// queue turns a frame into messages of the sender that its flow hashes to.
func (u *Underlay) queue(f *packet.Frame) {
	if familyOf(f.Remote.Addr()) != u.family {
		f.Refused = f.Segments
		return
	}
	s := &u.senders[f.Hash&uint32(len(u.senders)-1)]
	if f.VNet.GSOType == packet.GSONone {
		u.reserve(s, 1, 0)
		first := u.out.nIovecs
		u.out.iovec(f.Bytes())
		s.add(f, u.out.iovecs[first:u.out.nIovecs], 1, f.Len(), 0)
		return
	}
	u.queueSuper(s, f)
}

// reserve makes room for one more message of s, by sending what is queued if need be.
func (u *Underlay) reserve(s *sender, segments, headerLen int) {
	if s.count == maxMessages || !u.out.hasRoom(segments, headerLen) {
		u.flush()
	}
}

// queueSuper cuts a super-packet into as few messages as the kernel allows; without
// UDP_SEGMENT every segment is a message.
func (u *Underlay) queueSuper(s *sender, f *packet.Frame) {
	cut := packet.NewSegmenter(f)
	size := cut.HeaderLen() + int(f.VNet.GSOSize) // of each datagram but the last
	perMessage := 1
	if s.gso {
		perMessage = max(1, min(maxSegments, s.family.maxPayload/size))
	}
	for more := true; more; {
		u.reserve(s, perMessage, cut.HeaderLen())
		first, segments, bytes := u.out.nIovecs, 0, 0
		for segments < perMessage {
			n, ok := u.cutOne(&cut)
			if more = ok; !ok {
				break
			}
			segments++
			bytes += n
		}
		if segments > 0 {
			s.add(f, u.out.iovecs[first:u.out.nIovecs], segments, bytes, size)
		}
	}
}

// cutOne appends the next segment's iovecs and returns the datagram's length.
func (u *Underlay) cutOne(cut *packet.Segmenter) (int, bool) {
	header := u.out.headers[u.out.nHeader : u.out.nHeader+cut.HeaderLen()]
	payload, ok := cut.Next(header)
	if !ok {
		return 0, false
	}
	u.out.nHeader += len(header)
	u.out.iovec(header)
	if len(payload) > 0 {
		u.out.iovec(payload)
	}
	return len(header) + len(payload), true
}

// add queues one message. segmentSize is used only for more than one segment.
func (s *sender) add(f *packet.Frame, iovecs []unix.Iovec, segments, bytes, segmentSize int) {
	i := s.count
	s.count++
	s.meta[i] = message{frame: f, segments: segments, bytes: bytes}
	h := &s.msgs[i].hdr
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), putSockaddr(&s.names[i], f.Remote)
	h.Iov = &iovecs[0]
	h.SetIovlen(len(iovecs))
	s.setControl(i, segments, segmentSize)
}

// setControl writes the control messages of message i: the segment size when there are
// several segments, the TOS byte or traffic class when it is not zero.
func (s *sender) setControl(i, segments, segmentSize int) {
	used := 0
	if segments > 1 {
		used = putControl(&s.ctl[i], used, unix.IPPROTO_UDP, unix.UDP_SEGMENT, uint32(segmentSize), 2)
	}
	if tos := s.meta[i].frame.OuterTOS; tos != 0 {
		used = putControl(&s.ctl[i], used, int32(s.family.level), int32(s.family.tos), uint32(tos), 4)
	}
	h := &s.msgs[i].hdr
	h.Control = nil
	if used > 0 {
		h.Control = &s.ctl[i][0]
	}
	h.SetControllen(used)
}

// flush sends what is queued on every socket.
func (u *Underlay) flush() {
	for i := range u.senders {
		if s := &u.senders[i]; s.count > 0 {
			u.flushSender(s)
		}
	}
	u.out.reset()
}

func (u *Underlay) flushSender(s *sender) {
	waited := false
	for i := 0; i < s.count; {
		n, errno := sendmmsg(s.fd, s.msgs[i:s.count])
		switch {
		case errno == 0 && n > 0:
			for j := i; j < i+n; j++ {
				s.meta[j].settle(true)
			}
			i += n
		case errno == unix.EINTR:
		case errno == unix.EAGAIN && !waited:
			waited = true
			waitWritable(s.fd)
		case refusesSegments(errno) && s.meta[i].segments > 1:
			u.sendSingly(s, i, errno)
			i++
		default:
			s.meta[i].settle(false)
			i++
		}
	}
	s.count = 0
}

// settle notes on the frame what became of the message.
func (m *message) settle(sent bool) {
	if !sent {
		m.frame.Refused += m.segments
		return
	}
	m.frame.Sent += m.segments
	m.frame.SentBytes += m.bytes
}

func waitWritable(fd int) {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	unix.Poll(fds[:], writableWait)
}
