package result

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what page.html shows.
type page struct {
	Date, Reference string
	Lines, Warnings []string
	Tally           string
	Targets         []target
	Explanation     string
	Explained       []string
	Lost, Won       outcomeChart
	Sections        []section
	Curves          []plot
	Restarts        [][]string // the head first
	Rows            [][]string
}

// target is a line of the page's first table: a verdict, and on a logarithmic scale where it is between the must and the aim.
type target struct {
	Title                       string
	Cells                       []string // those of Verdict.Texts between title and state
	State, Class                string
	Must, Aim, Got, Least, Most float64 // thousandths of the scale's width; 0 for none
}

// outcomeChart is bars from one to the right. Places are in thousandths of its width.
type outcomeChart struct {
	Scale []string // at 0, 245, 490, 735 and 980
	Bars  []outcomeBar
	More  string
}

type outcomeBar struct {
	Title, Underlay, Value, Ratio, Class string
	Width, Low, High                     float64
}

type section struct {
	Title  string
	Charts []chart
	Plots  []plot
}

// chart is bars of one figure. Lengths are in thousandths of its width.
type chart struct {
	Title, Name, Better string
	Reference           float64 // 0 for none
	Bars                []bar
}

type bar struct {
	Path, Title, Value, Ratio, Class, Note string
	Color                                  template.CSS
	Median, Low, High                      float64
}

// WriteHTML writes a page that needs nothing from elsewhere.
func (r *Result) WriteHTML(w io.Writer) error { return pageTemplate.Execute(w, r.page()) }

func (r *Result) page() page {
	rows := r.Summary()
	p := page{Date: r.Created.Format("2006-01-02"), Reference: r.title(r.Reference), Lines: r.about(), Warnings: r.warnings()}
	if all := r.Verdicts(); judged(all) {
		p.Tally = Tally(all)
		for _, v := range all {
			p.Targets = append(p.Targets, newTarget(v))
		}
		p.Explanation, p.Explained = explanation, r.explained(all)
	}
	lost, won := outcomes(rows)
	p.Lost, p.Won = r.outcomeBars(lost), r.outcomeBars(won)
	underlays := r.Underlays()
	slices.SortStableFunc(underlays, func(a, b string) int { return btoi(a == "") - btoi(b == "") }) // the generator's own last
	for _, underlay := range underlays {
		p.Sections = append(p.Sections, r.section(underlay, rows))
	}
	p.Curves, p.Restarts = r.curvePlots(), r.restartRows()
	for _, row := range rows {
		p.Rows = append(p.Rows, []string{row.Underlay, row.Name, row.Path, row.Shown(), Format(row.Value.Min, row.Unit),
			Format(row.Value.Max, row.Unit), r.Ratio(row), strings.Join(row.Flags, ", ")})
	}
	return p
}

// newTarget puts a verdict on a scale from a sixteenth of what must be, or of what is aimed at, to sixteen times that.
func newTarget(v Verdict) target {
	cells := v.Texts()
	t := target{Title: cells[0], Cells: cells[1 : len(cells)-1], State: v.State, Class: map[string]string{Aimed: "better", Met: "better", Missed: "worse"}[v.State]}
	middle := cmp.Or(v.Must, v.Aim, 1)
	at := func(x float64) float64 {
		if x <= 0 {
			return 0
		}
		return math.Round(min(max(500+math.Log2(x/middle)*500/4, 5), 995))
	}
	s := v.Value
	if v.Against != "" {
		s = v.Ratio
	}
	if v.State != NotMeasured && v.State != Refused {
		t.Got, t.Least, t.Most = at(s.Median), at(s.Min), at(s.Max)
	}
	t.Must, t.Aim = at(v.Must), at(v.Aim)
	return t
}

// title is what people call a path.
func (r *Result) title(path string) string {
	for _, p := range r.Paths {
		if p.Name == path {
			return p.Title
		}
	}
	return path
}

// colors are defined in page.html; paths have theirs by their place.
const colors = 10

func (r *Result) color(path string) template.CSS {
	i := slices.Index(r.PathNames(), path) % colors
	return template.CSS("--p" + string(rune('0'+i)))
}

func (r *Result) section(underlay string, rows []Row) section {
	s := section{Title: strings.ToUpper(underlayTitle(underlay)[:1]) + underlayTitle(underlay)[1:]}
	for _, name := range r.Names() {
		var of []Row
		for _, row := range rows {
			if row.Underlay == underlay && row.Name == name {
				of = append(of, row)
			}
		}
		if _, _, isPercentile := percentile(name); len(of) > 0 && !isPercentile {
			s.Charts = append(s.Charts, r.chart(of))
		}
	}
	s.Plots = r.plots(underlay, rows)
	return s
}

func (r *Result) chart(rows []Row) chart {
	most := 0.0
	for _, row := range rows {
		most = max(most, row.Value.Max)
	}
	scale := func(v float64) float64 {
		if most == 0 {
			return 0
		}
		return math.Round(v / most * 990)
	}
	c := chart{Name: rows[0].Name, Title: Explain(rows[0].Name), Better: "lower"}
	if HigherIsBetter(rows[0].Unit) {
		c.Better = "higher"
	}
	for _, row := range rows {
		if row.Path == r.Reference {
			c.Reference = scale(row.Value.Median)
		}
		c.Bars = append(c.Bars, bar{Path: row.Path, Title: r.title(row.Path), Value: row.Shown(), Ratio: r.Ratio(row),
			Class: quality(row), Note: strings.Join(row.Flags, ", "), Color: r.color(row.Path),
			Median: scale(row.Value.Median), Low: scale(row.Value.Min), High: scale(row.Value.Max)})
	}
	return c
}

// quality says whether a row is better or worse than the reference by more than two runs of one thing differ.
func quality(row Row) string {
	const same = 0.05
	ratio := row.Ratio.Median
	if row.Ratio.N == 0 || math.Abs(ratio-1) <= same {
		return ""
	}
	if (ratio > 1) == HigherIsBetter(row.Unit) {
		return "better"
	}
	return "worse"
}

// mostVerdicts bounds each of the charts that the page begins with.
const mostVerdicts = 10

// outcomes are the rows in which tulle's plainest path is worse and in which it is better than the reference, the greatest first. Of the
// percentiles the median and p99 stand for all.
func outcomes(rows []Row) (lost, won []Row) {
	rows = slices.DeleteFunc(slices.Clone(rows), func(row Row) bool {
		_, which, ok := percentile(row.Name)
		return row.Path != Tulle || quality(row) == "" || row.Ratio.Median <= 0 || ok && which != "p50" && which != "p99"
	})
	slices.SortStableFunc(rows, func(a, b Row) int { return cmp.Compare(distance(b), distance(a)) })
	for _, row := range rows {
		if quality(row) == "worse" {
			lost = append(lost, row)
		} else {
			won = append(won, row)
		}
	}
	return lost, won
}

// outcome says a row in words.
func (r *Result) outcome(row Row) string {
	return Explain(row.Name) + " on " + row.Underlay + ": " + r.Ratio(row) + " of " + r.title(r.Reference) + "'s, " + row.Shown()
}

// outcomeBars are a chart of how many times better, or worse, tulle is, on a logarithmic scale from one.
func (r *Result) outcomeBars(rows []Row) (c outcomeChart) {
	if len(rows) > mostVerdicts {
		c.More = fmt.Sprintf("and %d more, below", len(rows)-mostVerdicts)
		rows = rows[:mostVerdicts]
	}
	factor := func(row Row, ratio float64) float64 { // log2; of what the row's median is on the right side of one
		if ratio <= 0 {
			return 0
		}
		return math.Copysign(1, math.Log2(row.Ratio.Median)) * math.Log2(ratio)
	}
	most := 1.0
	for _, row := range rows {
		most = max(most, factor(row, row.Ratio.Min), factor(row, row.Ratio.Max))
	}
	at := func(row Row, ratio float64) float64 {
		return math.Round(max(factor(row, ratio)/most, 0) * outcomeWidth)
	}
	for quarter := range 5 {
		c.Scale = append(c.Scale, times(math.Pow(2, most*float64(quarter)/4))+"x")
	}
	for _, row := range rows {
		c.Bars = append(c.Bars, outcomeBar{Title: Explain(row.Name), Underlay: row.Underlay, Value: row.Shown(), Ratio: r.Ratio(row), Class: quality(row),
			Width: at(row, row.Ratio.Median), Low: at(row, row.Ratio.Min), High: at(row, row.Ratio.Max)})
	}
	return c
}

// outcomeWidth is that of the charts of outcomes, in thousandths: room is left for the ends of whiskers.
const outcomeWidth = 980

// distance is how far a ratio is from one, either way.
func distance(row Row) float64 { return math.Abs(math.Log(row.Ratio.Median)) }

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
