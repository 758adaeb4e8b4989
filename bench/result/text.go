package result

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Format writes a value in the unit that suits its size.
func Format(v float64, unit string) string {
	switch unit {
	case PerSecond, Transacts:
		return scaled(v) + unit
	case Nanosecond:
		return duration(v)
	case Gbps:
		return fmt.Sprintf("%.2f %s", v, unit)
	case CPUPacket:
		return duration(v) + " CPU/packet"
	case CPUGigabit:
		return fmt.Sprintf("%.3f CPU-s/Gb", v)
	case Bytes:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case Allocs:
		return fmt.Sprintf("%.3f %s", v, unit)
	case PerOp:
		return fmt.Sprintf("%.3g ns", v)
	}
	return fmt.Sprintf("%.4g %s", v, unit)
}

func scaled(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.1f k", v/1e3)
	}
	return fmt.Sprintf("%.0f ", v)
}

func duration(ns float64) string {
	switch {
	case ns >= 1e6:
		return fmt.Sprintf("%.2f ms", ns/1e6)
	case ns >= 1e3:
		return fmt.Sprintf("%.1f us", ns/1e3)
	}
	return fmt.Sprintf("%.0f ns", ns)
}

// Ratio writes a row's ratio with its spread; empty for the reference itself and where there is none.
func (r *Result) Ratio(row Row) string {
	if row.Path == r.Reference || row.Ratio.N == 0 {
		return ""
	}
	if row.Ratio.N == 1 {
		return times(row.Ratio.Median) + "x"
	}
	return fmt.Sprintf("%sx (%s-%s)", times(row.Ratio.Median), times(row.Ratio.Min), times(row.Ratio.Max))
}

// times writes a ratio to about three digits.
func times(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// Describe is the machine and the run in a few lines, with what speaks against the figures.
func (r *Result) Describe() []string { return append(r.about(), r.warnings()...) }

func (r *Result) about() []string {
	e := r.Environment
	lines := []string{
		fmt.Sprintf("%s, %d CPUs, %d MiB, Linux %s, %s %s%s", e.CPU, e.CPUs, e.MemoryBytes>>20, e.Kernel, e.Go, e.GOARCH, e.congestion()),
		fmt.Sprintf("tulle %s, preset %s, IP%s, %d rounds, %s", e.Version, r.Preset, r.Family, r.Rounds, r.Created.Format(time.RFC3339)),
	}
	if r.Command != "" {
		lines = append(lines, "Measured by: "+r.Command)
	}
	return lines
}

func (r *Result) warnings() (lines []string) {
	e := r.Environment
	if r.Preset == "quick" {
		lines = append(lines, "Preset quick looks whether it works: too short for its figures to mean anything.")
	}
	if !e.Quiet() {
		lines = append(lines, fmt.Sprintf("The machine was not idle: load average %.2f before the run. Do not publish these figures.", e.Load[0]))
	}
	if n := len(r.Failures); n > 0 {
		f := r.Failures[0]
		lines = append(lines, fmt.Sprintf("%d failed, the first of them %s of %s on %s in round %d: %s", n, f.Case, f.Path, f.Underlay, f.Round, f.Error))
	}
	return lines
}

// WriteTable writes the summary for a terminal.
func (r *Result) WriteTable(w io.Writer) error {
	for _, line := range r.Describe() {
		fmt.Fprintln(w, line)
	}
	if err := r.writeVerdicts(w); err != nil {
		return err
	}
	if err := r.writeRestartTable(w); err != nil {
		return err
	}
	rows := r.Summary()
	for _, underlay := range r.Underlays() {
		fmt.Fprintf(w, "\n%s\n", underlayTitle(underlay))
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintf(t, "FIGURE\tPATH\tMEDIAN\tSPREAD\tTO %s\tNOTE\n", strings.ToUpper(r.Reference))
		last := ""
		for _, row := range rows {
			if row.Underlay != underlay {
				continue
			}
			name := row.Name
			if name == last {
				name = ""
			}
			last = row.Name
			spread := ""
			if row.Value.N > 1 {
				spread = fmt.Sprintf("%.0f%%", row.Value.Percent())
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", name, row.Path, row.Shown(), spread,
				r.Ratio(row), strings.Join(row.Flags, ", "))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// writeVerdicts writes the table of targets, for a terminal.
func (r *Result) writeVerdicts(w io.Writer) error {
	all := r.Verdicts()
	if !judged(all) {
		return nil
	}
	fmt.Fprintf(w, "\n%s\n", Tally(all))
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.ToUpper(strings.Join(TargetColumns, "\t")))
	for _, v := range all {
		fmt.Fprintln(t, strings.Join(v.Texts(), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if lines := r.explained(all); len(lines) > 0 {
		fmt.Fprintf(w, "\nWhere the time goes. %s\n%s\n", explanation, strings.Join(lines, "\n"))
	}
	return nil
}

func underlayTitle(underlay string) string {
	switch underlay {
	case "":
		return "no underlay: what the generator can do, the tables alone, or a path that somebody else made"
	case "wire":
		return "underlay wire (packets cross it in segments, with GRO at the end)"
	}
	return "underlay " + underlay + " (all offloads)"
}

// WriteGoBench writes one line per figure and round, in the format of Go benchmarks, for benchstat.
func (r *Result) WriteGoBench(w io.Writer) error {
	e := r.Environment
	fmt.Fprintf(w, "goos: linux\ngoarch: %s\npkg: github.com/tulle-net/tulle/bench\ncpu: %s\nkernel: %s\ncommit: %s\n", e.GOARCH, e.CPU, e.Kernel, e.Version)
	units := map[string]bool{}
	for _, f := range r.Figures {
		if !units[f.Unit] {
			units[f.Unit] = true
			better := "lower"
			if HigherIsBetter(f.Unit) {
				better = "higher"
			}
			fmt.Fprintf(w, "Unit %s better=%s\n", goUnit(f.Unit), better)
		}
	}
	for _, f := range r.Figures {
		parts := []string{"Benchmark" + exported(f.Name), "path=" + f.Path}
		if f.Underlay != "" {
			parts = append(parts, "underlay="+f.Underlay)
		}
		if _, err := fmt.Fprintf(w, "%s 1 %g %s\n", strings.Join(parts, "/"), f.Value, goUnit(f.Unit)); err != nil {
			return err
		}
	}
	return nil
}

// goUnit gives benchstat a unit that it knows for a time.
func goUnit(unit string) string {
	if unit == Nanosecond {
		return PerOp
	}
	return unit
}

// exported makes a benchmark's name of a figure's: it begins with a capital letter and / separates its parts.
func exported(name string) string { return strings.ToUpper(name[:1]) + name[1:] }
