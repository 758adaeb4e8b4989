package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/lookup"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/scripts/lab"
)

// Options say where and by what a Plan is carried out.
type Options struct {
	Dir        string   // of the lab; lab.DefaultDir if empty
	Family     string   // lab.FamilyV4 if empty, or FamilyV6
	Executable string   // the tulle binary
	RouterArgs []string // with which that is a router of the kind that follows
	Version    string
	Command    string    // for those who want to measure it again
	Progress   io.Writer // lines for people
}

// Run carries out a plan. A case that fails is in the result's Failures; an error means that ctx ended or that nothing at all
// could be measured.
func Run(ctx context.Context, p Plan, o Options) (*result.Result, error) {
	paths, err := Select(p.Paths)
	if err != nil {
		return nil, err
	}
	r, err := newRun(p, o)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		if path.carries(r.options.Family) {
			r.paths = append(r.paths, path)
			r.out.Paths = append(r.out.Paths, result.Path{Name: path.Name, Title: path.Title})
		}
	}
	r.out.Paths = append(r.out.Paths, result.Path{Name: result.Tables, Title: "tulle's tables by themselves"})
	for round := 1; round <= p.Rounds; round++ {
		if err := r.round(ctx, round); err != nil {
			return nil, err
		}
	}
	if len(r.out.Figures) == 0 {
		return nil, fmt.Errorf("nothing could be measured: %s", r.out.Failures[0].Error)
	}
	return r.out, nil
}

type run struct {
	plan    Plan
	options Options
	paths   []Path
	out     *result.Result
	begun   time.Time
	labs    int // measured
}

func newRun(p Plan, o Options) (*run, error) {
	if o.Family == "" {
		o.Family = lab.FamilyV4
	}
	client, server, err := pinned()
	if err != nil {
		return nil, err
	}
	out := &result.Result{SchemaVersion: result.SchemaVersion, Created: time.Now().UTC(), Preset: p.Name, Command: o.Command, Family: o.Family, Rounds: p.Rounds,
		Reference: Kernel, Environment: result.ReadEnvironment(o.Version), Figures: []result.Figure{}, Trials: []result.Trial{},
		Failures: []result.Failure{}}
	out.Environment.ClientCPU, out.Environment.ServerCPU = client, server
	return &run{plan: p, options: o, out: out, begun: time.Now()}, nil
}

// pinned gives a CPU to each side, the same if there is but one.
func pinned() (client, server int, err error) {
	cpus, err := bench.CPUs()
	if err != nil {
		return 0, 0, err
	}
	return cpus[0], cpus[min(1, len(cpus)-1)], nil
}

// round measures all paths once, every other round in reverse: what comes first or last is then not always the same.
func (r *run) round(ctx context.Context, round int) error {
	if err := r.tables(round); err != nil {
		return err
	}
	bare, err := r.generator(ctx, round)
	if err != nil {
		return err
	}
	for _, underlay := range r.plan.Underlays {
		paths := r.on(underlay)
		if round%2 == 0 {
			slices.Reverse(paths)
		}
		for _, path := range paths {
			s := r.session(round, underlay, path)
			s.bare = bare
			if err := r.lab(ctx, s, path); err != nil {
				return err
			}
			r.labs++
			s.say("%s", r.left())
		}
	}
	return nil
}

// on lists the paths that are measured on an underlay.
func (r *run) on(underlay string) (paths []Path) {
	for _, path := range r.paths {
		if r.plan.has(path, underlay) {
			paths = append(paths, path)
		}
	}
	return paths
}

// left says how many labs were measured, and how long the others will take if they take as long.
func (r *run) left() string {
	all := 0
	for _, underlay := range r.plan.Underlays {
		all += r.plan.Rounds * len(r.on(underlay))
	}
	each := time.Since(r.begun) / time.Duration(r.labs)
	return fmt.Sprintf("lab %d of %d, about %s left", r.labs, all, (time.Duration(all-r.labs) * each).Round(time.Second))
}

// tables measures what needs no path.
func (r *run) tables(round int) error {
	if r.plan.Entries == 0 {
		return nil
	}
	costs, err := lookup.Measure(r.plan.Entries)
	s := r.session(round, "", Path{Name: result.Tables})
	for _, c := range costs {
		s.figure(c.Name, c.Value, c.Unit)
	}
	return err
}

func (r *run) session(round int, underlay string, path Path) *session {
	s := &session{ruler: r.plan.ruler, round: round, underlay: underlay, path: path.Name, out: r.out}
	s.say = func(format string, args ...any) {
		fmt.Fprintf(r.options.Progress, "%d/%d  %-4s  %-12s  %s\n", round, r.plan.Rounds, underlay, path.Name, fmt.Sprintf(format, args...))
	}
	return s
}

// mtu is the pods' with VXLAN.
func mtu(family string) int {
	if family == lab.FamilyV6 {
		return lab.DefaultMTU - 70
	}
	return lab.DefaultMTU - 50
}

// generator measures the generator itself, on a path that can do more than any other, and gives the figures by name.
func (r *run) generator(ctx context.Context, round int) (bare map[string]float64, err error) {
	d, err := lab.NewDirect(mtu(r.options.Family))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	s := r.session(round, "", Path{Name: Bare})
	s.ends = r.ends(d.In, [2]netip.Addr{lab.DirectAddr(0, r.options.Family), lab.DirectAddr(1, r.options.Family)})
	begin := len(r.out.Figures)
	if err := r.measure(ctx, s); err != nil {
		return nil, err
	}
	bare = map[string]float64{}
	for _, f := range r.out.Figures[begin:] {
		bare[f.Name] = f.Value
	}
	return bare, nil
}

func (r *run) ends(in func(side int, f func() error) error, addrs [2]netip.Addr) bench.Ends {
	e := r.out.Environment
	return bench.Ends{
		Client: bench.Place{Addr: addrs[0], CPU: e.ClientCPU, In: func(f func() error) error { return in(0, f) }},
		Server: bench.Place{Addr: addrs[1], CPU: e.ServerCPU, In: func(f func() error) error { return in(1, f) }}}
}

// lab measures one path on one underlay. What the lab could not do is a failure of the path.
func (r *run) lab(ctx context.Context, s *session, path Path) (err error) {
	l, err := lab.Up(ctx, path.config(r.options))
	if err == nil {
		defer func() { err = errors.Join(err, l.Down()) }()
		err = r.prepare(l, s, path)
	}
	if err == nil && path.Attachment != "" {
		var pods *attached
		if pods, err = attach(ctx, l.Nodes(), path.Attachment); err == nil {
			defer func() { err = errors.Join(err, pods.Close()) }()
			s.ends = r.ends(pods.in, pods.addrs)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		s.fail("lab", err)
		return nil
	}
	return r.measure(ctx, s)
}

func (r *run) prepare(l *lab.Lab, s *session, path Path) error {
	if err := l.SetUnderlay(s.underlay); err != nil {
		return err
	}
	on, err := l.Offloads()
	if err != nil {
		return err
	}
	r.out.Environment.Offloads[s.underlay] = on
	nodes := l.Nodes()
	for _, n := range nodes {
		if path.Tulle && !n.Kernel {
			s.daemons = append(s.daemons, daemon{n})
		}
	}
	if path.Attachment != "" {
		return nil
	}
	var addrs [2]netip.Addr
	for i := range addrs {
		addrs[i] = nodes[i].Pods[0].Addrs()[0]
	}
	s.ends = r.ends(func(side int, f func() error) error { return lab.In(nodes[side].Pods[0].Namespace, f) }, addrs)
	return nil
}

// measure goes through the cases.
func (r *run) measure(ctx context.Context, s *session) error {
	for _, c := range r.plan.Cases {
		s.current = c.Name
		err := c.measure(ctx, s)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.fail(c.Name, err)
		}
	}
	return nil
}

func (s *session) fail(name string, err error) {
	s.say("%s failed: %v", name, err)
	s.out.Failures = append(s.out.Failures, result.Failure{Round: s.round, Underlay: s.underlay, Path: s.path, Case: name, Error: err.Error()})
}
