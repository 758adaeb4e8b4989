package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/bench/compare"
	"github.com/tulle-net/tulle/scripts/lab"
)

func newBenchScaleCommand() *cobra.Command {
	var preset, dir string
	c := &cobra.Command{
		Use:   "scale",
		Short: "Measure what flows, peers and pods cost two daemons, up to a million, a thousand and 200",
		Long: `Measure what a packet costs two daemons whose tables grow: CPU, allocations and memory by the number of flows, peers and pods.

Flows and peers are met with frames from a TAP, each of which is compared with what was sent; pods with datagrams from all of them.
The rate is far below what the path can do; a point at which the generator does not keep it is left out. The lines on stdout are
those of Go benchmarks: give them to tulle bench report --curves, or to benchstat.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := benchScale(c.Context(), preset, dir, c.OutOrStdout(), c.ErrOrStderr()); err != nil {
				return fmt.Errorf("tulle bench scale: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&preset, "preset", "full", "how far: quick (half a minute) or full (minutes)")
	c.Flags().StringVar(&dir, "dir", lab.DefaultDir, "directory of the labs")
	return c
}

func benchScale(ctx context.Context, preset, dir string, out, progress io.Writer) error {
	sizes, err := compare.ScaleSizes(preset)
	if err != nil {
		return usageError("--preset: %w", err)
	}
	if err := needRoot("tulle bench scale", "namespaces and links"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return compare.Scale(ctx, sizes, compare.Options{Dir: dir, Executable: self, Progress: progress}, out)
}
