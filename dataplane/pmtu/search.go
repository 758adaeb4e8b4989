// Package pmtu owns the search for the MTU of one path: the largest inner IP packet that
// reaches a peer whole. It follows RFC 8899 (datagram packetization layer PMTU discovery)
// in trusting only its own probes: no ICMP message moves the result.
//
// It is a state machine: it knows no socket, no goroutine and no clock. Sizes are bytes of
// the inner IP packet, times are monotonic, from any one zero.
package pmtu

import "time"

// Config is the pace of a Search. A zero field means its default.
type Config struct {
	// Interval between two probes of a path at rest; 500 ms.
	Interval time.Duration
	// Timeout is how long an answer is waited for when the RTT is unknown, and at most on a
	// path that is faster; 250 ms.
	Timeout time.Duration
	// Growth is the time between two attempts to find more than the path passed so far; 10 s.
	Growth time.Duration
}

func (c Config) withDefaults() Config {
	pick := func(d *time.Duration, preset time.Duration) {
		if *d <= 0 {
			*d = preset
		}
	}
	pick(&c.Interval, 500*time.Millisecond)
	pick(&c.Timeout, 250*time.Millisecond)
	pick(&c.Growth, 10*time.Second)
	return c
}

// A Probe is an echo request to be sent with DF on the outer header.
type Probe struct {
	Seq  uint16
	Size int // of the inner IP packet, bytes
}

// A Search finds and watches the MTU of the path to one peer.
//
// At rest one probe of the MTU's size goes out per interval. One that is lost raises a
// doubt: more of them go out, together with a ladder of smaller sizes. The MTU shrinks only
// when all of them are lost and a smaller one is answered; then rounds of bisection find the
// exact byte. What nobody answers proves nothing and changes nothing.
//
// A Search is used by one goroutine. The zero value is of no use: see New.
type Search struct {
	cfg            Config
	floor, ceiling int
	mtu            int

	searching bool
	above     int           // the smallest size believed too big, wrongly if the MTU reached it; valid iff searching
	resume    time.Duration // when the search left off; valid iff searching
	doubted   time.Duration // when the last doubt began: what was sent before proves no size above the MTU
	nextBeat  time.Duration // when the size of the MTU is probed again
	nextGrow  time.Duration // when more is tried again; valid iff mtu < ceiling

	round   round
	flights flights
	path    health
	probes  []Probe // what Due returned last
}

// New returns a Search that believes in the ceiling until probes say otherwise. The floor is
// the smallest size worth trying: what any path of the address family must pass. A ceiling
// below it takes its place.
func New(cfg Config, floor, ceiling int, now time.Duration) *Search {
	return &Search{
		cfg: cfg.withDefaults(), floor: floor, ceiling: ceiling, mtu: ceiling,
		nextBeat: now, nextGrow: now, probes: make([]Probe, 0, maxProbes),
	}
}

// MTU returns the largest inner IP packet that the path is believed to pass, bytes: never
// above the ceiling, and never below the floor unless the ceiling is.
func (s *Search) MTU() int { return s.mtu }

// Ceiling returns the bound from above, bytes.
func (s *Search) Ceiling() int { return s.ceiling }

// Searching reports whether the MTU is not known to the byte: it may grow within the second.
func (s *Search) Searching() bool { return s.searching || s.round.kind == doubt }

// lowest is the smallest size ever probed.
func (s *Search) lowest() int { return min(s.floor, s.ceiling) }

// SetCeiling changes the bound from above. A lower one takes effect at once, a higher one is
// probed at once.
func (s *Search) SetCeiling(ceiling int, now time.Duration) {
	switch {
	case ceiling > s.ceiling:
		s.nextGrow = now
		if s.round.kind == grow {
			s.searching, s.round.kind = false, none
		}
	case ceiling < s.ceiling:
		s.mtu = min(s.mtu, ceiling)
		s.searching, s.round.kind, s.nextBeat = false, none, now
	}
	s.ceiling = ceiling
}

// SetInterval changes the time between two probes at rest. A shorter one takes effect at once.
func (s *Search) SetInterval(interval, now time.Duration) {
	if interval < s.cfg.Interval {
		s.nextBeat = min(s.nextBeat, now+interval)
	}
	s.cfg.Interval = interval
}

// Next returns when Due has something to do. It may lie in the past.
func (s *Search) Next() time.Duration {
	switch {
	case s.round.kind != none:
		return s.round.next()
	case s.searching:
		return min(s.nextBeat, s.resume)
	case s.wantsGrowth():
		return min(s.nextBeat, s.nextGrow)
	}
	return s.nextBeat
}

// wantsGrowth reports whether nextGrow is a time to act at. On a path that answers nothing
// there is no use in trying more.
func (s *Search) wantsGrowth() bool { return s.path.answering && s.mtu < s.ceiling }

// Due returns the probes to be sent now. They are valid until the next call. Answers that
// came by now are to be told first: what is not answered in time is taken for lost.
func (s *Search) Due(now time.Duration) []Probe {
	if s.round.kind != none && s.round.over(now) {
		s.finish(now)
	}
	if s.round.kind == none {
		s.start(now)
	}
	s.probes = s.probes[:0]
	for s.round.sendable(now) {
		t := s.round.send(now)
		t.seq = s.flights.add(t.size, now)
		s.probes = append(s.probes, Probe{Seq: t.seq, Size: t.size})
	}
	return s.probes
}

// Answered says that the answer to a probe came, and reports whether it counts. Late ones do too; unknown, outdated and
// duplicate ones do nothing.
func (s *Search) Answered(seq uint16, now time.Duration) bool {
	f := s.flights.land(seq, now)
	if f == nil {
		return false
	}
	s.path.heard(now-f.sent, now)
	if f.size > s.mtu && f.size <= s.ceiling && f.sent >= s.doubted {
		s.mtu = f.size
	}
	if s.round.answered(seq, f.size) {
		s.finish(now)
	}
	return true
}

// Refused says that the local kernel refused to send a probe as too long (EMSGSIZE): it
// counts as lost, at once.
func (s *Search) Refused(seq uint16, now time.Duration) {
	if s.flights.land(seq, now) != nil && s.round.refused(seq) {
		s.finish(now)
	}
}
