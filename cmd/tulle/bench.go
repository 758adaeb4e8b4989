package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/bench/compare"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/bench/router"
	"github.com/tulle-net/tulle/scripts/lab"
)

func newBenchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure a path between pods, and compare ways to make one",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("tulle bench: no command %q (have: run, compare, scale, restarts, report)", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newBenchRunCommand(), newBenchCompareCommand(), newBenchScaleCommand(), newBenchRestartsCommand(), newBenchReportCommand(), newBenchRouterCommand())
	return c
}

// benchOutput is where the result of a measurement goes.
type benchOutput struct{ save, format string }

func (o *benchOutput) check() error {
	if o.format != "table" && o.format != "json" {
		return usageError("-o %s: unknown format (allowed: table, json)", o.format)
	}
	return nil
}

func (o *benchOutput) write(out io.Writer, r *result.Result) error {
	if o.save != "" {
		if err := r.Save(o.save); err != nil {
			return err
		}
	}
	if o.format == "json" {
		return writeJSON(out, r)
	}
	return r.WriteTable(out)
}

// compareOptions are the flags of tulle bench compare.
type compareOptions struct {
	benchOutput
	preset, family, dir     string
	baseline, threshold     string
	paths, underlays, cases []string
	rounds                  int
}

func newBenchCompareCommand() *cobra.Command {
	var o compareOptions
	c := &cobra.Command{
		Use:   "compare",
		Short: "Measure kernel VXLAN, tulle and others on this machine, in turns",
		Long: `Measure kernel VXLAN, tulle and others on this machine, in turns.

Each round builds a lab of two nodes for every path and measures all of them; figures are related to kernel VXLAN's of the same
round. The generator is measured first, over a veth without a network in the way: a figure within 10% of its own is marked
generator-bound. Anything else that runs on the machine falsifies the figures.

With --baseline, ends with 4 if a figure is worse than the older one by more than --threshold, and not by chance.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr()); err != nil {
				return fmt.Errorf("tulle bench compare: %w", err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.preset, "preset", "table", "what and how long: quick (smoke, 2 minutes), table (20 minutes), variants (of tulle, 40 minutes) or full (about 3 hours)")
	f.StringSliceVar(&o.paths, "paths", nil, "only these of the preset's or others: "+strings.Join(pathNames(), ", "))
	f.StringSliceVar(&o.underlays, "underlays", nil, "only these: "+strings.Join(compare.Underlays(), ", "))
	f.StringSliceVar(&o.cases, "cases", nil, "only these, such as tcp/1-flow; an unknown one lists all")
	f.IntVar(&o.rounds, "rounds", 0, "number of rounds (default: the preset's)")
	f.StringVar(&o.family, "family", lab.FamilyV4, "addresses of pods and underlay: v4 or v6")
	f.StringVar(&o.dir, "dir", lab.DefaultDir, "directory of the labs")
	f.StringVar(&o.save, "save", "result.json", "file for the result with all trials; empty for none")
	f.StringVarP(&o.format, "output", "o", "table", "format on stdout: table or json")
	f.StringVar(&o.baseline, "baseline", "", "an older result.json to compare with")
	f.StringVar(&o.threshold, "threshold", "5%", "how much worse a figure may be than the baseline's")
	return c
}

func pathNames() (names []string) {
	for _, p := range compare.Paths {
		names = append(names, p.Name)
	}
	return names
}

func (o *compareOptions) run(ctx context.Context, out, progress io.Writer) error {
	plan, err := o.plan()
	if err != nil {
		return err
	}
	threshold, err := percent(o.threshold)
	if err != nil {
		return usageError("--threshold %s: %w", o.threshold, err)
	}
	var old *result.Result
	if o.baseline != "" {
		if old, err = result.Load(o.baseline); err != nil {
			return fmt.Errorf("--baseline: %w", err)
		}
	}
	if err := needRoot("tulle bench compare", "namespaces and links"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, err := compare.Run(ctx, plan, compare.Options{Dir: o.dir, Family: o.family, Executable: self, RouterArgs: []string{"bench", "router"},
		Version: versionString(), Command: o.command(), Progress: progress})
	if err != nil {
		return err
	}
	if err := o.write(out, r); err != nil {
		return err
	}
	if len(r.Failures) > 0 {
		return fmt.Errorf("%d cases failed, the first %s of %s: %s", len(r.Failures), r.Failures[0].Case, r.Failures[0].Path, r.Failures[0].Error)
	}
	if old != nil {
		return checkBaseline(progress, r, old, threshold)
	}
	return nil
}

// plan is the preset with the changes that the flags ask for.
func (o *compareOptions) plan() (compare.Plan, error) {
	if err := o.check(); err != nil {
		return compare.Plan{}, err
	}
	plan, err := compare.FindPlan(o.preset)
	if err != nil {
		return plan, usageError("--preset: %w", err)
	}
	if o.family != lab.FamilyV4 && o.family != lab.FamilyV6 {
		return plan, usageError("--family %s: unknown (allowed: v4, v6)", o.family)
	}
	if len(o.paths) > 0 {
		if _, err := compare.Select(o.paths); err != nil {
			return plan, usageError("--paths: %w", err)
		}
		plan.Paths = o.paths
	}
	if len(o.underlays) > 0 {
		plan.Underlays = o.underlays
	}
	if err := plan.Check(); err != nil {
		return plan, usageError("--underlays: %w", err)
	}
	if len(o.cases) > 0 {
		if err := plan.SelectCases(o.cases); err != nil {
			return plan, usageError("--cases: %w", err)
		}
	}
	if o.rounds < 0 || o.rounds > 100 {
		return plan, usageError("--rounds %d: must be 1 to 100", o.rounds)
	}
	if o.rounds > 0 {
		plan.Rounds = o.rounds
	}
	return plan, nil
}

// command is what measures the same again: of the flags, those that choose it.
func (o *compareOptions) command() string {
	args := []string{"tulle bench compare --preset", o.preset}
	for _, list := range []struct {
		flag   string
		values []string
	}{{"--paths", o.paths}, {"--underlays", o.underlays}, {"--cases", o.cases}} {
		if len(list.values) > 0 {
			args = append(args, list.flag, strings.Join(list.values, ","))
		}
	}
	if o.rounds > 0 {
		args = append(args, "--rounds", strconv.Itoa(o.rounds))
	}
	if o.family != lab.FamilyV4 {
		args = append(args, "--family", o.family)
	}
	return strings.Join(args, " ")
}

// percent reads 5% or 0.05.
func percent(text string) (float64, error) {
	number, isPercent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(number, 64)
	if isPercent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v < 1) {
		return 0, fmt.Errorf("must be 0%% to 99%%")
	}
	return v, nil
}

// checkBaseline says what has become worse, and fails if anything has.
func checkBaseline(out io.Writer, r, old *result.Result, threshold float64) error {
	worse, compared := r.Regressions(old, threshold)
	for _, w := range worse {
		fmt.Fprintf(out, "worse by %.1f%% (p = %.3f): %s of %s, underlay %s\n", w.Change*100, w.P, w.Row.Name, w.Row.Path, w.Row.Underlay)
	}
	switch {
	case compared == 0:
		return fmt.Errorf("--baseline: no figure that both results have")
	case len(worse) > 0:
		return &exitError{exitUnhealthy, fmt.Errorf("%d of %d figures are worse than the baseline's by more than %.3g%%", len(worse), compared, threshold*100)}
	}
	fmt.Fprintf(out, "none of %d figures is worse than the baseline's by more than %.3g%%\n", compared, threshold*100)
	return nil
}

// newBenchRouterCommand is what labs run as the nodes of a plain router. Its flags are flannelpeer's.
func newBenchRouterCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "router KIND [FLAGS]",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("tulle bench router: give a kind (have: %s)", strings.Join(router.Kinds(), ", "))
			}
			if err := router.Main(args[0], args[1:]); err != nil {
				return fmt.Errorf("tulle bench router: %w", err)
			}
			return nil
		},
	}
}
