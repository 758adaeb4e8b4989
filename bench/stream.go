package bench

import (
	"encoding/binary"
	"fmt"
	"time"
)

const (
	// streamHeader is at the start of each payload: trial and flow, 4 bytes each, then number and time, 8 bytes each.
	streamHeader = 24
	// MaxFlows is the most that a Stream may have: each is a socket.
	MaxFlows    = 4096
	maxDatagram = 65507 // bytes of payload over IPv4
	maxSegments = 63    // in one UDP_SEGMENT send: kernels before 6.9 take 64 and count the header
)

// IMIX is the cycle of payload sizes, bytes, that stands for traffic of many kinds: seven small, four middling, one that fills
// the MTU of pods (the simple IMIX of RFC 6985's introduction, cut down to an MTU of 1,400).
var IMIX = []int{64, 548, 64, 64, 548, 64, 1372, 64, 548, 64, 548, 64}

// Stream says what a UDP trial sends. Zero values: Sizes 64, Flows 1, Batch 32 with one flow and 4 with more, Segments 1.
type Stream struct {
	Flows    int     // source ports, 1 to 4,096, that take turns by the batch
	Sizes    []int   // of the payloads, bytes, 24 to 65,507, in turn
	Rate     float64 // datagrams a second, by intended time whatever came before; 0 for as fast as the path takes them
	Duration time.Duration
	Batch    int  // datagrams of one sendmmsg
	Segments int  // datagrams in one message of it, with UDP_SEGMENT; 1 for none. Needs one size
	All      bool // goes on after Duration until all that fell due in it are sent
	Latency  bool // one by one at their intended times, each one's delay recorded
	Echo     bool // the server sends each back, and the client judges: Latency is then that of the round trip
}

func (s *Stream) normalize() error {
	if len(s.Sizes) == 0 {
		s.Sizes = []int{64}
	}
	s.Flows, s.Segments = max(s.Flows, 1), max(s.Segments, 1)
	if s.Batch <= 0 {
		s.Batch = 32
		if s.Flows > 1 {
			s.Batch = 4
		}
	}
	if s.Latency {
		s.Batch, s.Segments, s.All = 1, 1, true
	}
	return s.check()
}

func (s *Stream) check() error {
	for _, size := range s.Sizes {
		if size < streamHeader || size > maxDatagram {
			return fmt.Errorf("stream: %d bytes: must be %d to %d", size, streamHeader, maxDatagram)
		}
	}
	switch {
	case s.Flows > MaxFlows:
		return fmt.Errorf("stream: %d flows: must be 1 to %d", s.Flows, MaxFlows)
	case s.Batch > 1024:
		return fmt.Errorf("stream: %d messages at a time: must be 1 to 1024", s.Batch)
	case s.Segments > maxSegments:
		return fmt.Errorf("stream: %d segments: must be 1 to %d", s.Segments, maxSegments)
	case s.Segments > 1 && (len(s.Sizes) > 1 || s.Segments*s.Sizes[0] > maxDatagram):
		return fmt.Errorf("stream: %d segments of %v bytes: one size, and %d bytes in all", s.Segments, s.Sizes, maxDatagram)
	case s.Echo && s.Flows > 1:
		return fmt.Errorf("stream: %d flows echoed: must be 1", s.Flows)
	case s.Rate < 0 || s.Duration <= 0:
		return fmt.Errorf("stream: rate %v for %v: must be positive", s.Rate, s.Duration)
	}
	return nil
}

// most is how many datagrams a trial of s can send; of an unpaced one, more than any path takes.
func (s *Stream) most() uint64 {
	const unpaced = 16e6 // a second
	if s.Rate > 0 {
		return uint64(s.Rate*s.Duration.Seconds() + 0.5)
	}
	return uint64(unpaced * s.Duration.Seconds())
}

func (s *Stream) largest() int {
	n := 0
	for _, size := range s.Sizes {
		n = max(n, size)
	}
	return n
}

// stamp is what a payload begins with.
type stamp struct {
	trial, flow uint32
	number      uint64        // over all flows, from 0
	intended    time.Duration // when it was to be sent, since the trial began
}

func (s stamp) put(b []byte) {
	binary.BigEndian.PutUint32(b, s.trial)
	binary.BigEndian.PutUint32(b[4:], s.flow)
	binary.BigEndian.PutUint64(b[8:], s.number)
	binary.BigEndian.PutUint64(b[16:], uint64(s.intended))
}

// stampOf is for payloads of at least streamHeader bytes.
func stampOf(b []byte) stamp {
	return stamp{trial: binary.BigEndian.Uint32(b), flow: binary.BigEndian.Uint32(b[4:]), number: binary.BigEndian.Uint64(b[8:]),
		intended: time.Duration(binary.BigEndian.Uint64(b[16:]))}
}
