package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// pingOptions are the flags of tulle ping.
type pingOptions struct {
	runDir, output, to string
	count, size        int
	interval, timeout  time.Duration
	maxLoss            float64
	mtu, v4, v6        bool
}

func newPingCommand() *cobra.Command {
	var o pingOptions
	cmd := &cobra.Command{
		Use:   "ping NODE",
		Short: "Ask another node over the data path: latency, loss, path MTU",
		Long: `Send echo requests through the encapsulation to another node, named by its name or one of its addresses inside or outside the
network, and show what comes back. They are whole or not at all: the outer packet may not be fragmented.

Two addresses of the node are asked: its own one (.0 of its subnet), which its kernel answers behind its engine, and its engine's (the
last usable one), which only a tulle node has. The node's own address counts for loss, unless --to engine.

  time    from just before the send call until this node's engine has taken the answer
  engine  of that, in this node's engine: reading the batch that the answer came in, the packets ahead of it, and its checks
  path    the rest: this kernel's sending, the wire, the other node, and the wait in this node's socket until its engine reads
`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("tulle ping: one node is needed; see tulle ping --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.run(cmd.Context(), cmd.OutOrStdout(), args[0]); err != nil {
				return fmt.Errorf("tulle ping: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	f.StringVarP(&o.output, "output", "o", "table", "format: table or json")
	f.IntVarP(&o.count, "count", "c", 5, "requests to send, 0 for no end")
	f.DurationVarP(&o.interval, "interval", "i", time.Second, "from request to request")
	f.DurationVarP(&o.timeout, "timeout", "W", time.Second, "how long to wait for each answer")
	f.IntVarP(&o.size, "size", "s", 56, "bytes of data in each request; inner headers are 28 more, or 48 in IPv6")
	f.Float64Var(&o.maxLoss, "max-loss", 100, "exit 4 when more percent of the requests have no answer; also when none has")
	f.StringVar(&o.to, "to", pingBoth, "what to ask on the other node: node, engine or both")
	f.BoolVar(&o.mtu, "mtu", false, "show the measured MTU of the path, too")
	f.BoolVarP(&o.v4, "ipv4", "4", false, "inside and outside IPv4")
	f.BoolVarP(&o.v6, "ipv6", "6", false, "inside and outside IPv6")
	return cmd
}

func (o *pingOptions) run(ctx context.Context, out io.Writer, node string) error {
	if o.output != "table" && o.output != "json" {
		return usageError("-o %s: unknown format (allowed: table, json)", o.output)
	}
	if o.v4 && o.v6 {
		return usageError("-4 and -6 exclude each other")
	}
	if o.maxLoss < 0 || o.maxLoss > 100 {
		return usageError("--max-loss %v: out of range (allowed: 0 to 100)", o.maxLoss)
	}
	query := o.query(node)
	if _, err := parsePing(query); err != nil {
		return usageError("%w", err)
	}
	report := newPingReport()
	asked := ctx
	if o.count > 0 { // a daemon that stops in the middle says nothing
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(o.count)*o.interval+o.timeout+2*apiTimeout)
		defer cancel()
	}
	err := follow(ctx, o.runDir, pathPing+"?"+query.Encode(), func(line pingLine) error {
		report.add(line)
		if o.output == "table" {
			writePingLine(out, line, report)
		}
		if line.End != nil {
			return io.EOF
		}
		return nil
	})
	if err != nil && asked.Err() == nil {
		return err
	}
	return o.finish(out, report)
}

// finish shows the summary. Loss is an error, for scripts.
func (o *pingOptions) finish(out io.Writer, r *pingReport) error {
	r.sum()
	if o.output == "json" {
		if err := writeJSON(out, r); err != nil {
			return err
		}
	} else {
		writePingSummary(out, r, o.mtu)
	}
	main := r.main()
	switch {
	case main.Sent > 0 && main.Received == 0:
		return &exitError{exitUnhealthy, fmt.Errorf("%s does not answer", r.Node)}
	case main.LossPercent > o.maxLoss:
		return &exitError{exitUnhealthy, fmt.Errorf("%s: %.1f%% loss is more than %v%%", r.Node, main.LossPercent, o.maxLoss)}
	}
	return nil
}

func (o *pingOptions) query(node string) url.Values {
	family := 0
	if o.v4 {
		family = 4
	} else if o.v6 {
		family = 6
	}
	return url.Values{
		"node": {node}, "to": {o.to}, "family": {strconv.Itoa(family)}, "count": {strconv.Itoa(o.count)}, "size": {strconv.Itoa(o.size)},
		"interval": {o.interval.String()}, "timeout": {o.timeout.String()},
	}
}

// A pingReport is all of a ping.
type pingReport struct {
	pingHead
	Replies []pingReply  `json:"replies"`
	Summary []*pingStats `json:"summary"` // what counts for loss first
	// FarKernelMillis is the median of the node's answers less that of its engine's: the way through the other node's TAP and kernel
	// and back. Absent unless both answered.
	FarKernelMillis *float64    `json:"farKernelMilliseconds,omitempty"`
	Path            *pathReport `json:"path,omitempty"` // as the path MTU search knows it; absent when the ping was broken off
}

// pingStats sum up what one address answered.
type pingStats struct {
	To          string      `json:"to"`
	Address     string      `json:"address"`
	Sent        int         `json:"sent"`
	Received    int         `json:"received"`
	Duplicates  int         `json:"duplicates"`
	LossPercent float64     `json:"lossPercent"`
	RTT         millisStats `json:"rttMilliseconds"` // zeros when nothing was received, as the next two
	Path        millisStats `json:"pathMilliseconds"`
	Engine      millisStats `json:"engineMilliseconds"`
}

type millisStats struct {
	Min float64 `json:"min"`
	P50 float64 `json:"p50"`
	Avg float64 `json:"avg"`
	Max float64 `json:"max"`
}

func newPingReport() *pingReport { return &pingReport{Replies: []pingReply{}} }

func (r *pingReport) add(line pingLine) {
	switch {
	case line.Head != nil:
		r.pingHead = *line.Head
		for _, to := range [][2]string{{pingNode, line.Head.NodeAddr}, {pingEngine, line.Head.EngineAddr}} {
			if to[1] != "" {
				r.Summary = append(r.Summary, &pingStats{To: to[0], Address: to[1]})
			}
		}
	case line.Reply != nil:
		r.Replies = append(r.Replies, *line.Reply)
	case line.End != nil:
		r.Path = line.End
	}
}

// main is what counts.
func (r *pingReport) main() *pingStats {
	if len(r.Summary) == 0 { // broken off before it began
		return &pingStats{}
	}
	return r.Summary[0]
}

func (r *pingReport) sum() {
	for _, s := range r.Summary {
		s.sum(r.Replies)
	}
	if len(r.Summary) == 2 && r.Summary[0].Received > 0 && r.Summary[1].Received > 0 {
		far := r.Summary[0].RTT.P50 - r.Summary[1].RTT.P50
		r.FarKernelMillis = &far
	}
}

func (s *pingStats) sum(replies []pingReply) {
	var rtt, path, engine []float64
	for _, r := range replies {
		switch {
		case r.To != s.To:
		case r.Duplicate:
			s.Duplicates++
		default:
			s.Sent++
			if r.RTTMillis != nil {
				rtt, path, engine = append(rtt, *r.RTTMillis), append(path, r.PathMillis), append(engine, r.EngineMillis)
			}
		}
	}
	s.Received = len(rtt)
	if s.Sent > 0 {
		s.LossPercent = 100 * float64(s.Sent-s.Received) / float64(s.Sent)
	}
	s.RTT, s.Path, s.Engine = statsOf(rtt), statsOf(path), statsOf(engine)
}

func statsOf(v []float64) (s millisStats) {
	if len(v) == 0 {
		return s
	}
	slices.Sort(v)
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return millisStats{Min: v[0], P50: v[len(v)/2], Avg: sum / float64(len(v)), Max: v[len(v)-1]}
}

func writePingLine(out io.Writer, line pingLine, r *pingReport) {
	if h := line.Head; h != nil {
		fmt.Fprintf(out, "ping %s at %s, inner packets of %d bytes\n", h.Node, h.Outer, h.Length)
	}
	if line.Reply == nil {
		return
	}
	p, address := line.Reply, ""
	for _, s := range r.Summary {
		if s.To == p.To {
			address = s.Address
		}
	}
	switch {
	case p.RTTMillis == nil:
		fmt.Fprintf(out, "seq %d  %-6s %s: %s\n", p.Seq, p.To, address, p.Problem)
	case p.Duplicate:
		fmt.Fprintf(out, "seq %d  %-6s %s: duplicate\n", p.Seq, p.To, address)
	default:
		fmt.Fprintf(out, "seq %d  %-6s %s: time %.3f ms = path %.3f + engine %.3f\n", p.Seq, p.To, address, *p.RTTMillis, p.PathMillis, p.EngineMillis)
	}
}

func writePingSummary(out io.Writer, r *pingReport, mtu bool) {
	for _, s := range r.Summary {
		fmt.Fprintf(out, "%s %s: %d sent, %d received, %d duplicates, %.1f%% loss\n", s.To, s.Address, s.Sent, s.Received, s.Duplicates, s.LossPercent)
		if s.Received > 0 {
			fmt.Fprintf(out, "  time min/p50/avg/max %s ms; path p50 %.3f ms; this engine p50 %.3f ms\n", s.RTT, s.Path.P50, s.Engine.P50)
		} else if s.To == pingEngine && r.main().Received > 0 {
			fmt.Fprintln(out, "  no engine answers there: the node's answers are its kernel's, and it is no tulle node")
		}
	}
	if r.FarKernelMillis != nil {
		fmt.Fprintf(out, "the other node's TAP and kernel: %.3f ms (node p50 - engine p50)\n", *r.FarKernelMillis)
	}
	if mtu && r.Path != nil {
		note := ""
		if !r.Path.Answering {
			note = ", not measured now: the probes of the path are not answered"
		}
		fmt.Fprintf(out, "path MTU %d bytes of inner packet%s\n", r.Path.MTU, note)
	}
}

func (s millisStats) String() string {
	return fmt.Sprintf("%.3f/%.3f/%.3f/%.3f", s.Min, s.P50, s.Avg, s.Max)
}
