package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/compare"
	"github.com/tulle-net/tulle/scripts/lab"
)

// benchRunOptions are the flags of tulle bench run.
type benchRunOptions struct {
	benchOutput
	preset, from, to string
	fromAddr, toAddr string
	dir              string
	listen, connect  string
	cases            []string
	rounds           int
}

func newBenchRunCommand() *cobra.Command {
	var o benchRunOptions
	c := &cobra.Command{
		Use:   "run",
		Short: "Measure the path between two namespaces of this machine, or two machines",
		Long: `Measure the path between two namespaces of this machine: two pods of the lab that is up, unless --from and --to name others.
Between two machines or two pods anywhere: start it with --listen on the one and with --connect on the other. Whoever reaches the
listening one can have it receive and echo traffic: it is for networks whose users are trusted.

The generator is measured first, over a veth without a network in the way: a figure within 10% of its own is marked
generator-bound.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr()); err != nil {
				return fmt.Errorf("tulle bench run: %w", err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.from, "from", "", "namespace of the client, as ip netns names it (default: the first pod of the lab's first node)")
	f.StringVar(&o.to, "to", "", "namespace of the server (default: the first pod of the lab's second node)")
	f.StringVar(&o.fromAddr, "from-addr", "", "the client's address; needed with --from")
	f.StringVar(&o.toAddr, "to-addr", "", "the server's address; needed with --to")
	f.StringVar(&o.listen, "listen", "", "be the server for others at this ADDR:PORT, until SIGINT or SIGTERM")
	f.StringVar(&o.connect, "connect", "", "measure the path to the server that listens at this ADDR:PORT")
	f.StringVar(&o.dir, "lab-dir", lab.DefaultDir, "directory of the lab that is up")
	f.StringVar(&o.preset, "preset", "quick", "what and how long: quick, table, variants or full")
	f.StringSliceVar(&o.cases, "cases", nil, "only these, such as tcp/1-flow; an unknown one lists all")
	f.IntVar(&o.rounds, "rounds", 0, "number of rounds (default: the preset's)")
	f.StringVar(&o.save, "save", "", "file for the result with all trials (default: none)")
	f.StringVarP(&o.format, "output", "o", "table", "format on stdout: table or json")
	return c
}

func (o *benchRunOptions) run(ctx context.Context, out, progress io.Writer) error {
	c := compareOptions{benchOutput: o.benchOutput, preset: o.preset, family: lab.FamilyV4, cases: o.cases, rounds: o.rounds}
	plan, err := c.plan()
	if err != nil {
		return err
	}
	if o.listen != "" && o.connect != "" || (o.listen != "" || o.connect != "") && (o.from != "" || o.to != "") {
		return usageError("--listen, --connect, and --from with --to exclude each other")
	}
	if err := needRoot("tulle bench run", "namespaces and large socket buffers"); err != nil {
		return err
	}
	if o.listen != "" {
		return benchServe(ctx, o.listen, progress)
	}
	title, ends, err := o.path(ctx)
	if err != nil {
		return err
	}
	if ends.Remote != nil {
		defer ends.Remote.Close()
	}
	r, err := compare.Measure(ctx, plan, title, ends, compare.Options{Version: versionString(), Command: "tulle bench run --preset " + o.preset, Progress: progress})
	if err != nil {
		return err
	}
	if err := o.write(out, r); err != nil {
		return err
	}
	if len(r.Failures) > 0 {
		return fmt.Errorf("%d cases failed, the first %s: %s", len(r.Failures), r.Failures[0].Case, r.Failures[0].Error)
	}
	return nil
}

func benchServe(ctx context.Context, addr string, progress io.Writer) error {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "listening at %s\n", l.Addr())
	return compare.Serve(ctx, l)
}

// path is what to measure, and what people call it.
func (o *benchRunOptions) path(ctx context.Context) (title string, ends bench.Ends, err error) {
	if o.connect != "" {
		ends, err = compare.To(ctx, o.connect)
		return "to " + o.connect, ends, err
	}
	e, err := o.ends()
	if err != nil {
		return "", ends, err
	}
	ends, err = compare.Between(e[0], e[1])
	return e[0].Namespace + " to " + e[1].Namespace, ends, err
}

// ends are those of the flags, or the lab's.
func (o *benchRunOptions) ends() (ends [2]compare.End, err error) {
	if (o.from == "") != (o.to == "") {
		return ends, usageError("--from and --to: give both or none")
	}
	if o.from == "" {
		return labEnds(o.dir)
	}
	for i, e := range []struct{ flag, namespace, addr string }{{"--from-addr", o.from, o.fromAddr}, {"--to-addr", o.to, o.toAddr}} {
		addr, err := netip.ParseAddr(e.addr)
		if err != nil {
			return ends, usageError("%s: %w", e.flag, err)
		}
		ends[i] = compare.End{Namespace: e.namespace, Addr: addr}
	}
	if ends[0].Addr.Is4() != ends[1].Addr.Is4() {
		return ends, usageError("--from-addr %s and --to-addr %s: must be of one family", ends[0].Addr, ends[1].Addr)
	}
	return ends, nil
}

// labEnds are the first pods of the first two nodes of a lab.
func labEnds(dir string) (ends [2]compare.End, err error) {
	l, err := lab.Open(dir)
	if err != nil {
		return ends, err
	}
	nodes := l.Nodes()
	if len(nodes) < 2 || len(nodes[0].Pods) == 0 || len(nodes[1].Pods) == 0 {
		return ends, fmt.Errorf("the lab in %s has no two nodes with pods: make one with: tulle lab up --nodes 2 --pods 1", l.Dir())
	}
	for i := range ends {
		pod := nodes[i].Pods[0]
		ends[i] = compare.End{Namespace: pod.Namespace, Addr: pod.Addrs()[0]}
	}
	return ends, nil
}
