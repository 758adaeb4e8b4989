package main

import (
	"strings"
	"testing"
)

// TestVerdict demands that each thing which must not happen fails a run, and nothing else does.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		what, want string
		spoil      func(*report)
	}{
		{"nothing", "", func(*report) {}},
		{"loss and refusals", "", func(r *report) { r.Traffic.Received, r.Traffic.Refused = 1, 50 }},
		{"a change", "arrived changed", func(r *report) { r.Traffic.Changed = 1 }},
		{"a lost connection", "connections lost", func(r *report) { r.Traffic.Lost = 1 }},
		{"a second copy", "1 datagrams arrived twice", func(r *report) { r.add(event{Traffic: traffic{Duplicates: 1}}) }},
		{"another order", "1 out of order", func(r *report) { r.add(event{Traffic: traffic{Reordered: 1}}) }},
		{"both on a bad wire, and with the slices that it began", "", func(r *report) {
			r.add(event{spoil: badWire, Traffic: traffic{Duplicates: 9, Reordered: 9}})
			r.add(event{Traffic: traffic{Duplicates: 9}})
		}},
		{"a second copy two events behind a bad wire", "arrived twice", func(r *report) {
			r.add(event{spoil: badWire})
			r.add(event{})
			r.add(event{Traffic: traffic{Duplicates: 1}})
		}},
		{"another order when somebody has deleted neighbours", "", func(r *report) {
			r.add(event{spoil: overtaken, Traffic: traffic{Reordered: 9}})
			r.add(event{Traffic: traffic{Reordered: 9}})
		}},
		{"a second copy then", "arrived twice", func(r *report) { r.add(event{spoil: overtaken, Traffic: traffic{Duplicates: 1}}) }},
		{"who does not come back", "n2: TAP deleted: not over", func(r *report) { r.add(event{Node: "n2", Fault: "TAP deleted", Error: "not over"}) }},
		{"no traffic", "no traffic", func(r *report) { r.Traffic = traffic{} }},
		{"growth", "a daemon grows", func(r *report) { r.Growth.Goroutines = mayGrow + 1 }},
	} {
		r := report{Traffic: traffic{Sent: 100, Received: 100, Exchanges: 100}}
		c.spoil(&r)
		err := r.verdict()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
}
