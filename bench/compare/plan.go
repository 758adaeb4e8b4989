package compare

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// Plan says what to measure and how long to look.
type Plan struct {
	Name      string
	Rounds    int
	Paths     []string
	Underlays []string
	Cases     []Case
	// RoutersOn are the underlays on which the plain routers are measured; nil for all.
	RoutersOn []string
	// Entries are the routes and flows of the tables that are measured by themselves; 0 for not at all.
	Entries int
	ruler   ruler
}

var underlays = []string{lab.UnderlayVeth, lab.UnderlayWire}

// Underlays are those that Options may have.
func Underlays() []string { return slices.Clone(underlays) }

var (
	small      = udpCase("udp-64B", bench.Stream{}, true)
	smallMany  = udpCase("udp-64B", bench.Stream{Flows: 256}, false)
	exchanging = transactCase("tcp-rr", bench.Transact{})
	connecting = transactCase("tcp-crr", bench.Transact{Connect: true})
	mixed      = udpCase("udp-imix", bench.Stream{Sizes: bench.IMIX, Flows: 64}, false)
)

// cases are all that there are.
var cases = []Case{tcpCase(1), tcpCase(4), exchanging, connecting, small, smallMany,
	udpCase("udp-64B-gso", bench.Stream{Segments: 16}, false), mixed,
	udpCase("udp-512B", bench.Stream{Sizes: []int{512}}, false),
	udpCase("udp-1400B", bench.Stream{Sizes: []int{1400}}, false),
	udpCase("udp-9000B", bench.Stream{Sizes: []int{9000}}, false),
	udpCase("udp-64B", bench.Stream{Flows: 16}, false),
	udpCase("udp-64B", bench.Stream{Flows: bench.MaxFlows}, false),
	tcpCase(16)}

// careful is how long is looked where figures count.
var careful = ruler{warmUp: 500 * time.Millisecond, stream: 2 * time.Second, transact: time.Second, flood: 1500 * time.Millisecond,
	latency: time.Second, precision: 0.03, votes: 3, budget: 24, loads: []int{10, 50, 90},
	search: []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, time.Second}}

// Plans are the presets: a smoke run, the table of the project's page, what tulle can be made of, and everything.
func Plans() []Plan {
	all := make([]string, len(Paths))
	for i, p := range Paths {
		all[i] = p.Name
	}
	return []Plan{
		{Name: "quick", Rounds: 1, Entries: 10_000, Paths: []string{Bare, Kernel, "tulle", "tulle-udp", "water", "wireguard"}, Underlays: underlays[:1],
			Cases: []Case{tcpCase(1), exchanging, small},
			ruler: ruler{warmUp: 100 * time.Millisecond, stream: 300 * time.Millisecond, transact: 300 * time.Millisecond,
				flood: 100 * time.Millisecond, latency: 200 * time.Millisecond, precision: 0.1, votes: 1, budget: 20, loads: []int{10},
				search: []time.Duration{50 * time.Millisecond, 100 * time.Millisecond}}},
		{Name: "table", Rounds: 3, Entries: 1_000_000, Paths: []string{Bare, Kernel, "tulle", "tulle-kernel", "water", "wireguard"}, Underlays: underlays,
			RoutersOn: underlays[:1], Cases: []Case{tcpCase(1), tcpCase(4), exchanging, small, smallMany}, ruler: careful},
		{Name: "variants", Rounds: 3, Paths: []string{Bare, Kernel, "tulle", "tulle-2w", "tulle-udp", "tulle-packet", "tulle-tun", "tulle-water",
			"tulle-veth", "tulle-tap"}, Underlays: underlays, Cases: []Case{tcpCase(1), exchanging, small, mixed}, ruler: careful},
		{Name: "full", Rounds: 3, Entries: 1_000_000, Paths: all, Underlays: underlays, Cases: cases, ruler: careful},
	}
}

// FindPlan gives a preset.
func FindPlan(name string) (Plan, error) {
	var have []string
	for _, p := range Plans() {
		if p.Name == name {
			return p, nil
		}
		have = append(have, p.Name)
	}
	return Plan{}, fmt.Errorf("preset %q: no such preset (have: %s)", name, strings.Join(have, ", "))
}

// SelectCases replaces the plan's cases by those named, whichever preset has them.
func (p *Plan) SelectCases(names []string) error {
	p.Cases, p.Entries = nil, 0
	var have []string
	for _, c := range cases {
		have = append(have, c.Name)
	}
	for _, name := range names {
		i := slices.Index(have, name)
		if i < 0 {
			return fmt.Errorf("case %q: no such case (have: %s)", name, strings.Join(have, ", "))
		}
		p.Cases = append(p.Cases, cases[i])
	}
	return nil
}

// Check says what is wrong with the plan's underlays.
func (p *Plan) Check() error {
	for _, u := range p.Underlays {
		if !slices.Contains(underlays, u) {
			return fmt.Errorf("underlay %q: no such underlay (have: %s)", u, strings.Join(underlays, ", "))
		}
	}
	return nil
}

// has says whether the plan measures a path on an underlay.
func (p *Plan) has(path Path, underlay string) bool {
	return !path.Direct && (path.Router == "" || p.RoutersOn == nil || slices.Contains(p.RoutersOn, underlay))
}
