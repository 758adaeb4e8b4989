package encap

import (
	"syscall"
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

	// writableWait bounds how long a worker waits for a full socket buffer in one turn, in
	// milliseconds; then the datagrams are dropped and counted.
	writableWait = 5
)

// A queue is a socket with the messages that wait to be sent by it.
type queue struct {
	fd     int
	waited bool // for room in the buffer, as long as a turn may
	count  int
	msgs   [maxMessages]mmsghdr
	meta   [maxMessages]message
}

// A sender is one sending UDP socket.
type sender struct {
	port uint16 // local
	queue
	family *family
	gso    bool // UDP_SEGMENT works on this socket
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

// hasRoom reports whether so many iovecs and header bytes still fit.
func (a *sendArena) hasRoom(iovecs, headers int) bool {
	return a.nIovecs+iovecs <= len(a.iovecs) && a.nHeader+headers <= len(a.headers)
}

// header takes n bytes of headers.
func (a *sendArena) header(n int) []byte {
	a.nHeader += n
	return a.headers[a.nHeader-n : a.nHeader]
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
	s := u.senderOf(f)
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
func (u *Underlay) reserve(s *sender, iovecs, headers int) {
	if s.count == maxMessages || !u.out.hasRoom(iovecs, headers) {
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
		u.reserve(s, 2*perMessage, perMessage*cut.HeaderLen())
		first := u.out.nIovecs
		var segments, bytes int
		if segments, bytes, more = u.out.cut(&cut, perMessage); segments > 0 {
			s.add(f, u.out.iovecs[first:u.out.nIovecs], segments, bytes, size)
		}
	}
}

// cut appends the iovecs of the next segments, most of them or what is left, and returns the length of their datagrams
// together.
func (a *sendArena) cut(cut *packet.Segmenter, most int) (segments, bytes int, more bool) {
	for segments < most {
		n, ok := a.cutOne(cut)
		if !ok {
			return segments, bytes, false
		}
		segments++
		bytes += n
	}
	return segments, bytes, true
}

// cutOne appends the next segment's iovecs and returns the datagram's length.
func (a *sendArena) cutOne(cut *packet.Segmenter) (int, bool) {
	header := a.headers[a.nHeader : a.nHeader+cut.HeaderLen()]
	payload, ok := cut.Next(header)
	if !ok {
		return 0, false
	}
	a.nHeader += len(header)
	a.iovec(header)
	if len(payload) > 0 {
		a.iovec(payload)
	}
	return len(header) + len(payload), true
}

// add queues one message. segmentSize is used only for more than one segment.
func (s *sender) add(f *packet.Frame, iovecs []unix.Iovec, segments, bytes, segmentSize int) {
	i := s.push(f, iovecs, segments, bytes)
	h := &s.msgs[i].hdr
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), putSockaddr(&s.names[i], f.Remote)
	s.setControl(i, segments, segmentSize)
}

// push queues a message for which there is room, and returns its index.
func (q *queue) push(f *packet.Frame, iovecs []unix.Iovec, segments, bytes int) int {
	i := q.count
	q.count++
	q.meta[i] = message{frame: f, segments: segments, bytes: bytes}
	q.msgs[i].hdr.Iov = &iovecs[0]
	q.msgs[i].hdr.SetIovlen(len(iovecs))
	return i
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
			s.waited = false
			s.send(func(i int, errno syscall.Errno) { u.sendSingly(s, i, errno) })
		}
	}
	u.out.reset()
}

// send sends what is queued. singly sends message i segment by segment: it is called when the kernel refuses the
// message because of its segments.
func (q *queue) send(singly func(i int, errno syscall.Errno)) {
	for i := 0; i < q.count; {
		n, errno := sendmmsg(q.fd, q.msgs[i:q.count])
		switch {
		case errno == 0 && n > 0:
			for j := i; j < i+n; j++ {
				q.meta[j].settle(true)
			}
			i += n
		case errno == unix.EINTR:
		case errno == unix.EAGAIN && !q.waited:
			q.waitWritable()
		case refusesSegments(errno) && q.meta[i].segments > 1:
			singly(i, errno)
			i++
		default:
			q.meta[i].settle(false)
			i++
		}
	}
	q.count = 0
}

// sendPart sends one segment of message i, which the message consists of now, and settles it.
func (q *queue) sendPart(i, bytes int) {
	single := q.msgs[i : i+1]
	n, errno := sendmmsg(q.fd, single)
	if errno == unix.EAGAIN && !q.waited {
		q.waitWritable()
		n, errno = sendmmsg(q.fd, single)
	}
	part := message{frame: q.meta[i].frame, segments: 1, bytes: bytes}
	part.settle(errno == 0 && n == 1)
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

func (q *queue) waitWritable() {
	q.waited = true
	fds := [1]unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLOUT}}
	unix.Poll(fds[:], writableWait)
}
