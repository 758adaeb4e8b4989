package result

import (
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
)

// percentiles are the last parts of names that a plot puts side by side.
var percentiles = []string{"p50", "p90", "p99", "p99.9", "max"}

// percentile splits a figure's name if it is one.
func percentile(name string) (of, which string, ok bool) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 || !slices.Contains(percentiles, name[i+1:]) {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}

// plot is a line for each path over the percentiles. Coordinates are in the units of page.html's viewBox.
type plot struct {
	Title         string
	Rows, Columns []mark
	Lines         []line
}

type mark struct {
	X, Y float64
	Text string
}

type line struct {
	Path, Points string
	Color        template.CSS
	Dots         []mark
}

const plotLeft, plotRight, plotTop, plotBottom = 80.0, 440.0, 14.0, 240.0

// plots are those of one underlay.
func (r *Result) plots(underlay string, rows []Row) (plots []plot) {
	var groups []string
	of := map[string][]Row{}
	for _, row := range rows {
		if group, _, ok := percentile(row.Name); ok && row.Underlay == underlay && row.Value.Median > 0 {
			if of[group] == nil {
				groups = append(groups, group)
			}
			of[group] = append(of[group], row)
		}
	}
	for _, group := range groups {
		plots = append(plots, r.plot(group, of[group]))
	}
	return plots
}

func (r *Result) plot(group string, rows []Row) plot {
	p := plot{Title: Explain(group)}
	low, high := math.Inf(1), 0.0
	have := map[string]bool{}
	for _, row := range rows {
		low, high = min(low, row.Value.Median), max(high, row.Value.Median)
		_, which, _ := percentile(row.Name)
		have[which] = true
	}
	first, last := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high)+1e-9)
	y := func(v float64) float64 {
		return math.Round(plotBottom - (math.Log10(v)-first)/(last-first)*(plotBottom-plotTop))
	}
	for e := first; e <= last; e++ {
		p.Rows = append(p.Rows, mark{Y: y(math.Pow(10, e)), Text: power(e)})
	}
	x := map[string]float64{}
	for _, which := range percentiles {
		if have[which] {
			x[which] = float64(len(x))
		}
	}
	for which, i := range x {
		x[which] = math.Round(plotLeft + i/max(float64(len(x)-1), 1)*(plotRight-plotLeft))
	}
	for _, which := range percentiles {
		if have[which] {
			p.Columns = append(p.Columns, mark{X: x[which], Text: which})
		}
	}
	for _, path := range r.PathNames() {
		if l := r.line(path, rows, x, y); len(l.Dots) > 0 {
			p.Lines = append(p.Lines, l)
		}
	}
	return p
}

func (r *Result) line(path string, rows []Row, x map[string]float64, y func(float64) float64) line {
	l := line{Path: path, Color: r.color(path)}
	var points []string
	for _, row := range rows {
		if row.Path != path {
			continue
		}
		_, which, _ := percentile(row.Name)
		at := mark{x[which], y(row.Value.Median), path + " " + which + ": " + Format(row.Value.Median, row.Unit)}
		l.Dots = append(l.Dots, at)
		points = append(points, fmt.Sprintf("%g,%g", at.X, at.Y))
	}
	l.Points = strings.Join(points, " ")
	return l
}

// power writes a power of ten nanoseconds.
func power(e float64) string {
	units := []string{"ns", "us", "ms", "s"}
	i := min(max(int(e)/3, 0), len(units)-1)
	return fmt.Sprintf("%g %s", math.Pow(10, e-float64(3*i)), units[i])
}
