package pmtu_test

import (
	"flag"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/pmtu"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

// newRand returns a generator whose seed a failing test prints.
func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("random test: repeat with -seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

const (
	ms = time.Millisecond
	s  = time.Second
)

// A simulation is a Search and a path that answers its probes, on a clock of its own.
type simulation struct {
	t      testing.TB
	r      *rand.Rand
	search *pmtu.Search
	now    time.Duration

	floor   int
	mtu     int // of the path
	refuse  int // the local kernel refuses what is larger; 0 for nothing
	loss    float64
	twice   float64 // answers that come twice
	rtt     time.Duration
	jitter  time.Duration // at most this is added to the RTT
	lag     time.Duration // at most this late is what is due done
	down    bool
	outages func(time.Duration) bool // nothing passes while true

	flying  []answer // in the order of arrival
	sent    int      // probes
	last    uint16   // sequence number of the last one
	shrinks int      // of the published MTU
	grows   int
	late    time.Duration // how long the published MTU has been more than the path's, without a break
	worst   time.Duration // the longest of such times
}

type answer struct {
	at  time.Duration
	seq uint16
}

func simulate(t testing.TB, r *rand.Rand, floor, ceiling, mtu int, rtt time.Duration) *simulation {
	return &simulation{t: t, r: r, search: pmtu.New(pmtu.Config{}, floor, ceiling, 0), floor: floor, mtu: mtu, rtt: rtt}
}

// run lets d pass.
func (m *simulation) run(d time.Duration) {
	m.t.Helper()
	m.until(d, func() bool { return false })
}

// until lets time pass until the condition holds, at most d, and returns how much passed.
func (m *simulation) until(d time.Duration, condition func() bool) time.Duration {
	m.t.Helper()
	begin := m.now
	for !condition() {
		at := m.search.Next()
		if m.lag > 0 {
			at += time.Duration(m.r.Int64N(int64(m.lag)))
		}
		if len(m.flying) > 0 {
			at = min(at, m.flying[0].at)
		}
		if at > begin+d {
			m.pass(begin + d)
			break
		}
		m.pass(max(at, m.now))
		m.step()
	}
	return m.now - begin
}

// pass moves the clock, and measures.
func (m *simulation) pass(to time.Duration) {
	if m.search.MTU() > m.mtu && !m.down {
		m.late += to - m.now
		m.worst = max(m.worst, m.late)
	} else {
		m.late = 0
	}
	m.now = to
}

// step does what is due now.
func (m *simulation) step() {
	m.t.Helper()
	before := m.search.MTU()
	for len(m.flying) > 0 && m.flying[0].at <= m.now {
		m.search.Answered(m.flying[0].seq, m.now)
		m.flying = m.flying[1:]
	}
	if m.search.Next() <= m.now {
		probes := slices.Clone(m.search.Due(m.now))
		if next := m.search.Next(); next <= m.now {
			m.t.Fatalf("%v: Due, and due again at %v", m.now, next)
		}
		for _, p := range probes {
			m.send(p)
		}
	}
	switch after := m.search.MTU(); {
	case after < before:
		m.shrinks++
	case after > before:
		m.grows++
	}
}

func (m *simulation) send(p pmtu.Probe) {
	m.sent, m.last = m.sent+1, p.Seq
	if m.refuse > 0 && p.Size > m.refuse {
		m.search.Refused(p.Seq, m.now)
		return
	}
	if m.down || p.Size > m.mtu || m.r.Float64() < m.loss || m.outages != nil && m.outages(m.now) {
		return
	}
	m.answer(p.Seq)
	if m.r.Float64() < m.twice {
		m.answer(p.Seq)
	}
}

func (m *simulation) answer(seq uint16) {
	a := answer{at: m.now + m.rtt, seq: seq}
	if m.jitter > 0 {
		a.at += time.Duration(m.r.Int64N(int64(m.jitter)))
	}
	i, _ := slices.BinarySearchFunc(m.flying, a.at+1, func(x answer, at time.Duration) int { return int(x.at - at) })
	m.flying = slices.Insert(m.flying, i, a)
}

func (m *simulation) usable() bool { return m.search.MTU() <= m.mtu }
func (m *simulation) exact() bool  { return m.search.MTU() == min(m.mtu, m.search.Ceiling()) }

// wait returns how long the condition takes to hold, which must be within the bound.
func (m *simulation) wait(bound time.Duration, what string, condition func() bool) time.Duration {
	m.t.Helper()
	d := m.until(bound, condition)
	if !condition() {
		m.t.Fatalf("%v: MTU %d of %d (ceiling %d, RTT %v): not %s after %v", m.now, m.search.MTU(), m.mtu, m.search.Ceiling(), m.rtt, what, d)
	}
	return d
}
