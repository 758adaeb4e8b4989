package encap

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

const (
	// maxSegments is what every kernel with UDP_SEGMENT takes in one send: 64 before
	// Linux 6.9, of which older checks lose one to the header.
	maxSegments = 63

	// Capacity of a queue. A flush makes room, so these bound memory and not what can be sent.
	maxMessages = 64
	maxIovecs   = 2048
	headerArena = 128 << 10

	// writableWait bounds how long a worker waits for a full socket buffer in one turn, in
	// milliseconds; then the datagrams are dropped and counted.
	writableWait = 5
)

// A queue is a socket with the messages that wait to be sent by it, in order.
type queue struct {
	fd     int
	family *family
	waited bool // for room in the buffer, as long as a turn may
	count  int
	msgs   [maxMessages]mmsghdr
	meta   [maxMessages]message
	parts  []part
	out    sendArena
}

// A message is one datagram, or several that leave in one send: all of one size but for the last, which may be shorter
// (UDP_SEGMENT). Whose they are does not matter: they may be of many frames and flows.
type message struct {
	way
	size            int // of each datagram but the last, bytes
	most            int // segments
	segments, bytes int
	iovec, part     int // the first ones
}

// datagrams are what a frame has to send: they go one way, and are of one size but for the last.
type datagrams struct {
	way
	size   int // bytes
	header int // of these, how many are written for each datagram; 0 for a single one
	most   int // datagrams that may share a message
}

// A way is what the datagrams of one message have in common.
type way struct {
	remote netip.AddrPort
	tos    uint8
	port   uint16 // the source
}

// A part is what a message has of one frame.
type part struct {
	frame           *packet.Frame
	segments, bytes int
}

// A sendArena holds what a queue's messages point to: iovecs and segment headers. Payloads stay in their frames.
type sendArena struct {
	iovecs  []unix.Iovec
	headers []byte
	nIovecs int
	nHeader int
}

func newQueue(fd int, family *family) queue {
	return queue{fd: fd, family: family, out: sendArena{iovecs: make([]unix.Iovec, maxIovecs), headers: make([]byte, headerArena)}}
}

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

// cut appends the iovecs of the next segments, most of them or what is left, and returns the length of their datagrams
// together.
func (a *sendArena) cut(cut *packet.Segmenter, most int) (segments, bytes int) {
	for ; segments < most && !cut.Done(); segments++ {
		header := a.header(cut.HeaderLen())
		payload, _ := cut.Next(header)
		a.iovec(header)
		if len(payload) > 0 {
			a.iovec(payload)
		}
		bytes += len(header) + len(payload)
	}
	return segments, bytes
}

// place makes the last message one that these datagrams may join, and returns how many may. It is fresh if it has none
// yet. Full, the queue is flushed first.
func (q *queue) place(d *datagrams, flush func()) (room int, fresh bool) {
	if room = q.spare(d); room > 0 {
		return room, false
	}
	room = max(1, min(d.most, q.family.maxPayload/d.size))
	if q.isFull(1+2*room, maxOuter+room*d.header) {
		flush()
	}
	q.start(d.way, d.size, d.most)
	return room, true
}

// spare returns how many of these datagrams the last message takes. A single datagram may be shorter than those before it,
// and is the last then.
func (q *queue) spare(d *datagrams) int {
	if q.count == 0 {
		return 0
	}
	m := &q.meta[q.count-1]
	if m.way != d.way || d.size > m.size || d.size < m.size && d.header > 0 || m.bytes != m.segments*m.size {
		return 0
	}
	room := min(d.most-m.segments, m.most-m.segments, (q.family.maxPayload-m.bytes)/d.size)
	if room <= 0 || !q.out.hasRoom(2*room, room*d.header) {
		return 0
	}
	return room
}

// isFull reports whether a message of so many iovecs and bytes of headers has to wait for the next flush.
func (q *queue) isFull(iovecs, headers int) bool {
	return q.count == maxMessages || !q.out.hasRoom(iovecs, headers)
}

// start begins a message.
func (q *queue) start(w way, size, most int) {
	q.meta[q.count] = message{way: w, size: size, most: most, iovec: q.out.nIovecs, part: len(q.parts)}
	q.count++
}

// add says whose the iovecs are that were appended to the last message.
func (q *queue) add(f *packet.Frame, segments, bytes int) {
	m := &q.meta[q.count-1]
	m.segments += segments
	m.bytes += bytes
	q.parts = append(q.parts, part{f, segments, bytes})
}

func (q *queue) iovecsOf(i int) []unix.Iovec {
	end := q.out.nIovecs
	if i+1 < q.count {
		end = q.meta[i+1].iovec
	}
	return q.out.iovecs[q.meta[i].iovec:end]
}

func (q *queue) partsOf(i int) []part {
	end := len(q.parts)
	if i+1 < q.count {
		end = q.meta[i+1].part
	}
	return q.parts[q.meta[i].part:end]
}

// send sends what is queued and empties the queue. singly sends message i datagram by datagram: it is called when the
// kernel refuses the message because of its segments.
func (q *queue) send(singly func(i int, errno syscall.Errno)) {
	for i := range q.count {
		q.point(i, q.iovecsOf(i))
	}
	for i := 0; i < q.count; {
		n, errno := sendmmsg(q.fd, q.msgs[i:q.count])
		switch {
		case errno == 0 && n > 0:
			for j := i; j < i+n; j++ {
				q.settle(j, true)
			}
			i += n
		case errno == unix.EINTR:
		case errno == unix.EAGAIN && !q.waited:
			q.waitWritable()
		case refusesSegments(errno) && q.meta[i].segments > 1:
			singly(i, errno)
			i++
		default:
			q.settle(i, false)
			i++
		}
	}
	q.count, q.parts = 0, q.parts[:0]
	q.out.nIovecs, q.out.nHeader = 0, 0
}

// sendSingly sends the datagrams of message i one by one, and reports whether all left. prepare gets the iovecs of one datagram,
// which has so many bytes, and so many in front of them as the message has before its first datagram.
func (q *queue) sendSingly(i, before int, prepare func(iovecs []unix.Iovec, bytes int)) bool {
	iovecs, start, all := q.iovecsOf(i), before, true
	for _, p := range q.partsOf(i) {
		for range p.segments {
			end, bytes := start, 0
			for ; end < len(iovecs) && bytes < q.meta[i].size; end++ {
				bytes += int(iovecs[end].Len)
			}
			prepare(iovecs[start-before:end], bytes)
			q.point(i, iovecs[start-before:end])
			one := part{p.frame, 1, bytes}
			sent := q.sendOne(i)
			one.settle(sent)
			start, all = end, all && sent
		}
	}
	return all
}

// point makes message i consist of the iovecs.
func (q *queue) point(i int, iovecs []unix.Iovec) {
	q.msgs[i].hdr.Iov = &iovecs[0]
	q.msgs[i].hdr.SetIovlen(len(iovecs))
}

// sendOne sends message i and reports whether it left.
func (q *queue) sendOne(i int) bool {
	n, errno := sendmmsg(q.fd, q.msgs[i:i+1])
	if errno == unix.EAGAIN && !q.waited {
		q.waitWritable()
		n, errno = sendmmsg(q.fd, q.msgs[i:i+1])
	}
	return errno == 0 && n == 1
}

// settle notes on the frames what became of message i.
func (q *queue) settle(i int, sent bool) {
	for _, p := range q.partsOf(i) {
		p.settle(sent)
	}
}

func (p part) settle(sent bool) {
	if !sent {
		p.frame.Refused += p.segments
		return
	}
	p.frame.Sent += p.segments
	p.frame.SentBytes += p.bytes
}

func (q *queue) waitWritable() {
	q.waited = true
	fds := [1]unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLOUT}}
	unix.Poll(fds[:], writableWait)
}
