package search

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is a path: it carries capacity a second, its sender makes most a second, bursts of losses befall a trial at random, and
// what is beyond capacity is lost, more than that if it chokes.
type model struct {
	capacity, most float64
	burst          float64 // part of the trials that lose a few
	jitter         float64 // of the capacity from trial to trial, part
	choke          float64 // part of the excess that is lost on top of it
	random         *rand.Rand
}

func (m model) trial(r Request) Trial {
	capacity := m.capacity * (1 + m.jitter*(2*m.random.Float64()-1))
	sent := min(r.Rate, m.most)
	loss := 0.0
	if excess := sent - capacity; excess > 0 {
		loss = min(excess*(1+m.choke)/sent, 1)
	}
	if m.random.Float64() < m.burst {
		loss = max(loss, 3/(sent*r.Duration.Seconds()))
	}
	return Trial{Rate: r.Rate, Duration: r.Duration, Sent: sent, Loss: loss}
}

// run searches to the end and returns the number of trials too.
func run(t testing.TB, c Config, measure func(Request) Trial) (figures []Figure, trials int) {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	for {
		r, ok := s.Next()
		if !ok {
			return s.Figures(), trials
		}
		if again, _ := s.Next(); again != r {
			t.Fatalf("asked twice: %v, then %v", r, again)
		}
		s.Add(measure(r))
		trials++
	}
}

func within(got, want, part float64) bool { return math.Abs(got-want) <= part*want }

func TestQuietPath(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := model{capacity: rapid.Float64Range(2e3, 2e6).Draw(t, "capacity"), choke: rapid.Float64Range(0, 3).Draw(t, "choke"),
			random: rand.New(rand.NewPCG(1, 2))}
		m.most = m.capacity * rapid.Float64Range(1.5, 20).Draw(t, "most")
		c := Config{Max: m.most * rapid.Float64Range(1, 2).Draw(t, "max")}
		s, _ := New(c)
		trials := 0
		for r, ok := s.Next(); ok; r, ok = s.Next() {
			s.Add(m.trial(r))
			trials++
		}
		figures := s.Figures()
		// Lost is excess*(1+choke)/sent <= goal at sent <= capacity*(1+choke)/(1+choke-goal).
		for i, want := range []float64{m.capacity, m.capacity * (1 + m.choke) / (1 + m.choke - 0.005)} {
			if f := figures[i]; !f.Complete || f.Rate > want*1.0001 || !within(f.Rate, want, 0.021) {
				t.Errorf("goal %v: %+v after %d trials, want %v", f.Goal, f, trials, want)
			}
		}
		if trials > 50 {
			t.Errorf("%d trials", trials)
		}
	})
}

// A path on which the sender does the work: it never loses, but cannot be sent to any faster.
func TestSenderBound(t *testing.T) {
	m := model{capacity: 1e9, most: 300e3, random: rand.New(rand.NewPCG(1, 2))}
	figures, trials := run(t, Config{Max: 900e3}, m.trial)
	for _, f := range figures {
		if !f.Complete || !within(f.Rate, 300e3, 0.011) {
			t.Errorf("%+v after %d trials", f, trials)
		}
	}
	if trials > 12 {
		t.Errorf("%d trials for a path that is the same at every rate above", trials)
	}
}

// The generator's own limit is below the path's.
func TestMaximum(t *testing.T) {
	m := model{capacity: 1e9, most: 1e9, random: rand.New(rand.NewPCG(1, 2))}
	figures, _ := run(t, Config{Max: 500e3}, m.trial)
	if f := figures[0]; !f.Complete || f.Rate != 500e3 || f.Above != 0 {
		t.Errorf("%+v", f)
	}
}

// A path that always loses a few has no no-drop rate, and has a partial-drop rate.
func TestAlwaysLosing(t *testing.T) {
	m := model{capacity: 200e3, most: 1e6, burst: 1, random: rand.New(rand.NewPCG(1, 2))}
	figures, _ := run(t, Config{Max: 1e6, Budget: 200}, m.trial)
	if figures[0].Rate != 0 || !figures[0].Complete {
		t.Errorf("no-drop: %+v", figures[0])
	}
	if !within(figures[1].Rate, 200e3*1/(1-0.005), 0.021) {
		t.Errorf("0.5%%: %+v", figures[1])
	}
	m.capacity, m.most = 0, 1e6
	figures, _ = run(t, Config{Max: 1e6}, m.trial)
	if figures[1].Rate != 0 {
		t.Errorf("dead path: %+v", figures[1])
	}
}

// Bursts of loss and a capacity that wanders make the answer less exact but not wrong.
func TestNoise(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	bad := 0
	const runs = 500
	for i := range uint64(runs) {
		m := model{capacity: 250e3, most: 800e3, burst: 0.1, jitter: 0.02, choke: 1, random: rand.New(rand.NewPCG(seed, i))}
		figures, trials := run(t, Config{Max: 800e3}, m.trial)
		if trials > 60 {
			t.Fatalf("%d trials, over the budget", trials)
		}
		for _, f := range figures {
			if f.Rate > 250e3*1.03 || f.Rate < 250e3*0.9 {
				bad++
			}
		}
	}
	// Each run fails where two of three trials near the end meet a burst: a few in a hundred.
	if bad > runs/5 {
		t.Errorf("%d of %d figures are off", bad, 2*runs)
	}
}

func TestSameTrialsSameRequests(t *testing.T) {
	record := func() (requests []Request) {
		m := model{capacity: 123456, most: 800e3, burst: 0.2, jitter: 0.05, random: rand.New(rand.NewPCG(7, 7))}
		run(t, Config{Max: 800e3}, func(r Request) Trial { requests = append(requests, r); return m.trial(r) })
		return requests
	}
	a, b := record(), record()
	if len(a) != len(b) {
		t.Fatalf("%d requests, then %d", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			t.Errorf("request %d: %v, then %v", i, a[i], b[i])
		}
	}
	if first, last := a[0], a[len(a)-1]; first.Rate != 800e3 || first.Duration >= last.Duration {
		t.Errorf("first %v, last %v: short and at the maximum first, long last", first, last)
	}
}

// A search that is cut short says so.
func TestBudget(t *testing.T) {
	m := model{capacity: 250e3, most: 800e3, random: rand.New(rand.NewPCG(1, 2))}
	figures, trials := run(t, Config{Max: 800e3, Budget: 5}, m.trial)
	if trials != 5 || figures[0].Complete {
		t.Errorf("%d trials, %+v", trials, figures[0])
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{}, {Max: 10}, {Max: 1e6, Votes: 2}, {Max: 1e6, Goals: []float64{0.1, 0}}, {Max: 1e6, Goals: []float64{1}},
		{Max: 1e6, Goals: []float64{-1}}, {Max: 1e6, Min: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
	if s, err := New(Config{Max: 1e6}); err != nil || s.config.Durations[2] != time.Second {
		t.Errorf("defaults: %v", err)
	}
}

// What trials of the last phase, at three a rate, say about the goal of no loss.
func TestBounds(t *testing.T) {
	trial := func(rate, loss float64) Trial { return Trial{Rate: rate, Sent: rate, Loss: loss} }
	for _, test := range []struct {
		name   string
		trials []Trial
		want   interval
		open   bool
	}{
		{"nothing", nil, interval{}, false},
		{"one vote of three", []Trial{trial(100, 0)}, interval{}, true},
		{"two votes for", []Trial{trial(100, 0), trial(100, 0)}, interval{low: 100}, false},
		{"two for, one against", []Trial{trial(100, 0), trial(100, 0.1), trial(100, 0)}, interval{low: 100}, false},
		{"two against, one for", []Trial{trial(100, 0.1), trial(100, 0), trial(100, 0.1)}, interval{high: 100}, false},
		{"a rate that holds above one that does not", []Trial{trial(100, 0.1), trial(100, 0.1), trial(200, 0), trial(200, 0), trial(50, 0), trial(50, 0)},
			interval{low: 50, high: 100}, false},
		{"what could not be sent", []Trial{{Rate: 200, Sent: 150}, {Rate: 200, Sent: 160}}, interval{low: 160, high: 160}, false},
	} {
		s, err := New(Config{Max: 1e6, Durations: []time.Duration{time.Second}})
		if err != nil {
			t.Fatal(err)
		}
		for _, trial := range test.trials {
			s.Add(trial)
		}
		if got, open := s.bounds(0); got != test.want || (open != nil) != test.open {
			t.Errorf("%s: %+v, open %t, want %+v", test.name, got, open != nil, test.want)
		}
	}
}
