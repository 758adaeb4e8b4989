package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Sequence says what Run sends: datagrams with a number and bytes that follow from it. Zero values: Count 1, Size 8, Quiet 1 s.
type Sequence struct {
	Count    int
	Size     int           // of the payload, bytes, 8 to 65,507
	Interval time.Duration // from datagram to datagram, on average; none if 0
	Quiet    time.Duration // how long nothing has to come, after the last was sent, for the rest to be lost
}

// SequenceResult is what arrived of a Sequence.
type SequenceResult struct {
	Sent       int
	Refused    int // by the sender's kernel; counted as sent too
	Received   int // different ones, as they were sent
	Duplicates int
	Reordered  int // of the different ones, those after one with a higher number
	Corrupt    int
	LongestGap time.Duration // between arrivals, until the last
}

// Lost is the number of those that never arrived as they were sent.
func (r SequenceResult) Lost() int { return r.Sent - r.Received }

// Run sends from tx, which is connected to rx's address, and judges what rx reads. Loss is no error: an error means that ctx
// ended or a socket failed.
func (s Sequence) Run(ctx context.Context, tx, rx *net.UDPConn) (SequenceResult, error) {
	s.Count, s.Size = max(s.Count, 1), max(s.Size, exchangeHeader)
	if s.Quiet <= 0 {
		s.Quiet = time.Second
	}
	if s.Size > 65507 {
		return SequenceResult{}, fmt.Errorf("sequence: %d bytes: must be %d to 65507", s.Size, exchangeHeader)
	}
	if err := makeRoom(rx); err != nil {
		return SequenceResult{}, fmt.Errorf("sequence: %w", err)
	}
	var r SequenceResult
	var done atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Sent, r.Refused = s.send(ctx, tx)
		done.Store(true)
	}()
	err := s.receive(ctx, rx, &done, &r)
	<-ended
	return r, errors.Join(ctx.Err(), err)
}

func makeRoom(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = raw.Control(func(fd uintptr) {
		e = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4*receiveBuffer)
	})
	return errors.Join(err, e)
}

// payload writes the bytes of a number into b, which keeps them different from those of any other.
func payload(b []byte, number uint64) {
	binary.BigEndian.PutUint64(b, number)
	random := rand.NewPCG(number, 0)
	for rest := b[exchangeHeader:]; len(rest) > 0; {
		var word [8]byte
		binary.NativeEndian.PutUint64(word[:], random.Uint64())
		rest = rest[copy(rest, word[:]):]
	}
}

func (s Sequence) send(ctx context.Context, tx *net.UDPConn) (sent, refused int) {
	b := make([]byte, s.Size)
	due := time.Now()
	for number := range s.Count {
		if ctx.Err() != nil {
			break
		}
		due = s.await(due)
		payload(b, uint64(number))
		sent++
		if _, err := tx.Write(b); err != nil {
			refused++
		}
	}
	return sent, refused
}

// mostLate is how far a sender may be behind and still catch up: more at once would be a burst that fills queues.
const mostLate = 10 * time.Millisecond

// await sleeps until the time of a datagram, and returns that of the next one. A sleep lasts longer than it was asked to, so the time of
// one counts from that of the one before and not from its end.
func (s Sequence) await(due time.Time) (next time.Time) {
	wait := time.Until(due)
	time.Sleep(wait)
	if late := -wait; late > mostLate {
		due = due.Add(late - mostLate)
	}
	return due.Add(s.Interval)
}

// receive fills r's counters of arrivals. It ends when nothing has come for Quiet since the last was sent.
func (s Sequence) receive(ctx context.Context, rx *net.UDPConn, done *atomic.Bool, r *SequenceResult) error {
	got, want := make([]byte, 1<<16), make([]byte, s.Size)
	seen, next := make([]bool, s.Count), 0
	var last time.Time
	for ctx.Err() == nil {
		wasDone := done.Load()
		if err := rx.SetReadDeadline(time.Now().Add(s.Quiet)); err != nil {
			return err
		}
		n, err := rx.Read(got)
		if errors.Is(err, os.ErrDeadlineExceeded) && wasDone {
			return nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sequence: receive: %w", err)
		}
		now := time.Now()
		if !last.IsZero() {
			r.LongestGap = max(r.LongestGap, now.Sub(last))
		}
		last = now
		next = s.judge(got[:n], want, seen, next, r)
	}
	return nil
}

// judge counts one datagram; next is one more than the highest number that came.
func (s Sequence) judge(got, want []byte, seen []bool, next int, r *SequenceResult) int {
	if len(got) != s.Size || binary.BigEndian.Uint64(got) >= uint64(s.Count) {
		r.Corrupt++
		return next
	}
	number := int(binary.BigEndian.Uint64(got))
	payload(want, uint64(number))
	switch {
	case !bytes.Equal(got, want):
		r.Corrupt++
		return next
	case seen[number]:
		r.Duplicates++
		return next
	case number < next:
		r.Reordered++
	}
	r.Received++
	seen[number] = true
	return max(next, number+1)
}
