package result

import "slices"

// Row is a figure of one path over all rounds.
type Row struct {
	Underlay, Name, Path, Unit string
	Values                     []float64 // by round
	Ratios                     []float64 // to the reference path in the same round; none of a round that the generator limited
	Value, Ratio               Spread
	Flags                      []string // of any round
	limited                    int      // rounds
}

// Summary is all rows, by underlay, name and path in their orders.
func (r *Result) Summary() (rows []Row) {
	type key struct{ underlay, name, path string }
	index, values := map[key][]Figure{}, map[key]map[int]Figure{}
	for _, f := range r.Figures {
		k := key{f.Underlay, f.Name, f.Path}
		if index[k] = append(index[k], f); values[k] == nil {
			values[k] = map[int]Figure{}
		}
		values[k][f.Round] = f
	}
	for _, underlay := range r.Underlays() {
		for _, name := range r.Names() {
			for _, path := range r.PathNames() {
				if figures := index[key{underlay, name, path}]; len(figures) > 0 {
					rows = append(rows, row(figures, values[key{underlay, name, r.Reference}]))
				}
			}
		}
	}
	return rows
}

// row sums up one path's figures; reference is the other's by round.
func row(figures []Figure, reference map[int]Figure) Row {
	f := figures[0]
	r := Row{Underlay: f.Underlay, Name: f.Name, Path: f.Path, Unit: f.Unit}
	for _, f := range figures {
		r.Values = append(r.Values, f.Value)
		if of := reference[f.Round]; of.Value != 0 && !f.limited() && !of.limited() {
			r.Ratios = append(r.Ratios, f.Value/of.Value)
		}
		if f.limited() {
			r.limited++
		}
		for _, flag := range f.Flags {
			if !slices.Contains(r.Flags, flag) {
				r.Flags = append(r.Flags, flag)
			}
		}
	}
	r.Value, r.Ratio = spread(r.Values), spread(r.Ratios)
	return r
}

// Refused says that the generator was the limit in every round, so that the values are bounds and no figures.
func (r Row) Refused() bool { return r.limited == r.Value.N && r.limited > 0 }

// Shown is the row's median as people read it, a bound where it is refused.
func (r Row) Shown() string {
	text := Format(r.Value.Median, r.Unit)
	switch {
	case !r.Refused():
		return text
	case HigherIsBetter(r.Unit):
		return ">= " + text
	}
	return "<= " + text
}

// Regression is a row that has become worse.
type Regression struct {
	Row    Row
	Change float64 // of the median, part; positive is worse
	P      float64 // of the change being chance
}

// significance is the p below which a change is no chance: what three rounds against three can reach at best.
const significance = 0.05

// Regressions compares with an older result: rows of both whose ratio to the reference is worse by more than threshold in the
// median, and significantly so over the rounds. A row without ratio is passed over, for it would tell of the machine, and so is one
// that the generator limited.
func (r *Result) Regressions(old *Result, threshold float64) (worse []Regression, compared int) {
	type key struct{ underlay, name, path, unit string }
	before := map[key]Row{}
	for _, row := range old.Summary() {
		before[key{row.Underlay, row.Name, row.Path, row.Unit}] = row
	}
	for _, row := range r.Summary() {
		was, ok := before[key{row.Underlay, row.Name, row.Path, row.Unit}]
		if !ok || row.Path == r.Reference || len(was.Ratios) == 0 || len(row.Ratios) == 0 {
			continue
		}
		compared++
		if c := change(was, row); c.Change > threshold && c.P <= significance {
			worse = append(worse, c)
		}
	}
	return worse, compared
}

func change(was, now Row) Regression {
	r := Regression{Row: now, P: smaller(was.Ratios, now.Ratios)}
	if was.Ratio.Median > 0 {
		r.Change = now.Ratio.Median/was.Ratio.Median - 1
	}
	if HigherIsBetter(now.Unit) {
		r.P, r.Change = smaller(now.Ratios, was.Ratios), -r.Change
	}
	return r
}
