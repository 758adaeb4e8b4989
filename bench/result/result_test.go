package result

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/search"
)

// sample is a result with rounds of figures around given values, by path.
func sample(rounds int, tulle float64) *Result {
	r := &Result{SchemaVersion: SchemaVersion, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Preset: "table", Family: "v4", Rounds: rounds,
		Reference: "kernel", Environment: Environment{Kernel: "6.18", CPU: "a <CPU> & more", CPUs: 2, Offloads: map[string][]string{"veth": {"rx-gro"}}},
		Paths:    []Path{{"bare", "bare veth"}, {"kernel", "kernel VXLAN"}, {"tulle", "tulle & co"}},
		Failures: []Failure{}}
	for round := 1; round <= rounds; round++ {
		drift := 1 + float64(round)/10 // the machine's, that ratios know nothing of
		add := func(underlay, path, name, unit string, v float64, flags ...string) {
			r.Figures = append(r.Figures, Figure{round, underlay, path, name, v * drift, unit, flags})
		}
		add("", "bare", "tcp/1-flow", Gbps, 40)
		for _, underlay := range []string{"veth", "wire"} {
			add(underlay, "kernel", "tcp/1-flow", Gbps, 10)
			add(underlay, "tulle", "tcp/1-flow", Gbps, tulle*10)
			add(underlay, "kernel", "udp-64B/1-flow/delay/10%-load/p50", Nanosecond, 50e3)
			add(underlay, "tulle", "udp-64B/1-flow/delay/10%-load/p50", Nanosecond, 50e3/tulle)
			add(underlay, "kernel", "udp-64B/1-flow/delay/10%-load/max", Nanosecond, 5e6)
			add(underlay, "tulle", "udp-64B/1-flow/no-drop", PerSecond, 900e3, GeneratorBound)
		}
	}
	r.Trials = []Trial{{Round: 1, Path: "tulle", Case: "x", UDP: &bench.UDPResult{Sent: 5, Counts: bench.Counts{Received: 4}, Elapsed: time.Second}},
		{Search: &search.Figure{Rate: 5}}, {TCP: &bench.TCPResult{Bytes: 7}}, {Transact: &bench.TransactResult{Count: 9}}}
	return r
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "result.json")
	want := sample(3, 0.5)
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var lines bytes.Buffer
	if err := want.WriteLines(&lines); err != nil {
		t.Fatal(err)
	}
	again := new(Result)
	if err := json.Unmarshal(lines.Bytes(), again); err != nil || bytes.Count(lines.Bytes(), []byte("\n")) != len(want.Figures) {
		t.Errorf("%d lines for %d figures, %v", bytes.Count(lines.Bytes(), []byte("\n")), len(want.Figures), err)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Error(diff)
	}
	for _, content := range []string{"", "{", `{"schemaVersion":99}`} {
		os.WriteFile(path, []byte(content), 0o600)
		if _, err := Load(path); err == nil {
			t.Errorf("%q: no error", content)
		}
	}
	b, _ := json.Marshal(want.Trials[0])
	if want := `{"round":1,"underlay":"","path":"tulle","case":"x","udp":{"offered":0,"elapsed":1000000000,"sent":5,"received":4,`; !strings.HasPrefix(string(b), want) {
		t.Errorf("trial: %s, want %s...", b, want)
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{7}, Spread{1, 7, 7, 7}},
		{[]float64{9, 1, 4}, Spread{3, 4, 1, 9}},
		{[]float64{4, 1, 3, 2}, Spread{4, 2.5, 1, 4}},
	} {
		if got := spread(test.values); got != test.want {
			t.Errorf("%v: %+v, want %+v", test.values, got, test.want)
		}
	}
	if p := (Spread{3, 100, 90, 110}).Percent(); p != 10 {
		t.Errorf("percent %v", p)
	}
}

// Known p values of the exact one-sided test: 1/C(6,3), 1/C(10,5), and wilcox.test's for the others.
func TestMannWhitney(t *testing.T) {
	for _, test := range []struct {
		a, b []float64
		want float64
	}{
		{[]float64{1, 2, 3}, []float64{4, 5, 6}, 1.0 / 20},
		{[]float64{4, 5, 6}, []float64{1, 2, 3}, 1},
		{[]float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}, 1.0 / 252},
		{[]float64{1, 2, 4}, []float64{3, 5, 6}, 2.0 / 20},
		{[]float64{1, 1, 1}, []float64{1, 1, 1}, 1},
		{[]float64{1}, []float64{2}, 1.0 / 2},
		{nil, []float64{2}, 1},
	} {
		if got := smaller(test.a, test.b); math.Abs(got-test.want) > 1e-12 {
			t.Errorf("%v < %v: p = %v, want %v", test.a, test.b, got, test.want)
		}
	}
}

// The p of two samples of one thing is at most alpha in at most alpha of the cases.
func TestMannWhitneyChance(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random, hits := rand.New(rand.NewPCG(seed, 0)), 0
	const runs = 2000
	draw := func() (v []float64) {
		for range 5 {
			v = append(v, random.NormFloat64())
		}
		return v
	}
	for range runs {
		if smaller(draw(), draw()) <= 0.05 {
			hits++
		}
	}
	if hits > runs*8/100 { // six standard deviations above 5%
		t.Errorf("%d of %d by chance", hits, runs)
	}
}

// The test against a count of all permutations' rank sums by another way: dynamic programming over sums.
func TestMannWhitneyAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SliceOfN(rapid.Map(rapid.IntRange(0, 8), func(i int) float64 { return float64(i) }), 1, 5)
		a, b := value.Draw(t, "a"), value.Draw(t, "b")
		all := append(append([]float64{}, a...), b...)
		twice := func(v float64) (sum int) { // of the mean rank
			for _, w := range all {
				if w < v {
					sum += 2
				} else if w == v {
					sum++
				}
			}
			return sum + 1
		}
		observed := 0
		for _, v := range a {
			observed += twice(v)
		}
		ways := map[[2]int]int{{0, 0}: 1} // by number chosen and twice the rank sum
		for _, v := range all {
			next := map[[2]int]int{}
			for k, n := range ways {
				next[k] += n
				next[[2]int{k[0] + 1, k[1] + twice(v)}] += n
			}
			ways = next
		}
		within, total := 0, 0
		for k, n := range ways {
			if k[0] == len(a) {
				total += n
				if k[1] <= observed {
					within += n
				}
			}
		}
		if got, want := smaller(a, b), float64(within)/float64(total); math.Abs(got-want) > 1e-9 {
			t.Errorf("%v < %v: %v, want %v", a, b, got, want)
		}
	})
}

func TestSummary(t *testing.T) {
	rows := sample(3, 0.5).Summary()
	var got []string
	for _, row := range rows {
		got = append(got, fmt.Sprintf("%s %s %s %.4g %.3g %v", row.Underlay, row.Name, row.Path, row.Value.Median, row.Ratio.Median, row.Flags))
	}
	want := []string{
		" tcp/1-flow bare 48 0 []",
		"veth tcp/1-flow kernel 12 1 []", "veth tcp/1-flow tulle 6 0.5 []",
		"veth udp-64B/1-flow/delay/10%-load/p50 kernel 6e+04 1 []", "veth udp-64B/1-flow/delay/10%-load/p50 tulle 1.2e+05 2 []",
		"veth udp-64B/1-flow/delay/10%-load/max kernel 6e+06 1 []", "veth udp-64B/1-flow/no-drop tulle 1.08e+06 0 [generator-bound]",
		"wire tcp/1-flow kernel 12 1 []", "wire tcp/1-flow tulle 6 0.5 []",
		"wire udp-64B/1-flow/delay/10%-load/p50 kernel 6e+04 1 []", "wire udp-64B/1-flow/delay/10%-load/p50 tulle 1.2e+05 2 []",
		"wire udp-64B/1-flow/delay/10%-load/max kernel 6e+06 1 []", "wire udp-64B/1-flow/no-drop tulle 1.08e+06 0 [generator-bound]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if s := rows[2].Ratio; s.Min != s.Max {
		t.Errorf("ratios spread over rounds of one drift: %+v", s)
	}
}

// noisy spreads a result's figures by a part at random.
func noisy(r *Result, part float64, random *rand.Rand) *Result {
	for i := range r.Figures {
		r.Figures[i].Value *= 1 + part*(2*random.Float64()-1)
	}
	return r
}

func TestRegressions(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	old := noisy(sample(5, 0.5), 0.01, random)
	for _, test := range []struct {
		name  string
		now   *Result
		worse int
	}{
		{"the same", noisy(sample(5, 0.5), 0.01, random), 0},
		{"better", noisy(sample(5, 0.7), 0.01, random), 0},
		{"a little worse", noisy(sample(5, 0.49), 0.01, random), 0},
		{"much worse", noisy(sample(5, 0.4), 0.01, random), 4}, // rate and delay, on both underlays
		{"one round much worse: not significant", sample(1, 0.3), 0},
	} {
		worse, compared := test.now.Regressions(old, 0.05)
		if len(worse) != test.worse || compared != 4 {
			t.Errorf("%s: %d of %d, want %d of 4: %+v", test.name, len(worse), compared, test.worse, worse)
		}
	}
	if _, compared := old.Regressions(&Result{}, 0.05); compared != 0 {
		t.Errorf("%d compared with nothing", compared)
	}
}

// Worse on one round of five, however much, is no regression.
func TestRegressionNeedsMoreThanOneRound(t *testing.T) {
	old, now := sample(5, 0.5), sample(5, 0.5)
	for i, f := range now.Figures {
		if f.Round == 3 && f.Path == "tulle" {
			now.Figures[i].Value /= 10
		}
	}
	if worse, _ := now.Regressions(old, 0.05); len(worse) > 0 {
		t.Errorf("%+v", worse)
	}
}

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		v    float64
		unit string
		want string
	}{{1234567, PerSecond, "1.23 Mpps"}, {45600, PerSecond, "45.6 kpps"}, {12, Transacts, "12 tps"}, {999, Nanosecond, "999 ns"}, {1500, Nanosecond, "1.5 us"},
		{2e6, Nanosecond, "2.00 ms"}, {9.876, Gbps, "9.88 Gb/s"}, {3100, CPUPacket, "3.1 us CPU/packet"}, {0.1234, CPUGigabit, "0.123 CPU-s/Gb"}, {64, "B/flow", "64 B/flow"}} {
		if got := Format(test.v, test.unit); got != test.want {
			t.Errorf("%v %s: %q, want %q", test.v, test.unit, got, test.want)
		}
	}
}

// The page is well-formed, names nothing outside itself, and escapes what it is given.
func TestHTML(t *testing.T) {
	for _, r := range []*Result{sample(3, 0.5), sample(1, 3), {Figures: []Figure{{Path: "p", Name: "x", Unit: Gbps}}}} {
		var b bytes.Buffer
		if err := r.WriteHTML(&b); err != nil {
			t.Fatal(err)
		}
		checkHTML(t, b.String())
	}
	var b bytes.Buffer
	r := sample(3, 0.5)
	r.WriteHTML(&b)
	for _, want := range []string{"a &lt;CPU&gt; &amp; more", "tulle &amp; co", "Where tulle loses", "0.50x (0.50-0.50)", "generator-bound", "prefers-color-scheme: dark",
		`name="viewport"`, "<polyline points=\"80,"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if strings.Contains(b.String(), "Where tulle wins") {
		t.Error("tulle wins at half the kernel's rates")
	}
}

func checkHTML(t *testing.T, page string) {
	t.Helper()
	for _, outside := range []string{"http:", "https:", "src=", "href=", "url(", "@import", "<script", "ZgotmplZ", "NaN", "Inf"} {
		if strings.Contains(page, outside) {
			t.Errorf("%q in the page", outside)
		}
	}
	// HTML's void elements end themselves; the rest of the page is XML too.
	d := xml.NewDecoder(strings.NewReader(regexp.MustCompile(`<(meta|br|!doctype)[^>]*>`).ReplaceAllString(page, "")))
	d.Strict, d.Entity = true, xml.HTMLEntity
	for {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestMarkdown(t *testing.T) {
	var b bytes.Buffer
	if err := sample(3, 0.5).WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	columns := 0
	for line := range strings.Lines(b.String()) {
		n := strings.Count(line, "|")
		if n > 0 && columns > 0 && n != columns {
			t.Errorf("%d columns after %d: %s", n, columns, line)
		}
		columns = n
	}
	if want := "| tcp/1-flow | 12.00 Gb/s | 6.00 Gb/s, 0.50x (0.50-0.50) |\n"; !strings.Contains(b.String(), want) {
		t.Errorf("no %q in:\n%s", want, &b)
	}
}

// Every line is one that benchstat's format has: a unit's, a configuration's or a benchmark's of name, number and value with unit.
func TestGoBench(t *testing.T) {
	var b bytes.Buffer
	r := sample(3, 0.5)
	if err := r.WriteGoBench(&b); err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^(Benchmark[A-Z]\S* 1 [0-9.e+]+ \S+|Unit \S+ better=(higher|lower)|[a-z]+: .*)\n$`)
	n := 0
	for line := range strings.Lines(b.String()) {
		if !form.MatchString(line) {
			t.Errorf("%q", line)
		}
		if strings.HasPrefix(line, "Benchmark") {
			n++
		}
	}
	if n != len(r.Figures) {
		t.Errorf("%d benchmarks for %d figures", n, len(r.Figures))
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	r := sample(3, 0.5)
	r.Environment.Load[0] = 3
	r.Failures = []Failure{{2, "wire", "tulle", "tcp/1-flow", "no way"}}
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"load average 3.00", "Do not publish", "no way", "underlay wire", "TO KERNEL"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, &b)
		}
	}
}

func TestExplain(t *testing.T) {
	for name, want := range map[string]string{
		"udp-64B/256-flows/no-drop":         "UDP of 64 bytes, 256 flows, highest rate with nothing lost",
		"tcp/1-flow":                        "TCP stream, 1 flow",
		"udp-64B/1-flow/delay/10%-load":     "UDP of 64 bytes, 1 flow, one-way delay, at 10% of the no-drop rate",
		"something/new":                     "something, new",
		"udp-64B/1-flow/delay/10%-load/p99": "UDP of 64 bytes, 1 flow, one-way delay, at 10% of the no-drop rate, p99",
	} {
		if got := Explain(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
