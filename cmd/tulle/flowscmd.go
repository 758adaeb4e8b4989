package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// watchInterval is how often tulle flows --watch looks.
const watchInterval = time.Second

// flowsOptions are the flags of tulle flows.
type flowsOptions struct {
	runDir, output             string
	peer, proto, src, dst, sum string
	limit                      int
	watch                      bool
}

func newFlowsCommand() *cobra.Command {
	var o flowsOptions
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List the flows that pass through this node's engine",
		Long: `List the flows that pass through this node's engine, each in the direction of its first packet.

--sum counts them by what they have in common. --watch goes on: it prints each flow that begins (+), changes its state (~) or
ends (-); with -o json a line of JSON for each.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.run(cmd.Context(), cmd.OutOrStdout()); err != nil {
				return fmt.Errorf("tulle flows: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	f.StringVarP(&o.output, "output", "o", "table", "format: table or json")
	f.StringVar(&o.peer, "peer", "", "only flows with this node")
	f.StringVar(&o.proto, "proto", "", "only this protocol: tcp, udp, icmp, icmpv6, or a number")
	f.StringVar(&o.src, "src", "", "only flows from this address or prefix")
	f.StringVar(&o.dst, "dst", "", "only flows to this address or prefix")
	f.StringVar(&o.sum, "sum", "", "count the flows by peer, proto, state, src or dst instead of listing them")
	f.IntVar(&o.limit, "limit", 10000, "list at most this many flows, 0 for all")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on and print what changes")
	return cmd
}

func (o *flowsOptions) run(ctx context.Context, out io.Writer) error {
	if o.output != "table" && o.output != "json" {
		return usageError("-o %s: unknown format (allowed: table, json)", o.output)
	}
	if o.watch && o.sum != "" {
		return usageError("--watch and --sum exclude each other")
	}
	query := o.query()
	if _, err := parseFlowFilter(query); err != nil {
		return usageError("%w", err)
	}
	if o.watch {
		return o.follow(ctx, out, query)
	}
	r, err := ask[*flowsReport](ctx, o.runDir, pathFlows+"?"+query.Encode())
	if err != nil {
		return err
	}
	switch {
	case o.output == "json":
		return writeJSON(out, r)
	case o.sum != "":
		return writeFlowSums(out, o.sum, r)
	}
	return writeFlows(out, r)
}

func (o *flowsOptions) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"peer": o.peer, "proto": o.proto, "src": o.src, "dst": o.dst, "sum": o.sum} {
		if value != "" {
			q.Set(name, value)
		}
	}
	q.Set("limit", strconv.Itoa(o.limit))
	if o.sum != "" && o.output != "json" {
		q.Set("limit", "1") // the sums are of all
	}
	return q
}

func writeFlows(out io.Writer, r *flowsReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "PROTO\tSTATE\tSRC\tDST\tPEER\tAGE\tIDLE\tID\n")
	for i := range r.Flows {
		writeFlow(w, &r.Flows[i])
	}
	if left := r.Matching - len(r.Flows); left > 0 {
		fmt.Fprintf(w, "and %d more: narrow the filter or raise --limit\n", left)
	}
	return w.Flush()
}

func writeFlow(w io.Writer, f *flowReport) {
	peer := f.Peer
	if peer == "" {
		peer = "-"
	}
	state := f.State
	if !f.Replied {
		state += ", no reply"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.0fs\t%.0fs\t%s\n", f.Proto, state, endpoint(f.Src, f.SrcPort), endpoint(f.Dst, f.DstPort), peer, f.AgeSeconds, f.IdleSeconds, f.ID)
}

func endpoint(addr string, port uint16) string {
	return net.JoinHostPort(addr, strconv.Itoa(int(port)))
}

func writeFlowSums(out io.Writer, by string, r *flowsReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tFLOWS\n", by)
	for _, s := range r.Sums {
		fmt.Fprintf(w, "%s\t%d\n", s.Key, s.Flows)
	}
	fmt.Fprintf(w, "all\t%d\n", r.Matching)
	return w.Flush()
}

// A flowEvent is a line of tulle flows --watch -o json.
type flowEvent struct {
	SchemaVersion int        `json:"schemaVersion"`
	Event         string     `json:"event"` // new, state or end
	Flow          flowReport `json:"flow"`
}

// follow prints what changes until ctx ends.
func (o *flowsOptions) follow(ctx context.Context, out io.Writer, query url.Values) error {
	query.Set("limit", "0")
	known := map[string]flowReport{}
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		r, err := ask[*flowsReport](ctx, o.runDir, pathFlows+"?"+query.Encode())
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range flowChanges(known, r.Flows) {
			if err := o.writeEvent(out, e); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// flowChanges brings known up to date and returns what is different.
func flowChanges(known map[string]flowReport, now []flowReport) (events []flowEvent) {
	seen := make(map[string]bool, len(now))
	for _, f := range now {
		seen[f.ID] = true
		old, ok := known[f.ID]
		known[f.ID] = f
		switch {
		case !ok:
			events = append(events, flowEvent{schemaVersion, "new", f})
		case old.State != f.State || old.Replied != f.Replied:
			events = append(events, flowEvent{schemaVersion, "state", f})
		}
	}
	for id, f := range known {
		if !seen[id] {
			delete(known, id)
			events = append(events, flowEvent{schemaVersion, "end", f})
		}
	}
	return events
}

func (o *flowsOptions) writeEvent(out io.Writer, e flowEvent) error {
	if o.output == "json" {
		return json.NewEncoder(out).Encode(e)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, map[string]string{"new": "+ ", "state": "~ ", "end": "- "}[e.Event])
	writeFlow(w, &e.Flow)
	return w.Flush()
}
