package gate

import (
	"net/netip"
	"sync"
	"time"
)

// What one address may have: streams at once, and new ones in a second after a burst. A node that searches opens a few in a second.
const (
	maxStreams  = 16
	streamRate  = 10 // a second
	streamBurst = 32
	// manySources is at how many addresses those that are idle are forgotten.
	manySources = 4096
)

// sources bounds the streams of each address. An IPv6 address counts with its /64. The zero value is ready.
type sources struct {
	mu sync.Mutex
	of map[netip.Addr]*source
}

type source struct {
	open int
	room float64 // of the burst
	at   time.Time
}

func sourceOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// enter lets one more stream in, or says why not.
func (s *sources) enter(from netip.Addr, now time.Time) *refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	from = sourceOf(from)
	one := s.of[from]
	if one == nil {
		s.forget(now)
		one = &source{room: streamBurst, at: now}
		s.of[from] = one
	}
	one.refill(now)
	switch {
	case one.open >= maxStreams:
		return refused(Connections, "it has %d connections open", one.open)
	case one.room < 1:
		return refused(Connections, "it opens more than %d connections a second", streamRate)
	}
	one.open++
	one.room--
	return nil
}

func (s *sources) leave(from netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.of[sourceOf(from)]; one != nil {
		one.open--
	}
}

func (o *source) refill(now time.Time) {
	o.room = min(streamBurst, o.room+now.Sub(o.at).Seconds()*streamRate)
	o.at = now
}

// forget makes room for one more.
func (s *sources) forget(now time.Time) {
	if s.of == nil {
		s.of = map[netip.Addr]*source{}
	}
	if len(s.of) < manySources {
		return
	}
	for a, one := range s.of {
		if one.refill(now); one.open == 0 && one.room >= streamBurst {
			delete(s.of, a)
		}
	}
}
