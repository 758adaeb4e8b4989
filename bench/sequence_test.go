package bench

import (
	"testing"
	"time"
)

func TestSequence(t *testing.T) {
	for _, size := range []int{0, 8, 13, 1400} {
		client, server := udpPair(t)
		s := Sequence{Count: 2000, Size: size, Quiet: 100 * time.Millisecond}
		r, err := s.Run(deadline(t, 10*time.Second), client, server)
		if r.LongestGap <= 0 {
			t.Errorf("longest gap %v", r.LongestGap)
		}
		r.LongestGap = 0
		if want := (SequenceResult{Sent: 2000, Received: 2000}); err != nil || r != want || r.Lost() != 0 {
			t.Errorf("%d bytes: got %+v, %v, want %+v", size, r, err, want)
		}
	}
}

// The judge itself, with datagrams fed by hand.
func TestSequenceJudges(t *testing.T) {
	s := Sequence{Count: 10, Size: 20}
	var r SequenceResult
	want, seen, next := make([]byte, s.Size), make([]bool, s.Count), 0
	feed := func(number uint64, spoil func([]byte) []byte) {
		b := make([]byte, s.Size)
		payload(b, number)
		next = s.judge(spoil(b), want, seen, next, &r)
	}
	right := func(b []byte) []byte { return b }
	feed(0, right)
	feed(3, right)
	feed(1, right)                                          // reordered
	feed(1, right)                                          // duplicate
	feed(3, right)                                          // duplicate
	feed(4, func(b []byte) []byte { b[19] ^= 1; return b }) // corrupt
	feed(4, func(b []byte) []byte { b[7] ^= 1; return b })  // corrupt: the number is another's
	feed(5, func(b []byte) []byte { return b[:19] })        // corrupt: cut
	feed(6, func(b []byte) []byte { return append(b, 0) })  // corrupt: longer
	feed(10, right)                                         // corrupt: no such number
	feed(0xffff<<48, func(b []byte) []byte { return b })    // corrupt
	feed(9, right)
	if want := (SequenceResult{Received: 4, Reordered: 1, Duplicates: 2, Corrupt: 6}); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
}

// TestSequencePace demands that the time of a datagram follows from the one before, however long a sleep took, and that a sender which was
// held up does not make up for more than mostLate.
func TestSequencePace(t *testing.T) {
	s := Sequence{Interval: time.Millisecond}
	for _, due := range []time.Time{time.Now().Add(2 * time.Millisecond), time.Now()} {
		if next := s.await(due); !next.Equal(due.Add(s.Interval)) && time.Since(due) < mostLate {
			t.Errorf("after %v comes %v", due, next)
		}
	}
	before := time.Now()
	next := s.await(before.Add(-time.Hour))
	if first, last := before.Add(s.Interval-mostLate), time.Now().Add(s.Interval-mostLate); next.Before(first) || next.After(last) {
		t.Errorf("held up for an hour: %v, want %v to %v", next, first, last)
	}
}
