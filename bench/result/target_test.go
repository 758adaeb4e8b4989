package result

import (
	"bytes"
	"strings"
	"testing"
)

// figures is a result of values by path, one a round.
func figures(underlay, name, unit string, byPath map[string][]float64, flags map[string][]string) *Result {
	r := sample(0, 1)
	for path, values := range byPath {
		for i, v := range values {
			r.Rounds = max(r.Rounds, i+1)
			r.Figures = append(r.Figures, Figure{i + 1, underlay, path, name, v, unit, flags[path]})
		}
	}
	return r
}

func TestVerdict(t *testing.T) {
	rate := Target{Title: "rate", Underlay: "veth", Path: "tulle", Name: "x", Against: "kernel", Must: 0.5, Aim: 0.6}
	trip := Target{Title: "trip", Path: "tulle", Name: "x", Against: "kernel", AtMost: true, Must: 1.6, Aim: 1.3}
	memory := Target{Title: "memory", Path: "tulle", Name: "x", AtMost: true, Must: 128}
	cpu := Target{Title: "cpu", Path: "tulle", Name: "x", Against: "kernel", AtMost: true, Aim: 1}
	told := Target{Title: "told", Path: "tulle", Name: "x", Against: "kernel"}
	limited := func(path string) map[string][]string { return map[string][]string{path: {GeneratorBound}} }
	for i, test := range []struct {
		target        Target
		tulle, kernel []float64
		flags         map[string][]string
		state, shown  string
	}{
		{rate, []float64{7, 5, 4}, []float64{10, 10, 5}, nil, Aimed, "rate, veth|5.00 Gb/s|0.70x kernel|0.50-0.80|>= 0.5x|>= 0.6x|aim met"},
		{rate, []float64{5}, []float64{10}, nil, Met, "rate, veth|5.00 Gb/s|0.50x kernel||>= 0.5x|>= 0.6x|met"},
		{rate, []float64{4}, []float64{10}, nil, Missed, "rate, veth|4.00 Gb/s|0.40x kernel||>= 0.5x|>= 0.6x|NOT met"},
		{rate, nil, []float64{10}, nil, NotMeasured, "rate, veth||||>= 0.5x|>= 0.6x|not measured"},
		{rate, []float64{10}, nil, nil, NotMeasured, ""},
		// The generator held the kernel back: no ratio. It held tulle back: a bound, which can show that it is met and not that it isn't.
		{rate, []float64{7}, []float64{10}, limited("kernel"), Refused, "rate, veth|7.00 Gb/s|||>= 0.5x|>= 0.6x|refused"},
		{rate, []float64{7}, []float64{10}, limited("tulle"), Aimed, "rate, veth|>= 7.00 Gb/s|>= 0.70x kernel||>= 0.5x|>= 0.6x|aim met"},
		{rate, []float64{4}, []float64{10}, limited("tulle"), Refused, ""},
		{trip, []float64{13}, []float64{10}, nil, Aimed, ""},
		{trip, []float64{16}, []float64{10}, nil, Met, ""},
		{trip, []float64{17}, []float64{10}, nil, Missed, "trip|17.00 Gb/s|1.70x kernel||<= 1.6x|<= 1.3x|NOT met"},
		{memory, []float64{128}, nil, nil, Met, ""},
		{memory, []float64{129}, nil, nil, Missed, "memory|129.00 Gb/s|||<= 128.00 Gb/s||NOT met"},
		{cpu, []float64{9}, []float64{10}, nil, Aimed, ""},
		{cpu, []float64{11}, []float64{10}, nil, Reported, ""},
		{told, []float64{11}, []float64{10}, nil, Reported, "told|11.00 Gb/s|1.10x kernel||||reported"},
	} {
		v := figures(test.target.Underlay, "x", Gbps, map[string][]float64{"tulle": test.tulle, "kernel": test.kernel}, test.flags).verdict(test.target)
		if shown := strings.Join(v.Texts(), "|"); v.State != test.state || test.shown != "" && shown != test.shown {
			t.Errorf("%d: %s, want %s\n%s, want\n%s", i, v.State, test.state, shown, test.shown)
		}
	}
}

// The table is in every report for people, and is not where nothing of it was measured.
func TestTargetsInReports(t *testing.T) {
	for name, write := range map[string]func(*Result, *bytes.Buffer) error{
		"table":    func(r *Result, w *bytes.Buffer) error { return r.WriteTable(w) },
		"html":     func(r *Result, w *bytes.Buffer) error { return r.WriteHTML(w) },
		"markdown": func(r *Result, w *bytes.Buffer) error { return r.WriteMarkdown(w) },
	} {
		var with, without bytes.Buffer
		if err := write(sample(3, 0.55), &with); err != nil {
			t.Fatal(err)
		}
		tally := "1 of 31 musts met, 0 of them with their aim; 1 NOT met; 29 not measured"
		text := strings.ReplaceAll(with.String(), "&lt;", "<")
		for _, want := range []string{tally, "TCP, 1 flow, veth", "FIB lookup, 1M routes, all in use, IPv6", Missed, Met} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		r := figures("", "x", Gbps, map[string][]float64{"this": {1}}, nil)
		if err := write(r, &without); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(without.String(), "FIB lookup") {
			t.Errorf("%s: the table without a figure", name)
		}
	}
}

// What the generator limited is shown as a bound, without ratio.
func TestRefusedFigure(t *testing.T) {
	for _, flag := range []string{GeneratorBound, GeneratorUntested} {
		r := figures("veth", "x", PerSecond, map[string][]float64{"kernel": {1e6}, "tulle": {2e6}}, map[string][]string{"tulle": {flag}})
		row := r.Summary()[1]
		if row.Shown() != ">= 2.00 Mpps" || row.Ratio.N != 0 || !row.Refused() {
			t.Errorf("%s: %q, ratio %+v", flag, row.Shown(), row.Ratio)
		}
		var b bytes.Buffer
		r.WriteTable(&b)
		if !strings.Contains(b.String(), ">= 2.00 Mpps") || !strings.Contains(b.String(), flag) || strings.Contains(b.String(), "2.00x") {
			t.Error(b.String())
		}
	}
}
