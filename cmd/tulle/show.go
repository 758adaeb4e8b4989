package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// readingCommand returns a command that gets one report from the daemon and shows it as a table or as JSON.
func readingCommand[T any](use, short, path string, table func(io.Writer, T) error) *cobra.Command {
	var runDir, output string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return usageError("tulle %s: -o %s: unknown format (allowed: table, json)", use, output)
			}
			report, err := ask[T](cmd.Context(), runDir, path)
			if err != nil {
				return fmt.Errorf("tulle %s: %w", use, err)
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), report)
			}
			return table(cmd.OutOrStdout(), report)
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", defaultRunDir, "the daemon's run directory")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "format: table or json")
	return cmd
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func newStatusCommand() *cobra.Command {
	return readingCommand("status", "Show this node, its peers and its counters", pathStatus, writeStatus)
}

func newRoutesCommand() *cobra.Command {
	return readingCommand("routes", "Show the engine's forwarding table", pathRoutes, writeRoutes)
}

func newPeersCommand() *cobra.Command {
	return readingCommand("peers", "Show the other nodes, and what is wrong with them", pathPeers, writePeers)
}

func writePeers(out io.Writer, r *peersReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	writePeerTable(w, r.Peers)
	for _, p := range r.Problems {
		fmt.Fprintf(w, "problem: %s\n", p)
	}
	return w.Flush()
}

func writePeerTable(w io.Writer, peers []peerReport) {
	fmt.Fprint(w, "PEER\tSTATE\tPUBLIC IP\tSUBNET\tBACKEND\tSOURCE\tLAST SEEN\tMTU\tRTT\tLOSS\tREASON\n")
	for _, p := range peers {
		seen := "-"
		if p.LastSeenSeconds != nil {
			seen = fmt.Sprintf("%.0fs ago", *p.LastSeenSeconds)
		}
		state := p.State
		if !p.Routable {
			state += ", no route"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, state, both(p.PublicIP, p.PublicIPv6),
			cmp.Or(both(p.Subnet, p.IPv6Subnet), "-"), map[bool]string{true: "native", false: p.Backend}[p.Native], p.Source, seen, pathColumns(p.Paths), p.why())
	}
}

// why says what is wrong with a peer, or with the paths to it.
func (p *peerReport) why() string {
	var reasons []string
	if p.Reason != "" {
		reasons = append(reasons, p.Reason)
	}
	for _, path := range p.Paths {
		if path.Reason != "" {
			reasons = append(reasons, path.Reason)
		}
	}
	return strings.Join(reasons, "; ")
}

// pathColumns are the measured MTU, RTT and loss of a peer's paths, a value for each address family.
func pathColumns(paths []pathReport) string {
	var mtu, rtt, loss []string
	for _, p := range paths {
		mtu = append(mtu, strconv.Itoa(p.MTU))
		loss = append(loss, fmt.Sprintf("%.0f%%", 100*p.Loss))
		if p.RTTMillis == nil {
			rtt = append(rtt, "no answer")
			continue
		}
		rtt = append(rtt, fmt.Sprintf("%.2fms", *p.RTTMillis))
	}
	var columns []string
	for _, values := range [][]string{mtu, rtt, loss} {
		columns = append(columns, cmp.Or(strings.Join(values, ","), "-"))
	}
	return strings.Join(columns, "\t")
}

func writeStatus(out io.Writer, r *statusReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	n := r.Node
	fmt.Fprintf(w, "node\t%s, pid %d, up %s, tulle %s\n", n.Name, r.PID, (time.Duration(r.UptimeSeconds) * time.Second).String(), r.Version)
	if both(n.Subnet, n.IPv6Subnet) == "" {
		fmt.Fprintf(w, "subnet\tnone yet, of %s\n", both(n.Network, n.IPv6Network))
	}
	for _, h := range [][4]string{{n.Subnet, n.Network, n.TunnelAddr, n.EngineAddr}, {n.IPv6Subnet, n.IPv6Network, n.IPv6TunnelAddr, n.IPv6EngineAddr}} {
		if h[0] != "" {
			fmt.Fprintf(w, "subnet\t%s of %s (node %s, engine %s), pod MTU %d, from %s\n", h[0], h[1], h[2], h[3], n.MTU, n.Store)
		}
	}
	if n.Backend == netconf.TypeVXLAN {
		fmt.Fprintf(w, "backend\t%s VNI %d port %d, VTEP %s\n", n.Backend, n.VNI, n.Port, n.VTEPMAC)
	} else {
		fmt.Fprintf(w, "backend\t%s port %d\n", n.Backend, n.Port)
	}
	writeTAP(w, r.TAP)
	u := r.Underlay
	fmt.Fprintf(w, "underlay\t%s on %s (%s, MTU %d): %s; %d fallbacks, %d bytes queued, %d dropped by full sockets\n",
		u.Kind, both(n.PublicIP, n.PublicIPv6), u.Link, u.LinkMTU, strings.Join(u.Offloads, " "), u.Fallbacks, u.QueuedBytes, u.SocketDrops)
	fmt.Fprintf(w, "limits\t%s\n", strings.Join(u.Limits, "; "))
	writeCounts(w, "outer drops", u.OuterDrops)
	l := r.Engine.Ledger
	fmt.Fprintf(w, "ledger\tin %d + generated %d + inherited %d = out %d + consumed %d + dropped %d + queued %d: %s\n",
		l.In, l.Generated, l.Inherited, l.Out, l.Consumed, l.Dropped, l.Queued, map[bool]string{true: "balanced", false: "NOT BALANCED"}[r.Engine.Balanced])
	f := r.Flows
	fmt.Fprintf(w, "flows\t%d of %d, IPv6 %d of %d: %d begun, %d expired, %d evicted, %d found no room, %d of sources that have %d\n",
		f.Flows4, f.Capacity4, f.Flows6, f.Capacity6, f.Inserted, f.Expired, f.Evicted, f.Full, f.OverQuota, f.PerSource)
	writeHolder(w, r.Holder)
	if r.NotReady != "" {
		fmt.Fprintf(w, "not ready\t%s\n", r.NotReady)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "problem\t%s\n", p)
	}
	writeCounts(w, "repaired", r.Repairs)
	writeCounts(w, "refused", r.Refused)
	writeCounts(w, "pods' drops", r.PodDrops)
	fmt.Fprintln(w)
	writePeerTable(w, r.Peers)
	fmt.Fprint(w, "\nPORT\tFRAMES IN\tSEGMENTS IN\tBYTES IN\tFRAMES OUT\tSEGMENTS OUT\tBYTES OUT\n")
	for _, p := range r.Engine.Ports {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\n", p.Name, p.FramesIn, p.SegmentsIn, p.BytesIn, p.FramesOut, p.SegmentsOut, p.BytesOut)
	}
	fmt.Fprint(w, "\nVERDICT\tSEGMENTS\n")
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		if n := r.Verdicts[v.String()]; n > 0 {
			fmt.Fprintf(w, "%s\t%d\n", v, n)
		}
	}
	return w.Flush()
}

// both shows what a node has of both families.
func both(v4, v6 string) string {
	if v4 == "" || v6 == "" {
		return v4 + v6
	}
	return v4 + "," + v6
}

func writeTAP(w io.Writer, t tapReport) {
	fmt.Fprintf(w, "tap\t%s, device %s, %d queues: %s\n", t.Name, t.Device, t.Queues, cmp.Or(strings.Join(t.Offloads, " "), "no offloads"))
	for _, sentence := range t.Cannot {
		fmt.Fprintf(w, "\t%s\n", sentence)
	}
	if k := t.Kernel; k != nil {
		fmt.Fprintf(w, "\tby the kernel's count %d frames in, %d out: %s; %d dropped by a full queue\n",
			k.In, k.Out, map[bool]string{true: "the engine agrees", false: "THE ENGINE DOES NOT AGREE"}[k.Agrees], k.Dropped)
	}
	if t.Lost > 0 {
		fmt.Fprintf(w, "\t%d packets lost by the device's library\n", t.Lost)
	}
}

func writeHolder(w io.Writer, r holderReport) {
	switch {
	case r.Keeps > 0:
		fmt.Fprintf(w, "holder\tkeeps %d descriptors while this daemon is dead\n", r.Keeps)
	default:
		fmt.Fprintf(w, "holder\tnone: %s: a kill costs the queued packets and the flows\n", r.Problem)
	}
	if len(r.Adopted) > 0 {
		fmt.Fprintf(w, "adopted\t%s\n", strings.Join(r.Adopted, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(r.NotAdopted)) {
		fmt.Fprintf(w, "not adopted\t%s: %s\n", name, r.NotAdopted[name])
	}
}

// writeCounts writes a line with the counters that are not zero, if there are any.
func writeCounts[K ~string](w io.Writer, name string, counts map[K]uint64) {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		if counts[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", k, counts[k]))
		}
	}
	if len(parts) > 0 {
		fmt.Fprintf(w, "%s\t%s\n", name, strings.Join(parts, ", "))
	}
}

func writeRoutes(out io.Writer, r *routesReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "PREFIX\tKIND\tPEER\tENDPOINT\tVTEP\n")
	for _, e := range r.Routes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Prefix, e.Kind, e.Peer, e.Endpoint, e.VTEPMAC)
	}
	return w.Flush()
}
