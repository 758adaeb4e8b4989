package result

import (
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes a page: the targets, where tulle loses, then all figures with a row for each and a column for each path.
func (r *Result) WriteMarkdown(w io.Writer) error {
	fmt.Fprintf(w, "# Performance\n\n")
	for _, line := range r.Describe() {
		fmt.Fprintf(w, "%s  \n", line)
	}
	rows := r.Summary()
	if err := r.writeTargets(w); err != nil {
		return err
	}
	lost, won := outcomes(rows)
	r.writeOutcomes(w, "Where tulle loses", lost)
	r.writeOutcomes(w, "Where tulle wins", won)
	fmt.Fprintf(w, "\n## All figures\n\nMedians over the rounds, and the median of the ratios to %s of the same round with the least and the most.\n", r.title(r.Reference))
	for _, underlay := range r.Underlays() {
		if err := r.writeGrid(w, underlay, rows); err != nil {
			return err
		}
	}
	if err := r.writeRestarts(w); err != nil {
		return err
	}
	return r.writeCurves(w)
}

func (r *Result) writeOutcomes(w io.Writer, title string, rows []Row) {
	if len(rows) > 0 {
		fmt.Fprintf(w, "\n## %s\n\n", title)
	}
	for _, row := range rows {
		fmt.Fprintf(w, "- %s\n", r.outcome(row))
	}
}

// writeTargets writes what the project promises and what is true of it.
func (r *Result) writeTargets(w io.Writer) error {
	all := r.Verdicts()
	if !judged(all) {
		return nil
	}
	fmt.Fprintf(w, "\n## What it must show\n\n%s. Ratios are taken within each round; the spread is that of the ratios, or of the values where there is\nno ratio. \"%s\" means that the benchmark's own sender or receiver was the limit.\n\n", Tally(all), Refused)
	fmt.Fprintf(w, "| %s |\n|%s\n", strings.Join(TargetColumns, " | "), strings.Repeat("---|", len(TargetColumns)))
	for _, v := range all {
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(v.Texts(), " | ")); err != nil {
			return err
		}
	}
	if lines := r.explained(all); len(lines) > 0 {
		fmt.Fprintf(w, "\n### Where the time goes\n\n%s\n\n", explanation)
		for _, line := range lines {
			fmt.Fprintf(w, "- %s\n", line)
		}
	}
	return nil
}

// writeGrid is one underlay's table. A path without a figure has an empty column's cell.
func (r *Result) writeGrid(w io.Writer, underlay string, rows []Row) error {
	cells := map[[2]string]string{}
	var names, paths []string
	for _, path := range r.PathNames() {
		for _, row := range rows {
			if row.Underlay == underlay && row.Path == path {
				cells[[2]string{row.Name, path}] = r.cell(row)
				if len(paths) == 0 || paths[len(paths)-1] != path {
					paths = append(paths, path)
				}
			}
		}
	}
	for _, name := range r.Names() {
		for _, path := range paths {
			if cells[[2]string{name, path}] != "" {
				names = append(names, name)
				break
			}
		}
	}
	fmt.Fprintf(w, "\n### %s\n\n| figure | %s |\n|---%s|\n", underlayTitle(underlay), strings.Join(paths, " | "), strings.Repeat("|---", len(paths)))
	for _, name := range names {
		line := []string{name}
		for _, path := range paths {
			line = append(line, cells[[2]string{name, path}])
		}
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(line, " | ")); err != nil {
			return err
		}
	}
	return nil
}

// cell is a median with its ratio and what speaks against it.
func (r *Result) cell(row Row) string {
	text := row.Shown()
	if ratio := r.Ratio(row); ratio != "" {
		text += ", " + ratio
	}
	if len(row.Flags) > 0 {
		text += " [" + strings.Join(row.Flags, ", ") + "]"
	}
	return text
}
