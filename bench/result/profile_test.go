package result

import (
	"slices"
	"testing"
)

// A profile is shown iff a figure of its case is short of an aim.
func TestExplained(t *testing.T) {
	const kernel = "kernel"
	r := &Result{Rounds: 1, Reference: kernel, Paths: []Path{{Tulle, "tulle, VXLAN"}}, Profiles: []Profile{
		{Underlay: "veth", Path: Tulle, Case: "tcp/1-flow", Busy: 1.94, Daemons: 1.25, Parts: []Part{{"waiting", 0.6, 0.5}, {"deciding", 0.396, 0}, {"nothing much", 0.004, 0}}},
		{Underlay: "wire", Path: Tulle, Case: "tcp/1-flow"}, {Underlay: "veth", Path: Tulle, Case: "tcp/4-flows"}}}
	for underlay, gbps := range map[string]float64{"veth": 4, "wire": 9} { // of 10, and must be 5 and 6.2, with aims of 6.2 and 7.5
		r.Figures = append(r.Figures, Figure{1, underlay, Tulle, "tcp/1-flow", gbps, Gbps, nil}, Figure{1, underlay, kernel, "tcp/1-flow", 10, Gbps, nil})
	}
	want := []string{"TCP stream, 1 flow, tulle, VXLAN on veth: 1.9 CPUs busy, 1.2 of them the daemons': waiting 60% (kernel 30%), deciding 40%"}
	if got := r.explained(r.Verdicts()); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
