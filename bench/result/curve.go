package result

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Curve is how a cost changes with a size: conntrack's lookup with the number of flows.
type Curve struct {
	Benchmark string  `json:"benchmark"` // package and function, such as conntrack.Lookup
	Variant   string  `json:"variant"`   // what else the benchmark's name says, such as v4/hit=true
	Parameter string  `json:"parameter"` // such as flows
	Unit      string  `json:"unit"`
	Points    []Point `json:"points"` // by X, rising
}

// Point is the median of the runs with one size.
type Point struct {
	X float64 `json:"x"`
	Y float64 `json:"y"`
}

// sized is the part of a benchmark's name that a curve is over.
var sized = regexp.MustCompile(`/([a-z]+)=(\d+)\b`)

// procs is what the testing package puts behind a name: GOMAXPROCS.
var procs = regexp.MustCompile(`-\d+$`)

// kept are the units that make curves; medianTime is better than the mean that testing reports, and stands for it where it is.
const medianTime = "median-ns/op"

func kept(unit string) bool {
	return unit == PerOp || unit == medianTime || unit == "allocs/op" || unit == CPUPacket || unit == Allocs || unit == "lost/packet" || unit == "MiB/daemon" || strings.HasPrefix(unit, "B/") && unit != "B/op"
}

// curveKey is a Curve without its points.
type curveKey struct{ benchmark, variant, parameter, unit string }

// ReadCurves reads the output of go test -bench: benchmarks with a number in their names, as in flows=1000, become a curve for each
// unit. Anything else is passed over.
func ReadCurves(in io.Reader) ([]Curve, error) {
	values, pkg := map[curveKey]map[float64][]float64{}, ""
	s := bufio.NewScanner(in)
	for s.Scan() {
		if p, ok := strings.CutPrefix(s.Text(), "pkg: "); ok {
			pkg = path.Base(p)
		}
		if err := readBenchmark(s.Text(), pkg, values); err != nil {
			return nil, err
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return curves(values), nil
}

// readBenchmark adds the values of one line of output.
func readBenchmark(text, pkg string, values map[curveKey]map[float64][]float64) error {
	fields := strings.Fields(text)
	if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
		return nil
	}
	name := procs.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
	size := sized.FindStringSubmatch(name)
	if size == nil {
		return nil
	}
	x, err := strconv.ParseFloat(size[2], 64)
	if err != nil {
		return fmt.Errorf("benchmark %q: %w", text, err)
	}
	function, variant, _ := strings.Cut(strings.Replace(name, size[0], "", 1), "/")
	for i := 2; i+1 < len(fields); i += 2 {
		y, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return fmt.Errorf("benchmark %q: %w", text, err)
		}
		if !kept(fields[i+1]) {
			continue
		}
		k := curveKey{pkg + "." + function, variant, size[1], fields[i+1]}
		if values[k] == nil {
			values[k] = map[float64][]float64{}
		}
		values[k][x] = append(values[k][x], y)
	}
	return nil
}

func curves(values map[curveKey]map[float64][]float64) (all []Curve) {
	for k, points := range values {
		if _, better := values[curveKey{k.benchmark, k.variant, k.parameter, medianTime}]; better && k.unit == PerOp {
			continue
		}
		c := Curve{Benchmark: k.benchmark, Variant: k.variant, Parameter: k.parameter, Unit: k.unit}
		if k.unit == medianTime {
			c.Unit = PerOp
		}
		for _, x := range slices.Sorted(maps.Keys(points)) {
			c.Points = append(c.Points, Point{x, spread(points[x]).Median})
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Curve) int {
		return strings.Compare(a.Benchmark+"\x00"+a.Unit+"\x00"+a.Variant, b.Benchmark+"\x00"+b.Unit+"\x00"+b.Variant)
	})
	return all
}

// writeCurves writes a table for each benchmark and unit: a row for each variant, a column for each size.
func (r *Result) writeCurves(w io.Writer) error {
	for i, c := range r.Curves {
		if i == 0 || !c.besides(r.Curves[i-1]) {
			fmt.Fprintf(w, "\n### %s, %s by %s\n\n| |", c.Benchmark, c.Unit, c.Parameter)
			for _, p := range c.Points {
				fmt.Fprintf(w, " %g |", p.X)
			}
			fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---|", len(c.Points)))
		}
		fmt.Fprintf(w, "| %s |", c.Variant)
		for _, p := range c.Points {
			fmt.Fprintf(w, " %.4g |", p.Y)
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	return nil
}

// besides says that two curves belong into one picture.
func (c Curve) besides(o Curve) bool {
	return c.Benchmark == o.Benchmark && c.Unit == o.Unit && c.Parameter == o.Parameter && len(c.Points) == len(o.Points)
}
