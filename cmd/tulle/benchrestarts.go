package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/bench/restarts"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/scripts/lab"
)

// benchRestartsOptions are the flags of tulle bench restarts.
type benchRestartsOptions struct {
	benchOutput
	dir, next                       string
	kills, takeovers, streams, rate int
}

func newBenchRestartsCommand() *cobra.Command {
	var o benchRestartsOptions
	c := &cobra.Command{
		Use:   "restarts",
		Short: "Kill a daemon under load, and let others take over from it, again and again",
		Long: `Kill a daemon under load and start it again, with a holder beside it, and let others take over from it, again and again.

The load is numbered datagrams and TCP connections between pods of two nodes, in both directions. A gap is the longest time in which
nothing came on one of the UDP flows around one restart; a busy machine makes gaps by itself.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr()); err != nil {
				return fmt.Errorf("tulle bench restarts: %w", err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&o.kills, "kills", 200, "how often the daemon is killed")
	f.IntVar(&o.takeovers, "takeovers", 50, "how often another one takes over")
	f.IntVar(&o.streams, "streams", 200, "TCP connections")
	f.IntVar(&o.rate, "rate", 20_000, "datagrams a second")
	f.StringVar(&o.next, "next", "", "another build of tulle, to take over in turns with this one")
	f.StringVar(&o.dir, "dir", lab.DefaultDir, "directory of the labs")
	f.StringVar(&o.save, "save", "restarts.json", "file for the result; empty for none")
	f.StringVarP(&o.format, "output", "o", "table", "format on stdout: table or json")
	return c
}

func (o *benchRestartsOptions) check() error {
	for _, n := range []struct {
		flag               string
		value, least, most int
	}{{"kills", o.kills, 0, 10_000}, {"takeovers", o.takeovers, 0, 10_000}, {"streams", o.streams, 0, 2000}, {"rate", o.rate, 100, 1_000_000}} {
		if n.value < n.least || n.value > n.most {
			return usageError("--%s %d: must be %d to %d", n.flag, n.value, n.least, n.most)
		}
	}
	if o.next != "" {
		if _, err := os.Stat(o.next); err != nil {
			return usageError("--next: %w", err)
		}
	}
	return o.benchOutput.check()
}

func (o *benchRestartsOptions) run(ctx context.Context, out, progress io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := needRoot("tulle bench restarts", "namespaces and links"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	takeover := restarts.Plan{Takeover: true, Times: o.takeovers, Streams: o.streams, Rate: o.rate}
	if o.next != "" {
		takeover.Executables = []string{o.next, self}
	}
	r := &result.Result{SchemaVersion: result.SchemaVersion, Created: time.Now().UTC(), Preset: "restarts", Family: lab.FamilyV4, Rounds: 1, Environment: result.ReadEnvironment(versionString()),
		Command: fmt.Sprintf("tulle bench restarts --kills %d --takeovers %d --streams %d --rate %d", o.kills, o.takeovers, o.streams, o.rate)}
	for _, p := range []restarts.Plan{{Times: o.kills, Streams: o.streams, Rate: o.rate}, takeover} {
		if p.Times == 0 {
			continue
		}
		one, err := o.inLab(ctx, self, p, progress)
		if err != nil {
			return err
		}
		r.Restarts = append(r.Restarts, *one)
	}
	return o.write(out, r)
}

// inLab carries a plan out in a lab of its own.
func (o *benchRestartsOptions) inLab(ctx context.Context, self string, p restarts.Plan, progress io.Writer) (one *result.Restarts, err error) {
	l, err := lab.Up(ctx, lab.Config{Nodes: 2, Pods: 1, Dir: o.dir, Executable: self, Holder: true, Ephemeral: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	return p.Run(ctx, l, progress, nil)
}
