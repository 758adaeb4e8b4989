package pmtu_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/pmtu"
)

// randomPath returns a settled simulation with sizes and an RTT drawn at random.
func randomPath(t *testing.T, r *rand.Rand, rtt time.Duration) *simulation {
	t.Helper()
	floor := []int{576, 1280}[r.IntN(2)]
	ceiling := floor + 1 + r.IntN(9000-floor)
	m := simulate(t, r, floor, ceiling, floor+r.IntN(ceiling-floor+1), time.Duration(r.Int64N(int64(rtt))))
	m.jitter = m.rtt / 10
	m.wait(5*s, "exact", m.exact)
	return m
}

// median and the largest, for the log.
func quantiles(d []time.Duration) (time.Duration, time.Duration) {
	slices.Sort(d)
	return d[len(d)/2], d[len(d)-1]
}

// A path that shrinks without a word: a value that fits within 1 s, the exact one soon after.
func TestShrink(t *testing.T) {
	r := newRand(t)
	var usable, exact []time.Duration
	for range 400 {
		m := randomPath(t, r, 150*ms)
		m.run(time.Duration(r.Int64N(int64(15 * s))))
		m.mtu = m.floor + r.IntN(m.search.MTU()-m.floor+1)
		usable = append(usable, m.wait(s, "usable", m.usable))
		exact = append(exact, usable[len(usable)-1]+m.wait(5*s, "exact", m.exact))
		shrinks := m.shrinks
		if m.run(60 * s); !m.exact() || m.shrinks != shrinks {
			t.Fatalf("MTU %d of %d a minute later, %d shrinks", m.search.MTU(), m.mtu, m.shrinks-shrinks)
		}
		if m.worst > s {
			t.Fatalf("above the path's MTU for %v", m.worst)
		}
	}
	half, most := quantiles(usable)
	halfExact, mostExact := quantiles(exact)
	t.Logf("usable: median %v, at most %v; exact: median %v, at most %v", half, most, halfExact, mostExact)
}

// A path that shrinks again while the exact value is searched for.
func TestShrinkTwice(t *testing.T) {
	r := newRand(t)
	for range 200 {
		m := simulate(t, r, 576, 9000, 9000, 100*ms)
		m.run(2*s + time.Duration(r.Int64N(int64(s))))
		m.mtu = 1000 + r.IntN(8000)
		m.wait(s, "usable", m.usable)
		m.run(time.Duration(r.Int64N(int64(s))))
		m.mtu = 576 + r.IntN(m.search.MTU()-576)
		m.wait(s, "usable", m.usable)
		m.wait(5*s, "exact", m.exact)
	}
}

// A path that grows is found within the growth interval, to the byte.
func TestGrowth(t *testing.T) {
	r := newRand(t)
	for range 200 {
		m := randomPath(t, r, 150*ms)
		m.run(time.Duration(r.Int64N(int64(15 * s))))
		m.mtu += r.IntN(9000)
		m.wait(15*s, "exact", m.exact)
		shrinks := m.shrinks
		if m.run(60 * s); !m.exact() || m.shrinks != shrinks {
			t.Fatalf("MTU %d of %d a minute later, %d shrinks", m.search.MTU(), m.mtu, m.shrinks-shrinks)
		}
	}
}

func TestSetCeiling(t *testing.T) {
	r := newRand(t)
	for range 200 {
		m := randomPath(t, r, 50*ms)
		m.mtu = 9000
		m.wait(15*s, "exact", m.exact)
		m.run(time.Duration(r.Int64N(int64(15 * s))))
		old := m.search.Ceiling()
		m.search.SetCeiling(old-1-r.IntN(100), m.now)
		if m.search.MTU() != m.search.Ceiling() {
			t.Fatalf("MTU %d above a ceiling of %d", m.search.MTU(), m.search.Ceiling())
		}
		m.run(time.Duration(r.Int64N(int64(15 * s))))
		m.search.SetCeiling(old+r.IntN(9000), m.now)
		m.wait(2*s, "exact", m.exact)
		m.search.SetCeiling(300, m.now)
		m.run(2 * s)
		if m.search.MTU() != 300 || !m.search.Answering() {
			t.Fatalf("MTU %d below a floor that the ceiling undercuts, answering %v", m.search.MTU(), m.search.Answering())
		}
	}
}

// A higher ceiling is tried at once, though growth was just tried, or is being tried.
func TestRaiseCeiling(t *testing.T) {
	for _, during := range []bool{false, true} {
		m := simulate(t, newRand(t), 576, 1450, 1400, 100*ms)
		m.wait(5*s, "exact", m.exact)
		m.wait(s, "at rest", func() bool { return !m.search.Searching() })
		if during {
			m.wait(11*s, "growing", m.search.Searching)
			m.run(20 * ms) // so that all of it is lost
		}
		m.mtu = 9000
		m.search.SetCeiling(2000, m.now)
		m.wait(s, "exact", m.exact)
	}
}

// Random loss must not move the MTU: at a loss of 10 % a false shrink takes 6 probes lost in a row, once in
// 140 hours; two in one hour are beyond chance. The loss that is reported is the path's.
func TestLossDoesNotFlap(t *testing.T) {
	r := newRand(t)
	for _, loss := range []float64{0.01, 0.05, 0.1} {
		for _, mtu := range []int{1450, 1333} {
			m := simulate(t, r, 576, 1450, 1450, 10*ms)
			m.run(5 * s)
			m.mtu = mtu
			m.wait(s, "usable", m.usable)
			m.wait(5*s, "exact", m.exact)
			m.loss, m.shrinks, m.grows, m.sent = loss, 0, 0, 0
			lost, of := 0, 0
			for range 112 {
				m.run(32 * s)
				l, n := m.search.Loss()
				lost, of = lost+l, of+n
			}
			t.Logf("loss %v, MTU %d: %d shrinks, %d probes in an hour, %d of %d lost", loss, mtu, m.shrinks, m.sent, lost, of)
			if m.shrinks > 1 || m.grows > 20 {
				t.Errorf("loss %v, MTU %d: %d shrinks, %d growths", loss, mtu, m.shrinks, m.grows)
			}
			if got := float64(lost) / float64(of); got < loss*0.7 || got > loss*1.3 {
				t.Errorf("a loss of %v is reported as %v", loss, got)
			}
		}
	}
}

// A shrink under loss is found as fast, and the exact value at the latest with the next
// attempts to grow.
func TestShrinkUnderLoss(t *testing.T) {
	r := newRand(t)
	var usable, exact []time.Duration
	slow := 0 // when a probe of the floor, sent twice, is all that fits, and both are lost: 1 %
	for i := range 600 {
		m := simulate(t, r, 576, 1450, 1450, 20*ms)
		m.loss, m.twice, m.jitter = 0.1, 0.1, 5*ms
		m.run(10 * s)
		m.mtu = 576 + r.IntN([]int{1450 - 576, 200}[i%2])
		usable = append(usable, m.wait(4*s, "usable", m.usable))
		if usable[len(usable)-1] > s {
			slow++
		}
		exact = append(exact, usable[len(usable)-1]+m.wait(40*s, "exact", m.exact))
	}
	half, most := quantiles(usable)
	halfExact, mostExact := quantiles(exact)
	t.Logf("usable: median %v, at most %v, %d above 1 s; exact: median %v, at most %v", half, most, slow, halfExact, mostExact)
	if slow > 15 {
		t.Errorf("%d of %d above 1 s", slow, len(usable))
	}
}

// Outages of the whole path, of any length and number, say nothing about its MTU.
func TestOutages(t *testing.T) {
	r := newRand(t)
	for range 20 {
		m := simulate(t, r, 576, 1450, 1450, time.Duration(1+r.Int64N(int64(100*ms))))
		length, period := time.Duration(1+r.Int64N(int64(400*ms))), time.Duration(1+r.Int64N(int64(3*s)))
		m.outages = func(now time.Duration) bool { return now%(length+period) < length }
		if m.run(600 * s); m.shrinks > 0 {
			t.Errorf("%d shrinks by outages of %v every %v", m.shrinks, length, length+period)
		}
	}
}

// A path whose RTT is above the timeout, or jumps, keeps its MTU.
func TestSlowPath(t *testing.T) {
	r := newRand(t)
	for range 50 {
		m := simulate(t, r, 576, 1450, 1450, time.Duration(r.Int64N(int64(s))))
		m.jitter = 1 + m.rtt/2
		m.run(60 * s)
		if m.shrinks > 0 || !m.search.Answering() {
			t.Errorf("RTT %v: %d shrinks, answering %v", m.rtt, m.shrinks, m.search.Answering())
		}
		m.rtt, m.jitter = time.Duration(r.Int64N(int64(s))), 0
		m.run(60 * s)
		if m.shrinks > 0 || !m.search.Answering() {
			t.Errorf("RTT %v: %d shrinks, answering %v", m.rtt, m.shrinks, m.search.Answering())
		}
		if last, smooth := m.search.RTT(); last != m.rtt || (smooth-m.rtt).Abs() > m.rtt/10 {
			t.Errorf("RTT %v is reported as %v, smoothed %v", m.rtt, last, smooth)
		}
		m.sent = 0
		if m.run(60 * s); m.sent > 121 {
			t.Errorf("RTT %v: %d probes in 120 intervals", m.rtt, m.sent)
		}
	}
}

// A path that answers nothing keeps its MTU and says so; at most two probes per interval.
func TestDown(t *testing.T) {
	m := simulate(t, newRand(t), 576, 1450, 1400, 10*ms)
	m.down = true
	m.run(60 * s)
	if _, ever := m.search.LastAnswer(); ever || m.search.Answering() || m.search.MTU() != 1450 || m.sent > 2*121 {
		t.Fatalf("MTU %d, answering %v, ever %v, %d probes", m.search.MTU(), m.search.Answering(), ever, m.sent)
	}
	m.down = false
	m.wait(s, "usable", m.usable)
	m.wait(5*s, "exact", m.exact)
	m.run(10 * s)
	m.down, m.sent = true, 0
	m.wait(s+250*ms, "silent", func() bool { return !m.search.Answering() })
	went := m.now
	m.run(60 * s)
	if last, ever := m.search.LastAnswer(); !ever || last > went || last < went-2*s || m.search.MTU() != 1400 || m.sent > 2*121+30 {
		t.Fatalf("MTU %d, last answer %v, silent at %v, %d probes", m.search.MTU(), last, went, m.sent)
	}
	if lost, of := m.search.Loss(); lost != of || of != 64 {
		t.Errorf("%d of %d lost", lost, of)
	}
}

// At rest one probe per interval, and three more each time growth is tried.
func TestIdleCost(t *testing.T) {
	m := simulate(t, newRand(t), 576, 1450, 1450, 5*ms)
	m.run(10 * s)
	m.sent = 0
	if m.run(100 * s); m.sent != 200 {
		t.Errorf("%d probes in 200 intervals", m.sent)
	}
	m.mtu = 1400
	m.run(20 * s)
	m.sent = 0
	if m.run(100 * s); m.sent < 200 || m.sent > 200+5*11 {
		t.Errorf("%d probes in 200 intervals below the ceiling", m.sent)
	}
}

// One lost probe costs one burst, on a path that is faster than the time between two.
func TestOneLost(t *testing.T) {
	m := simulate(t, newRand(t), 576, 1450, 1450, 2*ms)
	m.run(10*s + 10*ms)
	m.down, m.sent = true, 0
	m.wait(s, "probed", func() bool { return m.sent > 0 })
	m.down, m.sent = false, 0
	m.run(400 * ms)
	if lost, _ := m.search.Loss(); lost != 1 || m.shrinks > 0 || m.sent > 11 {
		t.Errorf("%d lost, %d shrinks, %d probes", lost, m.shrinks, m.sent)
	}
}

// A caller who is late has no more than late results.
func TestLateCaller(t *testing.T) {
	r := newRand(t)
	for range 20 {
		m := simulate(t, r, 576, 1450, 1450, 5*ms)
		m.lag = 600 * ms
		m.run(60 * s)
		if m.shrinks > 0 || !m.search.Answering() {
			t.Fatalf("%d shrinks, answering %v", m.shrinks, m.search.Answering())
		}
		m.mtu = 1300
		m.wait(5*s, "usable", m.usable)
		m.wait(20*s, "exact", m.exact)
	}
}

// doubtful returns a Search in doubt at 1450, the probe that is missed, and those that went
// out together since.
func doubtful(t *testing.T) (search *pmtu.Search, beat pmtu.Probe, ladder []pmtu.Probe, now time.Duration) {
	t.Helper()
	search = pmtu.New(pmtu.Config{}, 576, 1450, 0)
	search.Answered(search.Due(0)[0].Seq, 10*ms)
	beat = search.Due(500 * ms)[0]
	now = 550 * ms
	if ladder = slices.Clone(search.Due(now)); len(ladder) < 5 || beat.Size != 1450 {
		t.Fatalf("beat %v, ladder %v", beat, ladder)
	}
	return search, beat, ladder, now
}

// The answer to the probe that is missed ends the doubt, though it is late: nothing was lost.
func TestLateAnswer(t *testing.T) {
	search, beat, ladder, now := doubtful(t)
	for _, p := range ladder {
		if p.Size < 1450 {
			search.Answered(p.Seq, now+10*ms)
		}
	}
	search.Answered(beat.Seq, now+30*ms)
	search.Due(now + 400*ms)
	if lost, of := search.Loss(); search.MTU() != 1450 || lost != 0 || of != 2 {
		t.Errorf("MTU %d, %d of %d lost", search.MTU(), lost, of)
	}
}

// An answer from before the doubt says nothing of the path since: it may have shrunk meanwhile. One from within does.
func TestAnswerAfterShrink(t *testing.T) {
	for _, within := range []bool{false, true} {
		search, late, ladder, now := doubtful(t)
		if within {
			late = ladder[0]
		}
		for _, p := range ladder {
			if p.Size < 1450 {
				search.Answered(p.Seq, now+10*ms)
			}
		}
		search.Due(now + 20*ms)
		search.Due(now + 200*ms)
		if search.MTU() != 1430 {
			t.Fatalf("MTU %d, want 1430", search.MTU())
		}
		search.Answered(late.Seq, now+210*ms)
		if got := search.MTU() == 1450; got != within {
			t.Errorf("sent in the doubt: %v: MTU %d", within, search.MTU())
		}
	}
}

// A second answer, and one that comes after seconds, are no answers.
func TestStaleAnswers(t *testing.T) {
	search := pmtu.New(pmtu.Config{}, 576, 1450, 0)
	first := search.Due(0)[0]
	if !search.Answered(first.Seq, 10*ms) {
		t.Error("an answer does not count")
	}
	if search.Answered(first.Seq, 200*ms) {
		t.Error("a second one does")
	}
	second := search.Due(500 * ms)[0]
	if search.Answered(second.Seq, 6*s) {
		t.Error("one that comes after seconds does")
	}
	last, ever := search.LastAnswer()
	if rtt, smooth := search.RTT(); !ever || last != 10*ms || rtt != 10*ms || smooth != 10*ms {
		t.Errorf("last answer %v, %v, RTT %v, smoothed %v", last, ever, rtt, smooth)
	}
}

// A refusal needs no timeout: the MTU follows as soon as the next probe is due.
func TestRefused(t *testing.T) {
	r := newRand(t)
	for range 100 {
		m := simulate(t, r, 576, 1450, 1450, 2*ms)
		m.run(time.Duration(r.Int64N(int64(15 * s))))
		m.mtu = 576 + r.IntN(1450-576)
		m.refuse = m.mtu
		m.wait(520*ms, "usable", m.usable)
		m.wait(300*ms, "exact", m.exact)
	}
}

// The sequence number wraps, and answers from before it did, or that come again, do nothing.
func TestWrap(t *testing.T) {
	m := simulate(t, newRand(t), 576, 1450, 1400, 10*ms)
	m.twice = 0.5
	m.run(10 * s)
	m.shrinks, m.grows, m.sent = 0, 0, 0
	for m.sent < 3<<16 {
		m.run(s)
		old := m.last + 1 + uint16(m.r.IntN(1<<16-1000)) // not of the last 1,000
		m.search.Answered(old, m.now)
		m.search.Refused(old, m.now)
	}
	if m.shrinks > 0 || m.grows > 0 || m.search.MTU() != 1400 {
		t.Errorf("MTU %d, %d shrinks, %d growths in %v", m.search.MTU(), m.shrinks, m.grows, m.now)
	}
}

func TestSearchAllocates(t *testing.T) {
	search := pmtu.New(pmtu.Config{}, 576, 9000, 0)
	now := time.Duration(0)
	if n := testing.AllocsPerRun(1000, func() {
		now += 50 * ms
		for _, p := range search.Due(now) {
			if p.Size < 1234 {
				search.Answered(p.Seq, now)
			}
		}
		if now%(20*s) == 0 {
			search.SetCeiling(9000-int(now/s)%100, now)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
