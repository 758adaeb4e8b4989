package result

import (
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes the summary as tables: a row for each figure, a column for each path.
func (r *Result) WriteMarkdown(w io.Writer) error {
	for _, line := range r.Describe() {
		fmt.Fprintf(w, "%s  \n", line)
	}
	rows := r.Summary()
	for _, underlay := range r.Underlays() {
		if err := r.writeGrid(w, underlay, rows); err != nil {
			return err
		}
	}
	return r.writeCurves(w)
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
	text := Format(row.Value.Median, row.Unit)
	if ratio := r.Ratio(row); ratio != "" {
		text += ", " + ratio
	}
	if len(row.Flags) > 0 {
		text += " [" + strings.Join(row.Flags, ", ") + "]"
	}
	return text
}
