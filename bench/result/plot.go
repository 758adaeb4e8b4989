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

// plot is lines over columns, with a logarithmic scale. Coordinates are in the units of page.html's viewBox.
type plot struct {
	Title         string
	Caption       string
	Across, Up    string // what the axes are
	Rows, Columns []mark
	Lines         []line
}

type mark struct {
	X, Y      float64
	Low, High float64 // heights of the least and the most; equal for none
	Text      string
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
		if group, _, ok := percentile(row.Name); ok && row.Underlay == underlay && row.Value.Min > 0 {
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
	p := plot{Title: Explain(group), Caption: "medians over the rounds with the least and the most, on a logarithmic scale", Across: "percentile", Up: "time"}
	var values []float64
	have := map[string]bool{}
	for _, row := range rows {
		values = append(values, row.Value.Min, row.Value.Max)
		_, which, _ := percentile(row.Name)
		have[which] = true
	}
	y := p.scale(values, Nanosecond)
	columns := slices.DeleteFunc(slices.Clone(percentiles), func(which string) bool { return !have[which] })
	x := p.columns(columns)
	for _, path := range r.PathNames() {
		l := line{Path: path, Color: r.color(path)}
		for _, row := range rows {
			if _, which, _ := percentile(row.Name); row.Path == path {
				l.add(x[slices.Index(columns, which)], y(row.Value.Median), path+" "+which+": "+row.Shown())
				last := &l.Dots[len(l.Dots)-1]
				last.Low, last.High = y(row.Value.Min), y(row.Value.Max)
			}
		}
		if len(l.Dots) > 0 {
			p.Lines = append(p.Lines, l)
		}
	}
	return p
}

// scale rules the plot by powers of ten around values, which must be positive, and gives the height of a value.
func (p *plot) scale(values []float64, unit string) (y func(float64) float64) {
	first, last := math.Floor(math.Log10(slices.Min(values))), math.Ceil(math.Log10(slices.Max(values)))
	last = max(last, first+1)
	y = func(v float64) float64 {
		return math.Round(plotBottom - (math.Log10(v)-first)/(last-first)*(plotBottom-plotTop))
	}
	for e := first; e <= last; e++ {
		text := power(e)
		if unit != Nanosecond && unit != PerOp {
			text = fmt.Sprintf("%g", math.Pow(10, e))
		}
		p.Rows = append(p.Rows, mark{Y: y(math.Pow(10, e)), Text: text})
	}
	return y
}

// columns puts texts side by side and gives their places.
func (p *plot) columns(texts []string) (x []float64) {
	for i, text := range texts {
		x = append(x, math.Round(plotLeft+float64(i)/max(float64(len(texts)-1), 1)*(plotRight-plotLeft)))
		p.Columns = append(p.Columns, mark{X: x[i], Text: text})
	}
	return x
}

func (l *line) add(x, y float64, text string) {
	l.Dots = append(l.Dots, mark{X: x, Y: y, Text: text})
	l.Points = strings.TrimSpace(fmt.Sprintf("%s %g,%g", l.Points, x, y))
}

// power writes a power of ten nanoseconds.
func power(e float64) string {
	units := []string{"ns", "us", "ms", "s"}
	i := min(max(int(e)/3, 0), len(units)-1)
	return fmt.Sprintf("%g %s", math.Pow(10, e-float64(3*i)), units[i])
}

// curvePlots has one for each benchmark and unit; what is zero everywhere, as allocations are, needs none.
func (r *Result) curvePlots() (plots []plot) {
	for i := 0; i < len(r.Curves); {
		n := 1
		for i+n < len(r.Curves) && r.Curves[i].besides(r.Curves[i+n]) {
			n++
		}
		if p, ok := curvePlot(r.Curves[i : i+n]); ok {
			plots = append(plots, p)
		}
		i += n
	}
	return plots
}

func curvePlot(curves []Curve) (p plot, ok bool) {
	c := curves[0]
	p = plot{Title: c.Benchmark + ", " + c.Unit, Caption: "by number of " + c.Parameter + ", on a logarithmic scale", Across: c.Parameter, Up: c.Unit}
	var values []float64
	for _, c := range curves {
		for _, point := range c.Points {
			if point.Y > 0 {
				values = append(values, point.Y)
			}
		}
	}
	if len(values) == 0 {
		return p, false
	}
	y := p.scale(values, c.Unit)
	var sizes []string
	for _, point := range c.Points {
		sizes = append(sizes, thousands(point.X))
	}
	x := p.columns(sizes)
	for i, c := range curves {
		l := line{Path: c.Variant, Color: template.CSS(fmt.Sprintf("--p%d", (i+2)%colors))}
		for j, point := range c.Points {
			if point.Y > 0 {
				l.add(x[j], y(point.Y), fmt.Sprintf("%s, %s %s: %.4g %s", c.Variant, sizes[j], c.Parameter, point.Y, c.Unit))
			}
		}
		p.Lines = append(p.Lines, l)
	}
	return p, true
}

// thousands writes a size.
func thousands(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%gk", v/1e3)
	}
	return fmt.Sprintf("%g", v)
}
