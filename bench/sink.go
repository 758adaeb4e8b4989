package bench

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

const (
	sinkBatch = 64                     // messages of one recvmmsg
	sinkPoll  = 10 * time.Millisecond  // SO_RCVTIMEO
	quiet     = 150 * time.Millisecond // how long nothing has to come, after the last was sent, for the rest to be lost
)

// sink receives and judges one trial's datagrams. Not for more than one thread but for sent and failed.
type sink struct {
	stream Stream
	trial  uint32
	fd     int
	batch  *batch
	begin  time.Time
	sent   *atomic.Uint64 // one more than the number sent, once that is known

	seen    []uint64 // bit by number
	highest []uint64 // by flow: one more than the highest number that came
	counts  Counts
	latency *hdrhistogram.Histogram // nil unless measured
}

// Counts are of datagrams as they arrived.
type Counts struct {
	Received   uint64 `json:"received"` // different ones
	Duplicates uint64 `json:"duplicates"`
	Reordered  uint64 `json:"reordered"` // of the different ones, those after one of the same flow with a higher number
	Foreign    uint64 `json:"foreign"`   // of another trial, cut, or not of the generator at all
	Bytes      uint64 `json:"bytes"`     // of payload, of the different ones
}

func newSink(s Stream, fd int) *sink {
	k := &sink{stream: s, fd: fd, batch: newBatch(sinkBatch, s.largest()+1, false),
		seen: make([]uint64, s.most()/64+1), highest: make([]uint64, s.Flows)}
	if s.Latency {
		k.latency = newHistogram()
	}
	return k
}

// run receives until all has come or nothing does any more.
func (k *sink) run() error {
	last := time.Now()
	for {
		n, errno := k.batch.receive(k.fd)
		switch errno {
		case 0:
			last = time.Now()
			k.take(n, last.Sub(k.begin))
		case unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED:
		default:
			return fmt.Errorf("receive: %w", errno)
		}
		if sent := k.sent.Load(); sent > 0 && (k.counts.Received >= sent-1 || time.Since(last) > quiet) {
			return nil
		}
	}
}

// take judges the n messages that one call received, at a time since the begin.
func (k *sink) take(n int, now time.Duration) {
	for i := range n {
		k.judge(k.batch.received(i), now)
	}
}

func (k *sink) judge(b []byte, now time.Duration) {
	if len(b) < streamHeader {
		k.counts.Foreign++
		return
	}
	s := stampOf(b)
	if s.trial != k.trial || int(s.flow) >= len(k.highest) || s.number >= uint64(len(k.seen))*64 ||
		len(b) != k.stream.Sizes[s.number%uint64(len(k.stream.Sizes))] {
		k.counts.Foreign++
		return
	}
	word, bit := &k.seen[s.number/64], uint64(1)<<(s.number%64)
	if *word&bit != 0 {
		k.counts.Duplicates++
		return
	}
	*word |= bit
	k.counts.Received++
	k.counts.Bytes += uint64(len(b))
	if s.number < k.highest[s.flow] {
		k.counts.Reordered++
	} else {
		k.highest[s.flow] = s.number + 1
	}
	if k.latency != nil {
		k.latency.RecordValue(int64(min(now-s.intended, maxLatency)))
	}
}
