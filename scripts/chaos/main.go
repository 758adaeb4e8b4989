// Command chaos builds a lab of three nodes, puts traffic on it and, every ten seconds, one fault out of a list. After each fault
// everybody has to reach everybody again by himself. At the end it tells what the traffic noticed, and whether the daemons grew.
//
// It owns the faults, their order and the verdict, not the lab (scripts/lab) nor the traffic's checks (bench). The exit code is 0 iff
// nothing arrived changed, everything came back, no connection was lost for good and no daemon grew; 1 if not, 2 on wrong usage.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

type options struct {
	tulle, dir, output, only string
	duration, every          time.Duration
	seed                     uint64
	rate                     int
	holder                   bool
}

func main() {
	var o options
	flag.StringVar(&o.tulle, "tulle", "bin/tulle", "the binary to torment")
	flag.StringVar(&o.dir, "dir", "/run/tulle-chaos", "directory of the lab")
	flag.DurationVar(&o.duration, "duration", 30*time.Minute, "how long faults go on")
	flag.DurationVar(&o.every, "every", 10*time.Second, "from fault to fault")
	flag.Uint64Var(&o.seed, "seed", 0, "of the order of faults; 0 for one of chance")
	flag.StringVar(&o.only, "only", "", "only the faults whose names have this in them")
	flag.IntVar(&o.rate, "rate", 20000, "numbered datagrams a second at most, of all pairs together")
	flag.BoolVar(&o.holder, "holder", true, "a holder beside each daemon, which keeps what a killed one must not lose")
	flag.StringVar(&o.output, "o", "", "file for the report as JSON")
	flag.Parse()
	if err := o.check(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func (o *options) check() error {
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	_, err := os.Stat(o.tulle)
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case os.Geteuid() != 0:
		return lab.ErrNotRoot
	case err != nil:
		return fmt.Errorf("-tulle: %w: build it with: make build", err)
	case o.duration <= 0 || o.every < time.Second:
		return fmt.Errorf("-duration %v -every %v: at least a second each", o.duration, o.every)
	case o.rate < 1 || o.rate > 200_000:
		return fmt.Errorf("-rate %d: out of range (allowed: 1 to 200000)", o.rate)
	case len(chosen(o.only)) == 0:
		return fmt.Errorf("-only %q: no such fault (have: %s)", o.only, strings.Join(names(), ", "))
	}
	return nil
}

// run says what went wrong, the removal of the lab included.
func run(ctx context.Context, o options) (err error) {
	l, err := lab.Up(ctx, lab.Config{Dir: o.dir, Nodes: 3, Pods: 2, Holder: o.holder, Executable: o.tulle, Ephemeral: true, Progress: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	fmt.Fprintf(os.Stderr, "seed %d: %v of faults, one every %v\n", o.seed, o.duration, o.every)
	c := &chaos{lab: l, options: o, report: report{Seed: o.seed}, random: rand.New(rand.NewPCG(o.seed, 0))}
	if err := c.torment(ctx); err != nil {
		return err
	}
	c.report.write(os.Stdout)
	if o.output != "" {
		b, err := json.MarshalIndent(c.report, "", "  ")
		if err == nil {
			err = os.WriteFile(o.output, append(b, '\n'), 0o644)
		}
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	return c.report.verdict()
}

// chaos is one run.
type chaos struct {
	options
	lab    *lab.Lab
	random *rand.Rand
	report report
}

// torment goes on until the time is up, each fault once and then in an order of chance, with traffic all the time.
func (c *chaos) torment(ctx context.Context) error {
	load, err := startLoad(ctx, c.lab, c.rate)
	if err != nil {
		return err
	}
	watch := newWatch(c.lab)
	faults := chosen(c.only)
	start, order := time.Now(), []fault(nil)
	for round := 0; time.Since(start) < c.duration && ctx.Err() == nil; round++ {
		if len(order) == 0 {
			order = append(order, faults...)
			c.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		f := order[0]
		order = order[1:]
		end := time.Now().Add(c.every)
		before := load.total()
		e := c.strike(ctx, f)
		sleep(ctx, time.Until(end))
		e.Traffic = load.total().since(before)
		c.report.add(e)
		fmt.Fprintf(os.Stderr, "%6v  %s\n", time.Since(start).Round(time.Second), e.text())
		if err := watch.look(); err != nil && ctx.Err() == nil {
			return err
		}
	}
	c.report.Traffic = load.stop()
	c.report.Growth = watch.growth()
	return c.settle(ctx)
}

// settle demands at the end that every packet is accounted for.
func (c *chaos) settle(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	sleep(ctx, 4*time.Second) // fragments that wait for their first one have given up
	for _, n := range c.lab.Nodes() {
		var s struct {
			Engine struct {
				Ledger   json.RawMessage `json:"ledger"`
				Balanced bool            `json:"balanced"`
			} `json:"engine"`
		}
		if err := askJSON(n, "/v1/status", &s); err != nil {
			return err
		}
		if !s.Engine.Balanced {
			c.report.Failures = append(c.report.Failures, fmt.Sprintf("%s: the ledger does not balance: %s", n.Name, s.Engine.Ledger))
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
