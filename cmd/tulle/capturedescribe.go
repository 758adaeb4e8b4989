package main

import (
	"cmp"
	"net/netip"
	"strconv"
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

// headers reads the outermost and the inner headers of a record. The outer ones are zero when it begins with the inner ones, and the
// inner ones when there are none.
func (d describer) headers(r *capture.Record) (outer, inner capture.Headers) {
	i := d.Interfaces[r.Interface]
	first := capture.Dissect(r.Data, i.Link, r.Length)
	if i.Stage != capture.Wire && r.Flags&capture.FlagSynthesized == 0 {
		return outer, first
	}
	data, link := d.Tunnel.Inner(r.Data, &first)
	if data == nil {
		return first, inner
	}
	return first, capture.Dissect(data, link, len(data))
}

// appendFlow names the flow that an IP packet is of.
func appendFlow(b []byte, h *capture.Headers) []byte {
	end := func(a netip.Addr, port uint16) {
		if !h.HasPorts {
			b = a.AppendTo(b)
			return
		}
		b = netip.AddrPortFrom(a, port).AppendTo(b)
	}
	b = append(append(b, protoName(h.Proto)...), ' ')
	end(h.Src, h.SrcPort)
	b = append(b, " > "...)
	end(h.Dst, h.DstPort)
	return b
}

// appendComment says what is known of a packet beside its bytes. It is called for each packet, beside a packet path that wants the same
// CPUs: it allocates nothing.
func (d describer) appendComment(b []byte, r *capture.Record) []byte {
	i := d.Interfaces[r.Interface]
	b = append(append(b, "stage "...), i.Stage.String()...)
	if i.Stage != capture.Wire {
		b = append(append(b, ", verdict "...), cmp.Or(d.verdict(r), "open")...)
		b = append(append(b, ", peer "...), cmp.Or(printable(r.Peer), "none")...)
	}
	if _, inner := d.headers(r); inner.IP {
		b = appendFlow(append(b, ", flow "...), &inner)
	}
	if r.FlowID != 0 {
		b = strconv.AppendUint(append(b, ", id "...), r.FlowID, 16)
		b = append(b, map[bool]string{true: " (known)", false: " (new)"}[r.Flags&capture.FlagKnown != 0]...)
	}
	if r.Serial != 0 {
		b = strconv.AppendInt(append(b, ", worker "...), int64(r.Worker), 10)
		b = strconv.AppendUint(append(b, ", packet "...), r.Serial, 10)
	}
	if r.Segments > 1 {
		b = strconv.AppendInt(append(b, ", super-packet of "...), int64(r.Segments), 10)
		b = strconv.AppendInt(append(b, " segments × "...), int64(r.Size), 10)
		b = append(b, " bytes"...)
	}
	for _, f := range flagTexts {
		if r.Flags&f.flag != 0 {
			b = append(append(b, ", "...), f.text...)
		}
	}
	return b
}

var flagTexts = []struct {
	flag capture.Flags
	text string
}{
	{capture.FlagPartial, "checksum left to the device"}, {capture.FlagMade, "made by the engine"},
	{capture.FlagSynthesized, "synthesized outer IP and UDP headers"}, {capture.FlagVLAN, "VLAN tag put back in by the capture"},
	{capture.FlagCut, "cut out of a send of several datagrams"},
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
