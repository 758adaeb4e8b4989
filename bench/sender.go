package bench

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// shortestSleep is how long a paced sender sleeps at the least: what falls due meanwhile goes in one train. To spin instead
// would take the CPU from the path, which has none of its own.
const shortestSleep = 30 * time.Microsecond

// sender sends one trial's datagrams. Not for more than one thread.
type sender struct {
	stream Stream
	trial  uint32
	fds    []int // a socket per flow
	batch  *batch
	begin  time.Time     // of the trial
	start  time.Duration // of the sending, since begin

	flow    int    // of the next batch
	next    uint64 // number of the next datagram
	refused uint64 // sends that the kernel turned down for want of room; tried again
	elapsed time.Duration
	late    *hdrhistogram.Histogram // how long after its time each was sent; nil unless latency is measured
	halt    *atomic.Bool
}

func newSender(s Stream, fds []int) *sender {
	tx := &sender{stream: s, fds: fds, batch: newBatch(s.Batch, s.largest()*s.Segments, false)}
	if s.Latency {
		tx.late = newHistogram()
	}
	return tx
}

// launch is run on a thread that has just begun: what it took to get there is not the path's.
func (s *sender) launch() error {
	s.start = time.Since(s.begin)
	return s.run()
}

// run sends until the duration is over. A paced sender that cannot keep up ends at the same time, with less sent.
func (s *sender) run() error {
	most, limit := s.stream.most(), s.stream.Duration+s.stream.Duration/50
	if s.stream.Rate == 0 {
		limit = s.stream.Duration
	}
	for s.next < most && !s.halt.Load() {
		s.elapsed = s.since()
		if s.elapsed > limit && (s.stream.Rate == 0 || !s.stream.All) {
			break
		}
		due := s.due(most)
		if due == s.next || !s.stream.Latency && due-s.next < s.perCall() && due < most {
			sleep(s.untilNext())
			continue
		}
		if err := s.send(min(due-s.next, s.perCall())); err != nil {
			return err
		}
	}
	s.elapsed = max(s.since(), s.intended(s.next))
	return nil
}

// since is the time since the start of the sending.
func (s *sender) since() time.Duration { return time.Since(s.begin) - s.start }

func (s *sender) perCall() uint64 { return uint64(s.stream.Batch * s.stream.Segments) }

// due is how many have to be sent by now.
func (s *sender) due(most uint64) uint64 {
	if s.stream.Rate == 0 {
		return most
	}
	return min(most, uint64(s.elapsed.Seconds()*s.stream.Rate)+1)
}

// intended is when a datagram is to be sent, since the start; unpaced, now.
func (s *sender) intended(number uint64) time.Duration {
	if s.stream.Rate == 0 {
		return s.elapsed
	}
	return time.Duration(float64(number) / s.stream.Rate * 1e9)
}

// untilNext is the time until a whole batch is due, in a slow stream until the next datagram.
func (s *sender) untilNext() time.Duration {
	const patience = time.Millisecond
	number := s.next
	if !s.stream.Latency {
		number += s.perCall() - 1
	}
	wait := s.intended(number) - s.elapsed
	if s.stream.Latency {
		return max(wait, time.Microsecond)
	}
	return min(max(wait, shortestSleep), patience)
}

// send hands n datagrams of one flow to the kernel.
func (s *sender) send(n uint64) error {
	messages := s.fill(n)
	taken, errno := s.batch.send(s.fds[s.flow], messages)
	switch errno {
	case 0:
	case unix.EAGAIN, unix.ENOBUFS, unix.EINTR:
		s.refused++
		return nil
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH: // an ICMP message's, about one sent before
		s.refused++
		return nil
	default:
		return fmt.Errorf("send: %w", errno)
	}
	if s.late != nil {
		s.late.RecordValue(int64(min(max(s.elapsed-s.intended(s.next), 0), maxLatency)))
	}
	s.next += min(uint64(taken*s.stream.Segments), n)
	s.flow = (s.flow + 1) % len(s.fds)
	return nil
}

// fill writes the next n datagrams and says in how many messages.
func (s *sender) fill(n uint64) (messages int) {
	for number := s.next; number < s.next+n; messages++ {
		b, length := s.batch.payload(messages), 0
		for range s.stream.Segments {
			if number == s.next+n {
				break
			}
			stamp{s.trial, uint32(s.flow), number, s.start + s.intended(number)}.put(b[length:])
			length += s.stream.Sizes[number%uint64(len(s.stream.Sizes))]
			number++
		}
		s.batch.size(messages, length)
	}
	return messages
}
