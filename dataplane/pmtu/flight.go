package pmtu

import "time"

const (
	// flightCount is the number of probes remembered: twelve rounds of the largest kind.
	flightCount = 256
	// flightAge is how late an answer may come and still tell of the path as it is.
	flightAge = 5 * time.Second
)

// A flight is a probe that was sent.
type flight struct {
	seq  uint16
	open bool // neither answered nor refused
	size int
	sent time.Duration
}

// flights remembers the last probes by their sequence numbers, which count on for ever and
// wrap. The zero value is ready.
type flights struct {
	ring [flightCount]flight
	next uint16
}

// add remembers a new probe and returns its sequence number.
func (fs *flights) add(size int, now time.Duration) uint16 {
	seq := fs.next
	fs.next++
	fs.ring[seq%flightCount] = flight{seq: seq, open: true, size: size, sent: now}
	return seq
}

// land returns the probe of that number and closes it; nil when there is none, it is closed
// already, or too old to count.
func (fs *flights) land(seq uint16, now time.Duration) *flight {
	f := &fs.ring[seq%flightCount]
	if !f.open || f.seq != seq || now-f.sent > flightAge {
		return nil
	}
	f.open = false
	return f
}
