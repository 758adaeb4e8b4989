package pmtu

import (
	"math/bits"
	"time"
)

const (
	// quickest is the least time that an answer is waited for: the peer's scheduler may take
	// as long.
	quickest = 50 * time.Millisecond
	// window is the number of beats that Loss looks back on.
	window = 64
)

// A health is what the answers tell of a path besides its MTU.
type health struct {
	answering bool
	known     bool // an answer came, ever
	last      time.Duration
	rtt       time.Duration // of the last answer
	srtt      time.Duration // smoothed
	rttvar    time.Duration // smoothed deviation
	misses    uint64        // one bit a beat, the last one lowest: set when it was lost
	beats     int           // bits of misses that count
}

// heard smooths the RTT by RFC 6298 section 2.
func (h *health) heard(rtt, now time.Duration) {
	if !h.known {
		h.srtt, h.rttvar = rtt, rtt/2
	} else {
		h.rttvar += ((h.srtt - rtt).Abs() - h.rttvar) / 4
		h.srtt += (rtt - h.srtt) / 8
	}
	h.rtt, h.last, h.known, h.answering = rtt, now, true, true
}

// wait returns how long an answer may take: what the RTT tells, within the timeout, unless
// the path is known to be slower than that.
func (h *health) wait(timeout time.Duration) time.Duration {
	if !h.known {
		return timeout
	}
	w := max(h.srtt+4*h.rttvar, min(quickest, timeout))
	return min(w, max(timeout, 2*h.srtt))
}

// record notes what became of a beat.
func (h *health) record(answered bool) {
	h.misses <<= 1
	if !answered {
		h.misses |= 1
	}
	h.beats = min(h.beats+1, window)
}

// Answering reports whether the peer answers probes of any size. While it does not, MTU is
// only what was true before, or the ceiling if nothing was.
func (s *Search) Answering() bool { return s.path.answering }

// LastAnswer returns when the last answer came; false when none ever did.
func (s *Search) LastAnswer() (time.Duration, bool) { return s.path.last, s.path.known }

// RTT returns the last and the smoothed round-trip time, zero before the first answer.
func (s *Search) RTT() (last, smoothed time.Duration) { return s.path.rtt, s.path.srtt }

// Loss returns how many of the last beats, at most 64, were lost although their size fits:
// those that revealed a smaller MTU are not among them.
func (s *Search) Loss() (lost, of int) { return bits.OnesCount64(s.path.misses), s.path.beats }
