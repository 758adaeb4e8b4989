package compare

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/bench/search"
)

// Case is one kind of traffic; what it measures is several figures.
type Case struct {
	Name    string
	measure func(context.Context, *session) error
}

// ruler is what cases of one plan have in common: how long they look.
type ruler struct {
	warmUp, stream time.Duration   // of a TCP stream
	transact       time.Duration   // of request and response
	flood          time.Duration   // of an unpaced UDP stream
	latency        time.Duration   // at each load
	search         []time.Duration // see search.Config.Durations
	precision      float64
	votes          int
	budget         int   // trials of a search
	loads          []int // of the no-drop rate, percent, at which latency is measured
}

// session measures one path in one round.
type session struct {
	ruler
	ends     bench.Ends
	round    int
	underlay string
	path     string
	current  string // case
	out      *result.Result
	bare     map[string]float64 // by figure's name: the generator's limit in this round; nil while that is being measured
	daemons  []daemon           // of the path; none unless they are tulle's
	say      func(format string, args ...any)
}

// figure notes a value and says so.
func (s *session) figure(name string, value float64, unit string, flags ...string) {
	if s.bare != nil && result.HigherIsBetter(unit) && unit != result.Transacts { // the rate of exchanges is a delay's, no sender's
		flags = append(flags, s.limits(name, value)...)
	}
	s.out.Figures = append(s.out.Figures, result.Figure{Round: s.round, Underlay: s.underlay, Path: s.path, Name: name, Value: value, Unit: unit, Flags: flags})
	s.say("%s  %s", name, result.Format(value, unit))
}

// limits are the flags of a rate that may be the generator's: it did hardly more where there is no path, or nothing is known of that.
func (s *session) limits(name string, rate float64) []string {
	limit, tested := s.bare[name]
	switch {
	case !tested || limit == 0:
		return []string{result.GeneratorUntested}
	case rate >= generatorShare*limit:
		return []string{result.GeneratorBound}
	}
	return nil
}

// bound are the flags of a figure from one trial.
func bound(r bench.UDPResult) []string {
	if r.GeneratorBound() {
		return []string{result.GeneratorBound}
	}
	return nil
}

// generatorShare is how near to the generator's own limit a figure is no longer the path's.
const generatorShare = 0.9

func (s *session) trial(t result.Trial) {
	t.Round, t.Underlay, t.Path, t.Case = s.round, s.underlay, s.path, s.current
	s.out.Trials = append(s.out.Trials, t)
}

func tcpCase(flows int) Case {
	name := fmt.Sprintf("tcp/%s", count(flows, "flow"))
	return Case{name, func(ctx context.Context, s *session) error {
		r, err := bench.TCP{Flows: flows, WarmUp: s.warmUp, Duration: s.stream}.Run(ctx, s.ends)
		if err != nil {
			return err
		}
		s.trial(result.Trial{TCP: &r})
		s.figure(name, r.Gbps(), result.Gbps)
		if r.Bytes > 0 && s.ends.Remote == nil { // CPU times are of one machine
			s.figure(name+"/cpu", r.CPU.Busy().Seconds()/(float64(r.Bytes)*8/1e9), result.CPUGigabit)
		}
		return s.profile(ctx, func(d time.Duration) (bench.CPUTime, time.Duration, error) {
			r, err := bench.TCP{Flows: flows, Duration: d}.Run(ctx, s.ends)
			return r.CPU, r.Elapsed, err
		})
	}}
}

func transactCase(name string, t bench.Transact) Case {
	return Case{name, func(ctx context.Context, s *session) error {
		t := t
		t.Duration = s.transact
		r, err := t.Run(ctx, s.ends)
		if err != nil {
			return err
		}
		s.trial(result.Trial{Transact: &r})
		s.figure(name, r.Rate(), result.Transacts)
		s.figure(name+"/p50", float64(r.Latency.P50), result.Nanosecond)
		s.figure(name+"/p99", float64(r.Latency.P99), result.Nanosecond)
		return nil
	}}
}

func count(n int, what string) string {
	if n == 1 {
		return "1-" + what
	}
	return fmt.Sprintf("%d-%ss", n, what)
}

// udpCase floods, searches, and looks at the CPU at the rate found; with latency also at delays below it.
func udpCase(name string, stream bench.Stream, latency bool) Case {
	name = fmt.Sprintf("%s/%s", name, count(max(stream.Flows, 1), "flow"))
	return Case{name, func(ctx context.Context, s *session) error {
		u, err := bench.OpenUDP(s.ends, max(stream.Flows, 1))
		if err != nil {
			return err
		}
		defer u.Close()
		flood := stream
		flood.Duration = s.flood
		r, err := s.unpaced(ctx, u, flood, name)
		if err != nil {
			return err
		}
		rate, err := s.search(ctx, u, stream, name, r.SentRate())
		if err != nil || !latency || rate == 0 {
			return err
		}
		err = s.profile(ctx, func(d time.Duration) (bench.CPUTime, time.Duration, error) {
			at := stream
			at.Rate, at.Duration = rate, d
			r, err := u.Run(ctx, at)
			return r.CPU, r.Elapsed, err
		})
		if err != nil {
			return err
		}
		return s.latencies(ctx, u, stream, name, rate)
	}}
}

// unpaced sends as fast as it goes, and looks at what that costs the daemons.
func (s *session) unpaced(ctx context.Context, u *bench.UDP, stream bench.Stream, name string) (r bench.UDPResult, err error) {
	spent, err := s.spent(ctx, stream.Duration, func() (err error) {
		r, err = u.Run(ctx, stream)
		return err
	})
	if err != nil {
		return r, err
	}
	s.trial(result.Trial{UDP: &r})
	s.figure(name+"/flood", r.ReceivedRate(), result.PerSecond, bound(r)...)
	if n := float64(r.Received); len(s.daemons) > 0 && n > 0 {
		s.figure(name+"/flood/allocs", spent.allocs/n, result.Allocs)
		s.figure(name+"/flood/daemon-cpu", spent.cpu*1e9/n, result.CPUPacket)
		s.figure(name+"/flood/memory", spent.memory/float64(len(s.daemons)), result.Bytes)
	}
	return r, nil
}

// search notes the no-drop and partial-drop rates and gives the first. most is what the sender can do on this path.
func (s *session) search(ctx context.Context, u *bench.UDP, stream bench.Stream, name string, most float64) (noDrop float64, err error) {
	look, err := search.New(search.Config{Max: max(most*1.1, 2000), Durations: s.ruler.search, Precision: s.precision, Votes: s.votes,
		Budget: s.budget})
	if err != nil {
		return 0, err
	}
	var last bench.UDPResult // of those at which nothing was lost
	var limited []string
	for request, ok := look.Next(); ok; request, ok = look.Next() {
		stream.Rate, stream.Duration = request.Rate, request.Duration
		r, err := u.Run(ctx, stream)
		if err != nil {
			return 0, err
		}
		s.trial(result.Trial{UDP: &r})
		if request.Duration == slices.Max(s.ruler.search) && len(limited) == 0 {
			limited = bound(r)
		}
		look.Add(search.Trial{Rate: request.Rate, Duration: request.Duration, Sent: r.SentRate(), Loss: r.LossRatio()})
		if r.Lost() == 0 && request.Duration == slices.Max(s.ruler.search) {
			last = r
		}
	}
	for i, f := range look.Figures() {
		s.trial(result.Trial{Search: &f})
		flags := slices.Clone(limited)
		if !f.Complete {
			flags = append(flags, result.Incomplete)
		}
		s.figure(name+[]string{"/no-drop", "/0.5%-drop"}[i], f.Rate, result.PerSecond, flags...)
	}
	if last.Received > 0 && s.ends.Remote == nil {
		s.figure(name+"/cpu", float64(last.CPU.Busy())/float64(last.Received), result.CPUPacket)
	}
	return look.Figures()[0].Rate, nil
}

// latencies measures at parts of a rate: delays of the stream itself, one way, and round trips of a thin stream beside it.
func (s *session) latencies(ctx context.Context, u *bench.UDP, stream bench.Stream, name string, rate float64) error {
	probes, err := bench.OpenUDP(s.ends, 1)
	if err != nil {
		return err
	}
	defer probes.Close()
	for _, load := range s.loads {
		stream.Rate, stream.Duration, stream.Latency = rate*float64(load)/100, s.latency, true
		probe := bench.Stream{Sizes: stream.Sizes, Rate: probeRate, Duration: s.latency, Latency: true, Echo: true}
		way, trip, err := bench.Together(ctx, u, stream, probes, probe)
		if err != nil {
			return err
		}
		s.trial(result.Trial{UDP: &way})
		s.trial(result.Trial{UDP: &trip})
		s.delays(fmt.Sprintf("%s/delay/%d%%-load", name, load), way)
		s.delays(fmt.Sprintf("%s/round-trip/%d%%-load", name, load), trip)
	}
	return nil
}

// probeRate is that of round trips measured beside a load, 1/s: too few to be one.
const probeRate = 1000

func (s *session) delays(name string, r bench.UDPResult) {
	l := r.Latency
	if l.Count == 0 {
		return
	}
	for _, q := range []struct {
		name string
		d    time.Duration
	}{{"p50", l.P50}, {"p90", l.P90}, {"p99", l.P99}, {"p99.9", l.P999}, {"max", l.Max}} {
		s.figure(name+"/"+q.name, float64(q.d), result.Nanosecond, bound(r)...)
	}
}
