package lookup

import (
	"math"
	"slices"
	"testing"
)

// Every table is measured for both families, and a flow's memory is what conntrack's package doc says.
func TestMeasure(t *testing.T) {
	costs, err := Measure(10_000)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range costs {
		names = append(names, c.Name)
		if c.Value <= 0 {
			t.Errorf("%+v", c)
		}
		if want := map[string]float64{"conntrack/memory/v4": 128, "conntrack/memory/v6": 256}[c.Name]; want > 0 && math.Abs(c.Value-want) > 1 {
			t.Errorf("%s: %v", c.Name, c.Value)
		}
	}
	want := []string{"memory/load", "fib/10000-routes/256-used/v4", "fib/10000-routes/10000-used/v4", "conntrack/256-flows/v4", "conntrack/10000-flows/v4", "conntrack/memory/v4",
		"fib/10000-routes/256-used/v6", "fib/10000-routes/10000-used/v6", "conntrack/256-flows/v6", "conntrack/10000-flows/v6", "conntrack/memory/v6"}
	if !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	if costs, err := Measure(1); err != nil || len(costs) != 7 {
		t.Errorf("%v, %v", costs, err)
	}
}
