package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// writeTraced shows a packet and its stages, the times in microseconds since the first one of all or, on two clocks, of each node.
func writeTraced(out io.Writer, p *tracedPacket) error {
	fmt.Fprintf(out, "#%d", p.Number)
	if p.About > 0 {
		fmt.Fprintf(out, " (about #%d)", p.About)
	}
	fmt.Fprintf(out, " %s\n", describePacket(&p.Packet))
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	ways := p.Ways[:min(2, len(p.Ways))] // the further segments of a super-packet are like the first
	for _, way := range ways {
		start := way.Start
		if p.OneClock {
			start = p.Ways[0].Start
		}
		for _, s := range way.Stages {
			us := float64(way.Start-start)/1e3 + s.Microseconds
			fmt.Fprintf(w, "    %s\t%s\t%+.1f µs\t%s\n", way.Node, s.Stage, us, s.Found)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(p.Ways) > 1 {
		fmt.Fprintf(out, "    %s\n", describeOtherHalf(p))
	}
	if p.NotSeenOn != "" {
		fmt.Fprintf(out, "    not seen on %s within %v: look at what lies between the two nodes' engines\n", p.NotSeenOn, joinWait)
	}
	_, err := fmt.Fprintf(out, "    %s: %s\n", p.Verdict, p.Cause)
	return err
}

func describeOtherHalf(p *tracedPacket) string {
	text := "the times are by the clocks of two machines: no time between them is known"
	if p.OneWayMicroseconds != nil {
		text = fmt.Sprintf("%.1f µs from encap on %s to read on %s", *p.OneWayMicroseconds, p.Ways[0].Node, p.Ways[1].Node)
	}
	if more := len(p.Ways) - 2; more > 0 {
		text += fmt.Sprintf("; %d more pieces of it arrived", more)
	}
	return text
}

func describePacket(p *packetReport) string {
	if p.Src == "" {
		return cmp.Or(strings.TrimPrefix(p.Proto, "0x0000"), "too short to know")
	}
	text := fmt.Sprintf("%s %s > %s", p.Proto, p.Src, p.Dst)
	if p.Proto == "tcp" || p.Proto == "udp" {
		text = fmt.Sprintf("%s %s > %s", p.Proto, endpoint(p.Src, p.SrcPort), endpoint(p.Dst, p.DstPort))
	}
	if p.Message != "" {
		text += ", " + p.Message
	}
	switch {
	case p.Proto == "tcp":
		text += fmt.Sprintf(" seq %d, %d bytes of data", p.Seq, p.Payload)
	case p.SrcPort > 0 && p.Proto != "udp":
		text += fmt.Sprintf(" id %d seq %d", p.SrcPort, p.Seq)
	}
	if p.Offset > 0 {
		text += fmt.Sprintf(" at %d", p.Offset)
	}
	return text + fmt.Sprintf(", %d bytes", p.Length)
}
