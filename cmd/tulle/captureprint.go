package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/capture"
)

// A capturePrinter shows a line for each packet.
type capturePrinter struct {
	describer
	out     *bufio.Writer
	json    bool
	verbose bool
}

func newCapturePrinter(out io.Writer, d describer, o *captureOptions) *capturePrinter {
	inner := layers.LayerTypeVXLAN
	if !d.Tunnel.VXLAN {
		inner = layers.LayerTypeIPv4
	}
	layers.RegisterUDPPortLayerType(layers.UDPPort(d.Tunnel.Port), inner)
	return &capturePrinter{describer: d, out: bufio.NewWriter(out), json: o.output == "json", verbose: o.verbose}
}

func (p *capturePrinter) stats(*capture.Statistics) error { return nil }
func (p *capturePrinter) flush() error                    { return p.out.Flush() }
func (p *capturePrinter) close() error                    { return p.out.Flush() }

func (p *capturePrinter) packet(r *capture.Record) error {
	all := decode(r.Data, p.Interfaces[r.Interface].Link)
	if p.json {
		return p.writeJSON(r, all)
	}
	i := p.Interfaces[r.Interface]
	way := map[capture.Direction]string{capture.Inbound: "in", capture.Outbound: "out"}[direction(r)]
	fmt.Fprintf(p.out, "%s %-5s %-3s %s, %d bytes", r.Time.Format("15:04:05.000000"), i.Stage, way, summary(all), r.Length)
	_, rest, _ := strings.Cut(string(p.appendComment(nil, r)), ", ")
	if _, err := fmt.Fprintf(p.out, " {%s}\n", rest); err != nil || !p.verbose {
		return err
	}
	for _, l := range all {
		fmt.Fprintf(p.out, "    %s:%s\n", l.LayerType(), fieldText(l))
	}
	return nil
}

// decode returns the layers of a packet. gopacket may panic on what is none.
func decode(data []byte, link capture.LinkType) (all []gopacket.Layer) {
	first := gopacket.Decoder(layers.LayerTypeEthernet)
	if link == capture.RawIP {
		first = layers.LayerTypeIPv4
		if len(data) > 0 && data[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
	}
	defer func() {
		if recover() != nil {
			all = append(all, &gopacket.DecodeFailure{})
		}
	}()
	return gopacket.NewPacket(data, first, gopacket.DecodeOptions{NoCopy: true}).Layers()
}

// summary names what the layers are about, from the outermost on.
func summary(all []gopacket.Layer) string {
	var parts []string
	var src, dst string // of the IP header that is not told yet
	say := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	addresses := func(name string) {
		if src != "" {
			say("%s > %s %s", src, dst, name)
			src, dst = "", ""
		}
	}
	for _, layer := range all {
		switch l := layer.(type) {
		case *layers.IPv4:
			addresses("ip")
			src, dst = l.SrcIP.String(), l.DstIP.String()
			if l.FragOffset > 0 || l.Flags&layers.IPv4MoreFragments != 0 {
				addresses(fmt.Sprintf("fragment id %d at %d", l.Id, int(l.FragOffset)*8))
			}
		case *layers.IPv6:
			addresses("ip")
			src, dst = l.SrcIP.String(), l.DstIP.String()
		case *layers.IPv6Fragment:
			addresses(fmt.Sprintf("fragment id %d at %d", l.Identification, int(l.FragmentOffset)*8))
		case *layers.UDP:
			say("%s > %s udp", endpoint(src, uint16(l.SrcPort)), endpoint(dst, uint16(l.DstPort)))
			src, dst = "", ""
		case *layers.TCP:
			say("%s > %s tcp [%s] seq %d ack %d win %d", endpoint(src, uint16(l.SrcPort)), endpoint(dst, uint16(l.DstPort)), tcpFlags(l), l.Seq, l.Ack, l.Window)
			src, dst = "", ""
		case *layers.ICMPv4:
			addresses("icmp")
			say("%s id %d seq %d", l.TypeCode, l.Id, l.Seq)
		case *layers.ICMPv6:
			addresses("icmp6")
			say("%s", l.TypeCode)
		case *layers.VXLAN:
			say("vxlan vni %d |", l.VNI)
		case *layers.ARP:
			say("arp %s asks %s for %s", ipText(l.SourceProtAddress), arpOperation(l.Operation), ipText(l.DstProtAddress))
		case gopacket.ErrorLayer:
			say("(cut or malformed)")
		}
	}
	addresses("ip")
	if len(parts) == 0 {
		return "no IP"
	}
	return strings.Join(parts, " ")
}

func tcpFlags(l *layers.TCP) string {
	var out strings.Builder
	for _, f := range []struct {
		set  bool
		name string
	}{{l.SYN, "S"}, {l.FIN, "F"}, {l.RST, "R"}, {l.PSH, "P"}, {l.URG, "U"}, {l.ECE, "E"}, {l.CWR, "W"}, {l.ACK, "."}} {
		if f.set {
			out.WriteString(f.name)
		}
	}
	return out.String()
}

func ipText(b []byte) string {
	if len(b) != 4 {
		return "?"
	}
	return fmt.Sprintf("%d.%d.%d.%d", b[0], b[1], b[2], b[3])
}

func arpOperation(op uint16) string {
	return map[uint16]string{layers.ARPRequest: "request", layers.ARPReply: "reply"}[op]
}

// A field is one of a header.
type field struct {
	name  string
	value any
}

// fields lists the fields of a layer's header. The VXLAN header is read here, because gopacket leaves out its reserved bits.
func fields(l gopacket.Layer) (all []field) {
	if v, ok := l.(*layers.VXLAN); ok && len(v.Contents) == vxlanHeaderLen {
		b := v.Contents
		return []field{{"Flags", fmt.Sprintf("%#02x", b[0])}, {"I", b[0]&8 != 0}, {"Reserved1", fmt.Sprintf("%x", b[1:4])}, {"VNI", v.VNI}, {"Reserved2", fmt.Sprintf("%02x", b[7])}}
	}
	v := reflect.Indirect(reflect.ValueOf(l))
	if v.Kind() != reflect.Struct {
		return []field{{"Bytes", len(l.LayerContents())}}
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.IsExported() && !f.Anonymous && f.Name != "Padding" {
			all = append(all, field{f.Name, fieldValue(v.Field(i).Interface())})
		}
	}
	return all
}

const vxlanHeaderLen = 8

// fieldValue makes a value fit for a line.
func fieldValue(v any) any {
	switch v := v.(type) {
	case layers.UDPPort:
		return uint16(v)
	case layers.TCPPort:
		return uint16(v)
	case fmt.Stringer:
		return v.String()
	case []byte:
		return fmt.Sprintf("%x", v)
	case bool, uint8, uint16, uint32, int, int8, string:
		return v
	}
	return fmt.Sprintf("%v", v)
}

func fieldText(l gopacket.Layer) string {
	var out strings.Builder
	for _, f := range fields(l) {
		fmt.Fprintf(&out, " %s=%v", f.name, f.value)
	}
	return printable(out.String())
}

// A captureLine is a line of tulle capture -o json.
type captureLine struct {
	SchemaVersion int            `json:"schemaVersion"`
	Time          time.Time      `json:"time"`
	Stage         string         `json:"stage"`
	Interface     string         `json:"interface"`
	Direction     string         `json:"direction"`
	Verdict       string         `json:"verdict,omitempty"` // none of the wire's, and while it is open
	Peer          string         `json:"peer,omitempty"`
	FlowID        string         `json:"flowID,omitempty"` // as in tulle flows
	FlowKnown     bool           `json:"flowKnown"`        // it was there before the packet
	Flow          *captureTuple  `json:"flow,omitempty"`   // of the packet inside the tunnel
	Outer         *captureTuple  `json:"outer,omitempty"`
	Worker        int            `json:"worker"`
	Packet        uint64         `json:"packet,omitempty"` // the worker's number for it
	Length        int            `json:"length"`
	Captured      int            `json:"captured"`
	Segments      int            `json:"segments,omitempty"`
	SegmentSize   int            `json:"segmentSize,omitempty"`
	Made          bool           `json:"made"`             // by the engine
	Synthesized   bool           `json:"synthesizedOuter"` // outer IP and UDP headers
	Cut           bool           `json:"cut"`              // out of a send of several datagrams
	Summary       string         `json:"summary"`
	Layers        []captureLayer `json:"layers,omitempty"` // with -v
}

// A captureTuple is who sends to whom. Ports are 0 where there are none.
type captureTuple struct {
	Proto   string `json:"proto"`
	Src     string `json:"src"`
	SrcPort uint16 `json:"srcPort"`
	Dst     string `json:"dst"`
	DstPort uint16 `json:"dstPort"`
}

type captureLayer struct {
	Layer  string         `json:"layer"`
	Fields map[string]any `json:"fields"`
}

func tupleOf(h *capture.Headers) *captureTuple {
	if !h.IP {
		return nil
	}
	return &captureTuple{protoName(h.Proto), h.Src.String(), h.SrcPort, h.Dst.String(), h.DstPort}
}

func (p *capturePrinter) writeJSON(r *capture.Record, all []gopacket.Layer) error {
	i := p.Interfaces[r.Interface]
	outer, inner := p.headers(r)
	line := captureLine{
		SchemaVersion: schemaVersion, Time: r.Time, Stage: i.Stage.String(), Interface: i.Name, Verdict: p.verdict(r), Peer: r.Peer,
		Direction: map[capture.Direction]string{capture.Inbound: "in", capture.Outbound: "out"}[direction(r)],
		FlowKnown: r.Flags&capture.FlagKnown != 0, Flow: tupleOf(&inner), Outer: tupleOf(&outer), Worker: r.Worker, Packet: r.Serial,
		Length: r.Length, Captured: len(r.Data), Segments: r.Segments, SegmentSize: r.Size,
		Made: r.Flags&capture.FlagMade != 0, Synthesized: r.Flags&capture.FlagSynthesized != 0, Cut: r.Flags&capture.FlagCut != 0, Summary: summary(all),
	}
	if r.FlowID != 0 {
		line.FlowID = fmt.Sprintf("%x", r.FlowID)
	}
	if p.verbose {
		for _, l := range all {
			named := map[string]any{}
			for _, f := range fields(l) {
				named[f.name] = f.value
			}
			line.Layers = append(line.Layers, captureLayer{l.LayerType().String(), named})
		}
	}
	enc := json.NewEncoder(p.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(line)
}
