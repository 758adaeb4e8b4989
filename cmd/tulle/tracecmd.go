package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// traceOptions are the flags of tulle trace.
type traceOptions struct {
	runDir, peerRunDir, output          string
	peer, proto, src, dst, sport, dport string
	count                               int
	timeout                             time.Duration
	sample                              string
	drops                               bool
}

func newTraceCommand() *cobra.Command {
	var o traceOptions
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Follow packets through every stage, to the verdict and its cause",
		Long: `Follow the next packets that match through every stage of this node's engine: what was found there, when, and what became of
the packet and why. Addresses, protocol and ports are those inside the encapsulation, of the packet itself: its answer goes the other
way. Packets that the engine makes about one that is shown are shown too, and do not count.

--peer-run-dir names the run directory of the other node's daemon, on this machine or by its forwarded socket (ssh -L
/tmp/n2/tulle.sock:/run/tulle/tulle.sock). The packets' ways through both nodes are joined by what stays the same on the wire: addresses,
protocol, ports, IP identification, sequence numbers and checksums. Where two packets have all of that in common the older ones are
joined first. Times of both nodes are on one axis iff their daemons have one clock, on one machine.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()); err != nil {
				return fmt.Errorf("tulle trace: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	f.StringVar(&o.peerRunDir, "peer-run-dir", "", "the other node's run directory: follow packets through both nodes")
	f.StringVarP(&o.output, "output", "o", "table", "format: table, or json with one object a line for each packet")
	f.IntVarP(&o.count, "count", "c", 10, "end after this many packets, 0 for no end")
	f.DurationVar(&o.timeout, "timeout", 0, "end after this time, 0 for no end")
	f.StringVar(&o.peer, "peer", "", "only packets from or to this node")
	f.StringVar(&o.proto, "proto", "", "only this protocol: tcp, udp, icmp, icmpv6, or a number")
	f.StringVar(&o.src, "src", "", "only packets from this address or prefix")
	f.StringVar(&o.dst, "dst", "", "only packets to this address or prefix")
	f.StringVar(&o.sport, "sport", "", "only packets from this port")
	f.StringVar(&o.dport, "dport", "", "only packets to this port")
	f.BoolVar(&o.drops, "drops", false, "only packets that are dropped")
	f.StringVar(&o.sample, "sample", "1/1", "look at one of N packets that match: 1/N")
	return cmd
}

func (o *traceOptions) run(ctx context.Context, out, messages io.Writer) error {
	if o.output != "table" && o.output != "json" {
		return usageError("-o %s: unknown format (allowed: table, json)", o.output)
	}
	query := o.query()
	if _, _, err := parseTrace(query); err != nil {
		return usageError("%w", err)
	}
	if o.peerRunDir == "" {
		return newTraceView(o, out, messages).single(ctx, query)
	}
	if o.sample != "1/1" {
		return usageError("--sample and --peer-run-dir exclude each other: the nodes would not choose the same packets")
	}
	for _, chosenHere := range []string{"count", "peer", "drops"} { // known once both halves are
		query.Del(chosenHere)
	}
	return newTraceView(o, out, messages).double(ctx, query)
}

func (o *traceOptions) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"peer": o.peer, "proto": o.proto, "src": o.src, "dst": o.dst, "sport": o.sport, "dport": o.dport, "sample": o.sample} {
		if value != "" {
			q.Set(name, value)
		}
	}
	q.Set("count", strconv.Itoa(o.count))
	q.Set("drops", strconv.FormatBool(o.drops))
	q.Set("timeout", o.timeout.String())
	return q
}

// A traceView shows packets as they come.
type traceView struct {
	options *traceOptions
	out     io.Writer
	encoder *json.Encoder
	log     io.Writer

	joiner   traceJoiner
	oneClock bool
	heads    [2]traceHead  // of this node, and of the other one
	missed   [2]uint64     // likewise
	shown    int           // packets that count
	numbers  map[wayID]int // of packets shown, by each of their ways
	number   int           // of the last packet
}

// A wayID names a way for as long as a trace runs.
type wayID struct {
	node   string
	worker int
	serial uint64
}

func newTraceView(o *traceOptions, out, messages io.Writer) *traceView {
	return &traceView{options: o, out: out, encoder: json.NewEncoder(out), log: messages, numbers: map[wayID]int{}}
}

// single follows packets on one node, which chooses them.
func (v *traceView) single(ctx context.Context, query url.Values) error {
	err := follow(ctx, v.options.runDir, pathTrace+"?"+query.Encode(), func(line traceLine) error {
		v.note(0, line)
		if line.Way != nil {
			v.joiner.add(line.Way, time.Now())
		}
		if err := v.show(time.Now()); err != nil {
			return err
		}
		if line.End {
			return io.EOF
		}
		return nil
	})
	return v.end(ctx, err)
}

// note takes what is not about a packet from a line of a node's.
func (v *traceView) note(node int, line traceLine) {
	v.missed[node] = line.Missed
	if line.Head != nil {
		v.heads[node] = *line.Head
		if names := v.following(); names != "" {
			fmt.Fprintf(v.log, "following packets on %s\n", names)
		}
	}
}

// following names the nodes once all of them follow packets.
func (v *traceView) following() string {
	here, other := v.heads[0].Node, v.heads[1].Node
	switch {
	case v.options.peerRunDir == "":
		return here
	case here == "" || other == "":
		return ""
	}
	return here + " and " + other
}

// end says how the trace was, and passes its error on. That the asker has had enough is none.
func (v *traceView) end(ctx context.Context, err error) error {
	if err != nil && ctx.Err() == nil {
		return err
	}
	fmt.Fprintf(v.log, "%d packets, %d missed\n", v.shown, v.missed[0]+v.missed[1])
	return nil
}

// show prints the packets that are ready. When enough were it returns io.EOF, unless the node counts itself.
func (v *traceView) show(now time.Time) error {
	for _, g := range v.joiner.ready(now) {
		if v.joiner.other != "" && !v.concerns(g) {
			continue
		}
		if err := v.print(v.numbered(g)); err != nil {
			return err
		}
		if v.joiner.other != "" && v.options.count > 0 && v.shown >= v.options.count {
			return io.EOF
		}
	}
	return nil
}

// numbered gives a packet its number, and that of the one that it is about.
func (v *traceView) numbered(g *traceGroup) *tracedPacket {
	p := g.report(v.joiner.otherThan(g.ways[0].Node, v.heads[0].Node), v.oneClock)
	v.number++
	p.Number = v.number
	if first := g.ways[0]; first.Made {
		p.About = v.numbers[wayID{first.Node, first.Worker, first.About}]
	}
	if p.About == 0 {
		v.shown++
	}
	if len(v.numbers) > 4096 { // what is about a packet comes soon after it
		clear(v.numbers)
	}
	for _, w := range g.ways {
		v.numbers[wayID{w.Node, w.Worker, w.Serial}] = p.Number
	}
	return p
}

func (v *traceView) print(p *tracedPacket) error {
	if v.options.output == "json" {
		return v.encoder.Encode(p)
	}
	return writeTraced(v.out, p)
}

// concerns says whether a packet of two nodes is one to show: it was on this node or was to be, and has what the command line asks for.
func (v *traceView) concerns(g *traceGroup) bool {
	o, here := v.options, v.heads[0].Node
	near, peer, drop := false, o.peer == "", !o.drops
	for _, w := range g.ways {
		_, about := v.numbers[wayID{w.Node, w.Worker, w.About}]
		if w.Made && about {
			return true
		}
		near = near || w.Node == here || w.Peer == here
		peer = peer || w.Peer == o.peer
		drop = drop || dropped(w)
	}
	return near && peer && drop
}

// A nodeLine is a line of one of two nodes, or the end of what it says.
type nodeLine struct {
	node int
	line traceLine
	err  error
	over bool
}

// double follows packets on two nodes and joins their halves.
func (v *traceView) double(ctx context.Context, query url.Values) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := make(chan nodeLine)
	for node, dir := range []string{v.options.runDir, v.options.peerRunDir} {
		go func() { // ends with inner
			send := func(l nodeLine) error {
				select {
				case lines <- l:
					return nil
				case <-inner.Done():
					return inner.Err()
				}
			}
			err := follow(inner, dir, pathTrace+"?"+query.Encode(), func(line traceLine) error {
				if err := send(nodeLine{node: node, line: line}); err != nil {
					return err
				}
				if line.End {
					return io.EOF
				}
				return nil
			})
			send(nodeLine{node: node, err: err, over: true})
		}()
	}
	err := v.gather(inner, lines)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return v.end(ctx, err)
}

// gather shows what two nodes say until both are over, one fails, or enough was shown: io.EOF.
func (v *traceView) gather(ctx context.Context, lines <-chan nodeLine) error {
	ticker := time.NewTicker(traceInterval)
	defer ticker.Stop()
	for running := 2; running > 0; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case l := <-lines:
			if l.err != nil {
				return l.err
			}
			if l.over {
				running--
			} else if err := v.take(l); err != nil {
				return err
			}
		}
		if err := v.show(time.Now()); err != nil {
			return err
		}
	}
	return v.show(time.Now().Add(joinWait)) // nothing more comes
}

// take takes a line of one of two nodes.
func (v *traceView) take(l nodeLine) error {
	v.note(l.node, l.line)
	if l.line.Head != nil && l.node == 1 {
		v.joiner.other = l.line.Head.Node
	}
	if a, b := v.heads[0], v.heads[1]; a.Node != "" && a.Node == b.Node {
		return usageError("--run-dir and --peer-run-dir lead both to node %s", a.Node)
	} else if b.Node != "" {
		v.oneClock = a.Clock == b.Clock
	}
	if l.line.Way != nil {
		v.joiner.add(l.line.Way, time.Now())
	}
	return nil
}
