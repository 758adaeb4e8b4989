// Package search finds the highest rates that a path carries with at most given parts lost: the no-drop rate of RFC 2544, section
// 26.1, and partial-drop rates, for all goals in one search after the manner of MLRsearch (draft-ietf-bmwg-mlrsearch): short
// trials narrow, long ones decide, and a trial serves every goal.
//
// It sends nothing and knows no clock: trials are its inputs, and the same trials lead to the same requests.
package search

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// saturated is the part of a requested rate below which the sender is said not to have kept up: the path made it slower, for on a
// software path the sender does part of the path's work. What was sent is then the most that can be.
const saturated = 0.99

// Config says what to look for. Zero values: Goals 0 and 0.005, Durations 200 ms, 200 ms and 1 s, Votes 3, Precision 0.02, Min
// 1000, Budget 60. Max must be set.
type Config struct {
	Goals     []float64       // the parts that may be lost, rising
	Min, Max  float64         // rates, 1/s. What does not reach Min is reported as 0
	Precision float64         // the widest interval between a rate that holds and one that does not, part of the latter
	Durations []time.Duration // of trials, by phase; each phase narrows to its precision, the last to Precision
	Votes     int             // trials at one rate in the last phase, of which the majority decides; odd
	Budget    int             // trials in all
}

// Trial is what one trial came to.
type Trial struct {
	Rate     float64       `json:"rate"` // as requested, 1/s
	Duration time.Duration `json:"duration"`
	Sent     float64       `json:"sent"` // really, 1/s
	Loss     float64       `json:"loss"` // part of the sent
}

// rate is the one that the trial is evidence about.
func (t Trial) rate() float64 {
	if t.saturated() {
		return t.Sent
	}
	return t.Rate
}

func (t Trial) saturated() bool { return t.Sent < saturated*t.Rate }

// Request is the next trial to make.
type Request struct {
	Rate     float64
	Duration time.Duration
}

// Figure is the answer for one goal.
type Figure struct {
	Goal     float64 `json:"goal"`
	Rate     float64 `json:"rate"`  // the highest that held, below the lowest that did not
	Above    float64 `json:"above"` // the lowest that did not hold; 0 if none was seen
	Complete bool    `json:"complete"`
}

// Search is a search under way.
type Search struct {
	config Config
	phase  int
	points []point // of this phase
	hints  []interval
	trials int
}

// point is all trials of one phase at one requested rate.
type point struct {
	rate   float64
	trials []Trial
}

type interval struct{ low, high float64 } // 0 for not known

// New begins a search. The zero Search is not valid.
func New(c Config) (*Search, error) {
	c.defaults()
	switch {
	case c.Max <= c.Min || c.Min <= 0:
		return nil, fmt.Errorf("search from %v to %v/s: nothing between", c.Min, c.Max)
	case c.Votes%2 == 0:
		return nil, fmt.Errorf("search with %d votes: must be odd", c.Votes)
	case !slices.IsSorted(c.Goals) || c.Goals[0] < 0 || c.Goals[len(c.Goals)-1] >= 1:
		return nil, fmt.Errorf("search for losses of %v: must rise from 0 and stay below 1", c.Goals)
	}
	return &Search{config: c, hints: make([]interval, len(c.Goals))}, nil
}

func (c *Config) defaults() {
	if len(c.Goals) == 0 {
		c.Goals = []float64{0, 0.005}
	}
	if len(c.Durations) == 0 {
		c.Durations = []time.Duration{200 * time.Millisecond, 200 * time.Millisecond, time.Second}
	}
	if c.Votes == 0 {
		c.Votes = 3
	}
	if c.Precision == 0 {
		c.Precision = 0.02
	}
	if c.Min == 0 {
		c.Min = 1000
	}
	if c.Budget == 0 {
		c.Budget = 60
	}
}

// Next is the trial to make now, false when the search is over.
func (s *Search) Next() (Request, bool) {
	for s.trials < s.config.Budget && s.phase < len(s.config.Durations) {
		for goal := range s.config.Goals {
			if rate, ok := s.want(goal); ok {
				return Request{rate, s.config.Durations[s.phase]}, true
			}
		}
		if s.last() {
			break
		}
		for goal := range s.hints {
			s.hints[goal], _ = s.bounds(goal)
		}
		s.phase, s.points = s.phase+1, nil
	}
	return Request{}, false
}

func (s *Search) last() bool { return s.phase == len(s.config.Durations)-1 }

// Add tells of the trial that Next asked for.
func (s *Search) Add(t Trial) {
	s.trials++
	i := slices.IndexFunc(s.points, func(p point) bool { return p.rate == t.Rate })
	if i < 0 {
		s.points = append(s.points, point{rate: t.Rate})
		i = len(s.points) - 1
	}
	s.points[i].trials = append(s.points[i].trials, t)
}

// Figures are the answers as far as they are known, in the order of the goals.
func (s *Search) Figures() []Figure {
	var figures []Figure
	for goal, loss := range s.config.Goals {
		b, _ := s.bounds(goal)
		complete := s.last() && s.settled(b)
		if !complete && b.low == 0 {
			b.low = s.hints[goal].low // from shorter trials: better than nothing, and marked
		}
		figures = append(figures, Figure{Goal: loss, Rate: b.low, Above: b.high, Complete: complete})
	}
	return figures
}

// precision is twice as coarse in each phase before the last.
func (s *Search) precision() float64 {
	return s.config.Precision * math.Pow(2, float64(len(s.config.Durations)-1-s.phase))
}

// bounds are what this phase's decided points say about a goal; open is a point whose vote is not over, nil if none.
func (s *Search) bounds(goal int) (b interval, open *point) {
	var held []interval
	for i := range s.points {
		p := &s.points[i]
		ok, decided := s.verdict(p, s.config.Goals[goal])
		rate, full := p.reached()
		switch {
		case !decided:
			open = p
			continue
		case ok:
			held = append(held, interval{low: rate})
		}
		if !ok || full { // what could not be sent did not hold
			if b.high == 0 || rate < b.high {
				b.high = rate
			}
		}
	}
	for _, h := range held {
		if b.high == 0 || h.low <= b.high {
			b.low = max(b.low, h.low)
		}
	}
	return b, open
}

// verdict counts a point's votes: one decides before the last phase.
func (s *Search) verdict(p *point, loss float64) (held, decided bool) {
	need, yes := 1, 0
	if s.last() {
		need = s.config.Votes/2 + 1
	}
	for _, t := range p.trials {
		if t.Loss <= loss {
			yes++
		}
	}
	return yes >= need, yes >= need || len(p.trials)-yes >= need
}

// reached is the median of the rates that the point's trials are about, and whether it is below the requested one.
func (p *point) reached() (rate float64, full bool) {
	rates := make([]float64, 0, len(p.trials))
	n := 0
	for _, t := range p.trials {
		rates = append(rates, t.rate())
		if t.saturated() {
			n++
		}
	}
	slices.Sort(rates)
	return rates[len(rates)/2], 2*n > len(p.trials)
}

func (s *Search) settled(b interval) bool {
	switch {
	case b.low == 0:
		return b.high != 0 && b.high <= s.config.Min
	case b.high == 0:
		return b.low >= s.config.Max*saturated
	}
	return (b.high-b.low)/b.high <= s.precision()
}

// want is the rate that a goal needs a trial at, false when the phase is done for it.
func (s *Search) want(goal int) (float64, bool) {
	b, open := s.bounds(goal)
	if open != nil {
		return open.rate, true
	}
	if s.settled(b) {
		return 0, false
	}
	hint := s.hints[goal]
	var rate float64
	switch {
	case b.low == 0 && b.high == 0:
		rate = hint.low
		if rate == 0 {
			rate = s.config.Max
		}
	case b.low == 0:
		rate = s.down(goal, b.high)
	case b.high == 0:
		rate = s.up(b.low, hint.high)
	default:
		rate = math.Sqrt(b.low * b.high)
	}
	return min(max(rate, s.config.Min), s.config.Max), true
}

// down goes from a rate that did not hold to what came through at it, and in growing steps below.
func (s *Search) down(goal int, high float64) float64 {
	step := s.precision() / 2
	through := high
	for _, p := range s.points {
		if rate, _ := p.reached(); rate >= high {
			step *= 2
		}
		if rate, _ := p.reached(); rate == high {
			t := p.trials[0]
			through = t.rate() * (1 - max(t.Loss-s.config.Goals[goal], 0))
		}
	}
	return min(through, high*(1-min(step, 0.5)))
}

// up goes from a rate that held to one that did not in the phase before, and in growing steps above.
func (s *Search) up(low, hint float64) float64 {
	step := s.precision() / 2
	for _, p := range s.points {
		if rate, _ := p.reached(); rate <= low {
			step *= 2
		}
	}
	if hint > low && (hint-low)/hint <= 2*step {
		return hint
	}
	return low * (1 + min(step, 1))
}
