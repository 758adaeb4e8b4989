package fragment_test

import (
	"slices"
	"time"

	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// model is the Tracker by the book: lists of parts, searched from end to end.
type model struct {
	limits  fragment.Limits
	entries []*modelEntry // the one used last is the last
	waiting []*modelHeld  // in the order of arrival
	lost    []*modelHeld
	out     int // frames returned and not yet recycled
	current *modelEntry
}

type modelEntry struct {
	name     part // without place
	first    time.Duration
	complete time.Duration // when the last missing part came; 0 while one is missing
	parts    []part
	spoilt   bool
	decided  bool
	verdict  packet.Verdict
}

type modelHeld struct {
	entry    *modelEntry
	bytes    []byte
	part     part
	mark     byte
	deadline time.Duration
	verdict  packet.Verdict

	handedOver bool // from another Tracker
}

func nameOf(p part) part {
	n := part{v6: p.v6, host: p.host, id: p.id, proto: p.proto}
	if p.v6 {
		n.proto = 0
	}
	return n
}

// judge returns what the Tracker must say; wanted asks whether there is room to hold.
func (m *model) judge(p part, mark byte, now time.Duration, room bool) (fragment.Action, packet.Verdict) {
	m.current = nil
	if p.offset == 0 && !p.more {
		return fragment.Decide, packet.None
	}
	if p.length == 0 || p.more && p.length%8 != 0 {
		return fragment.Drop, packet.DropIPHeader
	}
	e := m.entry(nameOf(p), p.offset == 0, now)
	m.current = e
	if !e.spoilt && e.has(p) && !e.tooLong(p) {
		return fragment.Drop, packet.DropFragmentOverlap
	}
	if e.spoilt || e.tooLong(p) || e.conflicts(p) {
		e.spoilt = true
		m.doom(e, packet.DropFragmentOverlap)
		return fragment.Drop, packet.DropFragmentOverlap
	}
	if p.offset > 0 && !e.decided && !room {
		return fragment.Drop, packet.DropFragmentMemory
	}
	e.parts = append(e.parts, p)
	if e.whole() {
		e.complete = now
	}
	switch {
	case p.offset == 0:
		return fragment.Decide, packet.None
	case !e.decided:
		m.waiting = append(m.waiting, &modelHeld{entry: e, part: p, mark: mark, bytes: p.bytes(mark), deadline: now + m.limits.Wait})
		return fragment.Held, packet.None
	case e.verdict == packet.None || e.verdict.Sent():
		return fragment.Pass, packet.None
	}
	return fragment.Drop, e.verdict
}

func (m *model) entry(name part, first bool, now time.Duration) *modelEntry {
	i := slices.IndexFunc(m.entries, func(e *modelEntry) bool { return e.name == name })
	var e *modelEntry
	if i >= 0 {
		e = m.entries[i]
		m.entries = slices.Delete(m.entries, i, i+1)
		if now >= e.first+30*time.Second || e.complete > 0 && now >= e.complete+time.Second || first && e.complete > 0 && !e.spoilt {
			m.doom(e, packet.DropFragmentOrphan)
			e = nil
		}
	} else if len(m.entries) == m.limits.Datagrams {
		m.doom(m.entries[0], packet.DropFragmentMemory)
		m.entries = m.entries[1:]
	}
	if e == nil {
		e = &modelEntry{name: name, first: now}
	}
	m.entries = append(m.entries, e)
	return e
}

func (e *modelEntry) has(p part) bool {
	return slices.ContainsFunc(e.parts, func(q part) bool {
		return q.offset == p.offset && q.length == p.length && q.more == p.more
	})
}

func (e *modelEntry) tooLong(p part) bool {
	if p.v6 {
		return v6Chain+p.end() > 65535
	}
	return 20+p.end() > 65535
}

func (e *modelEntry) conflicts(p part) bool {
	for _, q := range e.parts {
		overlap := p.offset < q.end() && q.offset < p.end()
		if overlap || !p.more && q.end() > p.end() || !q.more && p.end() > q.end() || !p.more && !q.more {
			return true
		}
	}
	return false
}

func (e *modelEntry) whole() bool {
	total, sum := -1, 0
	for _, q := range e.parts {
		sum += q.length
		if !q.more {
			total = q.end()
		}
	}
	return sum == total
}

func (m *model) doom(e *modelEntry, v packet.Verdict) {
	for _, h := range m.take(func(h *modelHeld) bool { return h.entry == e }) {
		h.verdict = v
		m.lost = append(m.lost, h)
	}
}

// take removes those that match from the waiting ones.
func (m *model) take(match func(*modelHeld) bool) (taken []*modelHeld) {
	var rest []*modelHeld
	for _, h := range m.waiting {
		if match(h) {
			taken = append(taken, h)
		} else {
			rest = append(rest, h)
		}
	}
	m.waiting = rest
	return taken
}

func (m *model) decide(v packet.Verdict) []*modelHeld {
	e := m.current
	if e == nil || e.spoilt || e.decided {
		return nil
	}
	e.decided, e.verdict = true, v
	released := m.take(func(h *modelHeld) bool { return h.entry == e })
	m.out += len(released)
	return released
}

func (m *model) expire(now time.Duration) []*modelHeld {
	for _, h := range m.take(func(h *modelHeld) bool { return now >= h.deadline }) {
		h.verdict = packet.DropFragmentOrphan
		m.lost = append(m.lost, h)
	}
	lost := m.lost
	m.lost, m.out = nil, m.out+len(lost)
	return lost
}

func (m *model) deadline() (time.Duration, bool) {
	switch {
	case len(m.lost) > 0:
		return 0, true
	case len(m.waiting) > 0:
		return m.waiting[0].deadline, true
	}
	return 0, false
}
