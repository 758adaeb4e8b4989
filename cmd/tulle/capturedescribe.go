package main

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/tulle-net/tulle/dataplane/capture"
)

// A describer knows what a capture's records mean.
type describer struct{ *captureHello }

// verdict names a record's verdict, "" when there is none (yet).
func (d describer) verdict(r *capture.Record) string {
	if n := int(r.Verdict); n > 0 && n < len(d.Verdicts) {
		return d.Verdicts[n]
	}
	return ""
}

// headers reads the outermost and the inner headers of a record; outer is nil when it begins with the inner ones, and inner is
// when there are none.
func (d describer) headers(r *capture.Record) (outer, inner *capture.Headers) {
	i := d.Interfaces[r.Interface]
	h := capture.Dissect(r.Data, i.Link, r.Length)
	if i.Stage != capture.Wire && r.Flags&capture.FlagSynthesized == 0 {
		return nil, &h
	}
	data, link := d.Tunnel.Inner(r.Data, &h)
	if data == nil {
		return &h, nil
	}
	in := capture.Dissect(data, link, len(data))
	return &h, &in
}

// flow names the flow that a packet is of, "" when it is no IP.
func flowText(h *capture.Headers) string {
	switch {
	case h == nil || !h.IP:
		return ""
	case h.HasPorts:
		return fmt.Sprintf("%s %s > %s", protoName(h.Proto), endpoint(h.Src.String(), h.SrcPort), endpoint(h.Dst.String(), h.DstPort))
	}
	return fmt.Sprintf("%s %s > %s", protoName(h.Proto), h.Src, h.Dst)
}

// comment says what is known of a packet beside its bytes.
func (d describer) comment(r *capture.Record) string {
	i := d.Interfaces[r.Interface]
	parts := []string{"stage " + i.Stage.String()}
	add := func(ok bool, format string, args ...any) {
		if ok {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	if i.Stage != capture.Wire {
		verdict := d.verdict(r)
		add(true, "verdict %s", map[bool]string{true: "open", false: verdict}[verdict == ""])
		add(true, "peer %s", map[bool]string{true: "none", false: printable(r.Peer)}[r.Peer == ""])
	}
	_, inner := d.headers(r)
	flow := flowText(inner)
	add(flow != "", "flow %s", flow)
	add(r.FlowID != 0, "id %x (%s)", r.FlowID, map[bool]string{true: "known", false: "new"}[r.Flags&capture.FlagKnown != 0])
	add(r.Serial != 0, "worker %d, packet %d", r.Worker, r.Serial)
	add(r.Segments > 1, "super-packet of %d segments × %d bytes", r.Segments, r.Size)
	add(r.Flags&capture.FlagPartial != 0, "checksum left to the device")
	add(r.Flags&capture.FlagMade != 0, "made by the engine")
	add(r.Flags&capture.FlagSynthesized != 0, "synthesized outer IP and UDP headers")
	add(r.Flags&capture.FlagVLAN != 0, "VLAN tag put back in by the capture")
	return strings.Join(parts, ", ")
}

// printable keeps other nodes' names from writing to a terminal what is no name.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func direction(r *capture.Record) capture.Direction {
	switch {
	case r.Flags&capture.FlagInbound != 0:
		return capture.Inbound
	case r.Flags&capture.FlagOutbound != 0:
		return capture.Outbound
	}
	return capture.NoDirection
}

// block is a record as the file has it.
func (d describer) block(r *capture.Record) *capture.Block {
	return &capture.Block{Interface: r.Interface, Time: r.Time, Data: r.Data, Length: r.Length, Direction: direction(r), Comment: d.comment(r)}
}
