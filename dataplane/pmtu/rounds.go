package pmtu

import "time"

// start begins the round that is due, if one is. A beat comes before a step of the search:
// it is what notices that the path got worse meanwhile.
func (s *Search) start(now time.Duration) {
	switch {
	case now >= s.nextBeat:
		s.startBeat(now)
	case s.searching:
		s.startStep(now)
	case s.wantsGrowth() && now >= s.nextGrow:
		s.searching, s.above = true, s.ceiling+1
		s.startGrow(now)
	}
}

// finish draws the conclusion of the round.
func (s *Search) finish(now time.Duration) {
	k := s.round.kind
	s.round.kind, s.resume = none, now
	switch k {
	case beat:
		s.finishBeat(now)
	case doubt:
		s.finishDoubt(now)
	case step:
		if s.mtu < s.round.size {
			s.above = min(s.above, s.round.size)
		}
	case grow:
		s.finishGrow(now)
	}
}

// startBeat probes the size of the MTU; on a path that answered nothing, the lowest too.
func (s *Search) startBeat(now time.Duration) {
	s.nextBeat = now + s.cfg.Interval
	s.round.begin(beat, s.mtu, s.mtu, now, s.path.wait(s.cfg.Timeout))
	s.round.add(s.mtu)
	if !s.path.answering && s.lowest() < s.mtu {
		s.round.add(s.lowest())
	}
	s.round.split()
}

func (s *Search) finishBeat(now time.Duration) {
	pass, _ := s.round.best()
	switch {
	case pass >= s.round.size:
		s.path.record(true)
	case s.path.answering:
		s.startDoubt(now)
	default:
		s.path.record(false)
	}
}

// startDoubt probes the MTU over and over, and the ladder below it.
func (s *Search) startDoubt(now time.Duration) {
	r := &s.round
	r.begin(doubt, s.mtu, s.mtu, now, s.path.wait(s.cfg.Timeout))
	s.doubted = now
	r.add(s.mtu)
	for i, size := range ladder {
		if size < s.mtu && size > s.lowest() {
			r.add(size)
		}
		if i == len(ladder)/2 {
			r.add(s.mtu)
		}
	}
	if s.lowest() < s.mtu {
		r.add(s.lowest())
	}
	r.split()
	for range doubtCopies - 2 {
		r.add(s.mtu)
	}
	if s.lowest() < s.mtu {
		r.add(s.lowest())
	}
}

// finishDoubt shrinks the MTU iff nothing of its size came back and something smaller did.
func (s *Search) finishDoubt(now time.Duration) {
	pass, fail := s.round.best()
	switch {
	case pass == 0 && !s.round.cleared:
		s.path.answering = false
		s.path.record(false)
	case pass >= s.round.size || s.round.cleared:
		s.path.record(s.round.cleared)
	default:
		s.mtu, s.above, s.searching = pass, fail, true
	}
}

// startStep probes the middle of what is left of the search.
func (s *Search) startStep(now time.Duration) {
	if s.above-s.mtu <= 1 {
		s.startGrow(now)
		return
	}
	middle := (s.mtu + s.above) / 2
	s.round.begin(step, middle, s.mtu, now, s.path.wait(s.cfg.Timeout))
	s.round.add(middle)
	s.round.split()
	s.round.add(middle)
}

// startGrow probes the ceiling and one byte more than the MTU: when that byte fails, all
// sizes above do. It ends every search too, since a step may have been fooled by loss.
func (s *Search) startGrow(now time.Duration) {
	if s.mtu >= s.ceiling {
		s.searching = false
		return
	}
	s.round.begin(grow, s.ceiling, s.mtu, now, s.path.wait(s.cfg.Timeout))
	for range 2 {
		s.round.add(s.ceiling)
		s.round.add(s.mtu + 1)
		if s.round.burst == 0 {
			s.round.split()
		}
	}
	s.round.add(s.mtu + 1)
}

func (s *Search) finishGrow(now time.Duration) {
	switch {
	case s.mtu >= s.ceiling:
		s.searching = false
	case s.mtu > s.round.base:
		s.above = s.round.size
	default:
		s.searching, s.nextGrow = false, now+s.cfg.Growth
	}
}
