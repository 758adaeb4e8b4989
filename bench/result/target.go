package result

import (
	"fmt"
	"slices"
)

// Target is a line of the table that the project is measured by. What it must reach is a bound, what it aims at another; 0 means none.
type Target struct {
	Title                string
	Underlay, Path, Name string // of the figure
	Against              string // path that the figure is divided by, round by round; empty if the figure itself counts
	AtMost               bool   // the bounds are from above
	Must, Aim            float64
}

// tulle's plainest path, and that of its tables alone.
const (
	Tulle  = "tulle"
	Tables = "tables"
)

// Targets are all that the project promises, in the order of its table.
var Targets = slices.Concat(
	[]Target{
		{Title: "TCP, 1 flow", Underlay: "veth", Path: Tulle, Name: "tcp/1-flow", Against: "kernel", Must: 0.5, Aim: 0.62},
		{Title: "TCP, 1 flow", Underlay: "wire", Path: Tulle, Name: "tcp/1-flow", Against: "kernel", Must: 0.62, Aim: 0.75},
		{Title: "TCP, 4 flows", Underlay: "wire", Path: Tulle, Name: "tcp/4-flows", Against: "kernel", Must: 0.45, Aim: 0.6},
		{Title: "TCP, 1 flow, to a kernel VXLAN node", Underlay: "veth", Path: "tulle-kernel", Name: "tcp/1-flow", Against: "kernel", Must: 0.35, Aim: 0.5},
		{Title: "TCP, 1 flow, to a kernel VXLAN node", Underlay: "wire", Path: "tulle-kernel", Name: "tcp/1-flow", Against: "kernel", Must: 0.35, Aim: 0.5},
	},
	onBoth(Target{Title: "64 B no-drop rate, 1 flow", Path: Tulle, Name: "udp-64B/1-flow/no-drop", Against: "kernel", Must: 1.3, Aim: 2}),
	onBoth(Target{Title: "64 B no-drop rate, 256 flows", Path: Tulle, Name: "udp-64B/256-flows/no-drop", Against: "kernel", Must: 1.15, Aim: 1.7}),
	onBoth(Target{Title: "64 B delivered under flood", Path: Tulle, Name: "udp-64B/1-flow/flood", Against: "kernel", Must: 1.3, Aim: 2}),
	onBoth(Target{Title: "round trip at 10% load, p50", Path: Tulle, Name: "udp-64B/1-flow/round-trip/10%-load/p50", Against: "kernel", AtMost: true, Must: 1.6, Aim: 1.35}),
	onBoth(Target{Title: "round trip at 10% load, p99", Path: Tulle, Name: "udp-64B/1-flow/round-trip/10%-load/p99", Against: "kernel", AtMost: true, Must: 1.6, Aim: 1.3}),
	[]Target{
		{Title: "TCP, 1 flow, against one packet per system call", Underlay: "veth", Path: Tulle, Name: "tcp/1-flow", Against: "water", Must: 8, Aim: 12},
		{Title: "64 B no-drop rate, against one packet per system call", Underlay: "veth", Path: Tulle, Name: "udp-64B/1-flow/no-drop", Against: "water", Must: 4, Aim: 8},
		{Title: "TCP, 1 flow, against wireguard/tun", Underlay: "veth", Path: Tulle, Name: "tcp/1-flow", Against: "wireguard", Must: 1.5, Aim: 2},
		{Title: "64 B no-drop rate, against wireguard/tun", Underlay: "veth", Path: Tulle, Name: "udp-64B/1-flow/no-drop", Against: "wireguard", Must: 1.5, Aim: 2},
		{Title: "FIB lookup, 1M routes, 256 in use, IPv4", Path: Tables, Name: "fib/1000000-routes/256-used/v4", AtMost: true, Must: 25, Aim: 12},
		{Title: "FIB lookup, 1M routes, all in use, IPv4", Path: Tables, Name: "fib/1000000-routes/1000000-used/v4", AtMost: true, Must: 25, Aim: 12},
		{Title: "FIB lookup, 1M routes, 256 in use, IPv6", Path: Tables, Name: "fib/1000000-routes/256-used/v6", AtMost: true, Must: 40, Aim: 20},
		{Title: "FIB lookup, 1M routes, all in use, IPv6", Path: Tables, Name: "fib/1000000-routes/1000000-used/v6", AtMost: true, Must: 40, Aim: 20},
		{Title: "conntrack lookup, in cache, IPv4", Path: Tables, Name: "conntrack/256-flows/v4", AtMost: true, Must: 40, Aim: 25},
		{Title: "conntrack lookup, in cache, IPv6", Path: Tables, Name: "conntrack/256-flows/v6", AtMost: true, Must: 40, Aim: 25},
		{Title: "conntrack lookup, 1M flows, IPv4", Path: Tables, Name: "conntrack/1000000-flows/v4", AtMost: true, Must: 120, Aim: 80},
		{Title: "conntrack lookup, 1M flows, IPv6", Path: Tables, Name: "conntrack/1000000-flows/v6", AtMost: true, Must: 120, Aim: 80},
		{Title: "conntrack memory, IPv4", Path: Tables, Name: "conntrack/memory/v4", AtMost: true, Must: 128},
		{Title: "conntrack memory, IPv6", Path: Tables, Name: "conntrack/memory/v6", AtMost: true, Must: 256},
	},
	// None at all: what a daemon's control plane allocates meanwhile stays below this.
	onBoth(Target{Title: "allocations, 64 B packets", Path: Tulle, Name: "udp-64B/1-flow/flood/allocs", AtMost: true, Must: 0.005}),
	onBoth(Target{Title: "CPU of a 64 B packet", Path: Tulle, Name: "udp-64B/1-flow/cpu", Against: "kernel", AtMost: true, Aim: 1}),
	onBoth(Target{Title: "CPU of a gigabit of TCP", Path: Tulle, Name: "tcp/1-flow/cpu", Against: "kernel", AtMost: true}),
)

func onBoth(t Target) (both []Target) {
	for _, t.Underlay = range []string{"veth", "wire"} {
		both = append(both, t)
	}
	return both
}

// What became of a target.
const (
	Aimed       = "aim met"
	Met         = "met"
	Missed      = "NOT met"
	Reported    = "reported" // nothing is asked
	Refused     = "refused"  // the generator was the limit
	NotMeasured = "not measured"
)

// Verdict is a target and what was measured of it.
type Verdict struct {
	Target
	Unit         string // of Value
	Value, Ratio Spread // Ratio valid iff Against is set. Zero if there is none
	Bound        bool   // the generator limited the figure, not what it is divided by: the path does at least this
	State        string
}

// Verdicts judges all targets.
func (r *Result) Verdicts() (all []Verdict) {
	for _, t := range Targets {
		all = append(all, r.verdict(t))
	}
	return all
}

func (r *Result) verdict(t Target) Verdict {
	v := Verdict{Target: t, State: NotMeasured}
	own, against := r.rounds(t.Underlay, t.Name, t.Path), r.rounds(t.Underlay, t.Name, t.Against)
	var values, ratios []float64
	refused := false
	for round := 1; round <= r.Rounds; round++ {
		f, ok := own[round]
		if !ok {
			continue
		}
		v.Unit, values = f.Unit, append(values, f.Value)
		v.Bound = v.Bound || f.limited()
		if a := against[round]; a.limited() {
			refused = true
		} else if a.Value > 0 {
			ratios = append(ratios, f.Value/a.Value)
		}
	}
	v.Value, v.Ratio = spread(values), spread(ratios)
	switch {
	case len(values) == 0 || t.Against != "" && len(ratios) == 0 && !refused:
	case t.Against != "" && len(ratios) == 0:
		v.State = Refused
	default:
		v.State = v.judge()
	}
	return v
}

func (v Verdict) judge() string {
	got := v.Got()
	reaches := func(bound float64) bool {
		return bound > 0 && (v.AtMost && got <= bound || !v.AtMost && got >= bound)
	}
	switch {
	case v.Must == 0 && v.Aim == 0:
		return Reported
	case reaches(v.Aim):
		return Aimed
	case reaches(v.Must):
		return Met
	case v.Bound:
		return Refused // it may do better
	case v.Must == 0:
		return Reported
	}
	return Missed
}

// Got is what is judged: the median of the ratios, or of the values.
func (v Verdict) Got() float64 {
	if v.Against != "" {
		return v.Ratio.Median
	}
	return v.Value.Median
}

// rounds are a path's figures of one name by round; none of a path without name.
func (r *Result) rounds(underlay, name, path string) map[int]Figure {
	found := map[int]Figure{}
	for _, f := range r.Figures {
		if path != "" && f.Underlay == underlay && f.Name == name && f.Path == path {
			found[f.Round] = f
		}
	}
	return found
}

// Texts are the cells of a verdict's line under TargetColumns.
func (v Verdict) Texts() []string {
	title := v.Title
	if v.Underlay != "" {
		title += ", " + v.Underlay
	}
	cells := []string{title, "", "", "", v.bound(v.Must), v.bound(v.Aim), v.State}
	if v.Value.N > 0 {
		cells[1] = v.sign() + Format(v.Value.Median, v.Unit)
		if v.Value.N > 1 {
			cells[3] = fmt.Sprintf("%.0f%%", v.Value.Percent())
		}
	}
	if v.Ratio.N > 0 {
		cells[2] = v.sign() + times(v.Ratio.Median) + "x " + v.Against
		if v.Ratio.N > 1 {
			cells[3] = times(v.Ratio.Min) + "-" + times(v.Ratio.Max)
		}
	}
	return cells
}

// TargetColumns are the heads of the table of verdicts. The spread is that of what is judged.
var TargetColumns = []string{"figure", "median", "ratio", "spread", "must", "aim", "result"}

// sign says which way a bound goes.
func (v Verdict) sign() string {
	switch {
	case !v.Bound:
		return ""
	case v.AtMost:
		return "<= "
	}
	return ">= "
}

func (v Verdict) bound(b float64) string {
	if b == 0 {
		return ""
	}
	sign := ">= "
	if v.AtMost {
		sign = "<= "
	}
	if v.Against != "" {
		return fmt.Sprintf("%s%gx", sign, b)
	}
	if v.Unit == "" {
		return fmt.Sprintf("%s%g", sign, b)
	}
	return sign + Format(b, v.Unit)
}

// judged says whether there is a figure of any of the verdicts: a run on a path of somebody else's has none.
func judged(all []Verdict) bool {
	return slices.ContainsFunc(all, func(v Verdict) bool { return v.State != NotMeasured })
}

// Tally counts the verdicts by state, in words: those with a must, for an aim alone is no promise.
func Tally(all []Verdict) string {
	count, asked := map[string]int{}, 0
	for _, v := range all {
		if v.Must > 0 {
			asked++
			count[v.State]++
		}
	}
	text := fmt.Sprintf("%d of %d musts met, %d of them with their aim", count[Met]+count[Aimed], asked, count[Aimed])
	for _, s := range []string{Missed, Refused, NotMeasured} {
		if count[s] > 0 {
			text += fmt.Sprintf("; %d %s", count[s], s)
		}
	}
	return text
}
