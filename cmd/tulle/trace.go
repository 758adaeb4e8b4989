package main

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/trace"
)

const (
	// maxTraces bounds the memory of traces: each takes about a megabyte for each worker.
	maxTraces = 8
	// traceInterval is how often a trace's records are fetched from the workers' buffers.
	traceInterval = 10 * time.Millisecond
	// maxSample is the largest N of --sample 1/N.
	maxSample = 1 << 20
)

// A traceLine is a line of a trace's stream: a head, then packets, then the end. Each says how many were missed so far.
type traceLine struct {
	Head   *traceHead `json:"head,omitempty"`
	Way    *wayReport `json:"way,omitempty"`
	End    bool       `json:"end,omitempty"`
	Missed uint64     `json:"missed"`
}

// A traceHead says whose times those of the trace are. Two nodes' can be compared iff their clocks have one name.
type traceHead struct {
	SchemaVersion int    `json:"schemaVersion"`
	Node          string `json:"node"`
	Clock         string `json:"clock"` // CLOCK_MONOTONIC of this boot and time namespace
}

// A wayReport is a packet's way through one node.
type wayReport struct {
	Node     string        `json:"node"`
	Worker   int           `json:"worker"`
	Serial   uint64        `json:"serial"`          // the worker's number of the packet
	Made     bool          `json:"made,omitempty"`  // by the engine itself
	About    uint64        `json:"about,omitempty"` // serial of the packet that one which was made answers or complains of
	From     string        `json:"from"`            // tap, underlay, underlay6 or engine
	Peer     string        `json:"peer,omitempty"`
	Start    int64         `json:"startNanoseconds"` // of the first stage, by the head's clock
	Packet   packetReport  `json:"packet"`           // as it came in
	Wire     *packetReport `json:"wire,omitempty"`   // as it went out to a peer
	Stages   []stageReport `json:"stages"`
	Segments int           `json:"segments"` // on the wire; more than one of a super-packet
	Verdict  string        `json:"verdict"`
	Cause    string        `json:"cause"`
}

// A packetReport is what stands in a packet's headers, those of the encapsulation aside but for the VNI.
type packetReport struct {
	VNI      *uint32 `json:"vni,omitempty"`
	Proto    string  `json:"proto"` // or that of the link: arp, or 0x and the EtherType
	Src      string  `json:"src,omitempty"`
	SrcPort  uint16  `json:"srcPort,omitempty"` // of ICMP echo messages the identifier
	Dst      string  `json:"dst,omitempty"`
	DstPort  uint16  `json:"dstPort,omitempty"`
	DstMAC   string  `json:"dstMAC,omitempty"`
	Length   int     `json:"length,omitempty"` // of the IP packet, bytes
	TTL      uint8   `json:"ttl,omitempty"`
	ID       uint32  `json:"id,omitempty"` // of IPv4, or of an IPv6 fragment
	Offset   int     `json:"offset,omitempty"`
	Message  string  `json:"message,omitempty"` // of ICMP and TCP: what it is, in words
	Seq      uint32  `json:"seq,omitempty"`     // of TCP and ICMP echo messages
	Payload  int     `json:"payload,omitempty"` // of TCP, bytes
	Checksum uint16  `json:"checksum,omitempty"`
}

// A stageReport is a packet at one stage.
type stageReport struct {
	Stage        string  `json:"stage"`
	Microseconds float64 `json:"microseconds"` // since the way's first stage
	Found        string  `json:"found"`        // what was found out there, in words
	Peer         string  `json:"peer,omitempty"`
	Outer        string  `json:"outer,omitempty"` // the outer source, or destination
	Flow         string  `json:"flow,omitempty"`
	FlowState    string  `json:"flowState,omitempty"`
	FlowNew      bool    `json:"flowNew,omitempty"`
	Route        string  `json:"route,omitempty"` // its prefix
	RouteKind    string  `json:"routeKind,omitempty"`
	MTU          int     `json:"mtu,omitempty"` // of the path to the peer
	TTL          uint8   `json:"ttl,omitempty"`
	Verdict      string  `json:"verdict,omitempty"`
}

// parseTrace reads what to trace from the parameters of a request, in which the command line is carried as it is.
func parseTrace(q url.Values) (c trace.Config, timeout time.Duration, err error) {
	f, err := parseFlowFilter(q)
	if err != nil {
		return c, 0, err
	}
	c.Filter = trace.Filter{Proto: f.proto, Src: f.src, Dst: f.dst, Peer: f.peer, Drops: q.Get("drops") == "true"}
	for _, port := range []struct {
		flag string
		to   *uint16
	}{{"sport", &c.Filter.SrcPort}, {"dport", &c.Filter.DstPort}} {
		if s := q.Get(port.flag); s != "" {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil || n == 0 {
				return c, 0, fmt.Errorf("--%s %s: a port from 1 to 65535 is needed", port.flag, s)
			}
			*port.to = uint16(n)
		}
	}
	if s := q.Get("count"); s != "" {
		if c.Count, err = strconv.Atoi(s); err != nil || c.Count < 0 {
			return c, 0, fmt.Errorf("--count %s: a number of packets is needed, 0 for no end", s)
		}
	}
	if s := q.Get("sample"); s != "" {
		n, one := strings.CutPrefix(s, "1/")
		if c.Sample, err = strconv.Atoi(n); err != nil || !one || c.Sample < 1 || c.Sample > maxSample {
			return c, 0, fmt.Errorf("--sample %s: 1/N is needed, N from 1 to %d", s, maxSample)
		}
	}
	if s := q.Get("timeout"); s != "" {
		if timeout, err = time.ParseDuration(s); err != nil || timeout < 0 {
			return c, 0, fmt.Errorf("--timeout %s: a duration such as 10s is needed, 0 for no end", s)
		}
	}
	return c, timeout, nil
}

// answerTrace runs a trace for as long as its client wants.
func (d *daemon) answerTrace(w http.ResponseWriter, r *http.Request) {
	c, timeout, err := parseTrace(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer d.traces.Add(-1)
	if d.traces.Add(1) > maxTraces {
		http.Error(w, fmt.Sprintf("%d traces run on this node already: end one of them", maxTraces), http.StatusServiceUnavailable)
		return
	}
	c.Workers, c.Bare = d.config.workers, d.config.plainUDP()
	d.trace(newLineWriter(w), r, trace.New(c), timeout)
}

func (d *daemon) trace(out *lineWriter, r *http.Request, recorder *trace.Recorder, timeout time.Duration) {
	stop := d.forwarder.observe(recorder.Observe)
	defer stop()
	if out.write(traceLine{Head: &traceHead{schemaVersion, d.config.self.Name, monotonicName()}}) != nil {
		return
	}
	var end <-chan time.Time
	if timeout > 0 {
		end = time.After(timeout)
	}
	ticker := time.NewTicker(traceInterval)
	defer ticker.Stop()
	for last := false; ; {
		full := recorder.Full()
		if d.writeWays(out, recorder) != nil {
			return
		}
		if last {
			out.write(traceLine{End: true, Missed: recorder.Missed()})
			return
		}
		last = full // what the engine makes about the last packet comes an instant later
		select {
		case <-r.Context().Done():
			return
		case <-end:
			last = true
		case <-ticker.C:
		}
	}
}

// writeWays writes what is new, in the order in which the packets came in.
func (d *daemon) writeWays(out *lineWriter, recorder *trace.Recorder) error {
	var ways []*wayReport
	offset := monotonicNow() - d.forwarder.now()
	recorder.Take(func(r *trace.Record) { ways = append(ways, d.reportWay(r, offset)) })
	slices.SortStableFunc(ways, func(a, b *wayReport) int { return cmp.Compare(a.Start, b.Start) })
	for _, way := range ways {
		if err := out.write(traceLine{Way: way, Missed: recorder.Missed()}); err != nil {
			return err
		}
	}
	return nil
}

// monotonicNow is CLOCK_MONOTONIC, which the engine's clock keeps step with.
func monotonicNow() time.Duration {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // fails for no clock that there is
	return time.Duration(ts.Nano())
}

// monotonicName names CLOCK_MONOTONIC of this boot, and of this time namespace.
func monotonicName() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, err := os.Readlink("/proc/self/ns/time")
	if err != nil { // a kernel without time namespaces
		space = "time:[0]"
	}
	return strings.TrimSpace(string(boot)) + "/" + space
}

// reportWay turns a record into what is shown. offset is that of the engine's clock to CLOCK_MONOTONIC.
func (d *daemon) reportWay(r *trace.Record, offset time.Duration) *wayReport {
	w := &wayReport{
		Node: d.config.self.Name, Worker: r.Worker, Serial: r.Serial, Made: r.Made, About: r.About, From: r.From.String(), Peer: r.Peer(),
		Packet: reportPacket(&r.Header, !r.From.Inner() && !d.config.plainUDP()), Segments: r.Segments, Verdict: r.Verdict.String(), Cause: r.Verdict.Cause(),
	}
	if r.Made {
		w.From = "engine"
	}
	steps := r.Steps()
	w.Start = int64(steps[0].Time + offset)
	for i := range steps {
		s := reportStage(&steps[i], r)
		s.Microseconds = float64(steps[i].Time-steps[0].Time) / float64(time.Microsecond)
		w.Stages = append(w.Stages, s)
		if steps[i].Point == dataplane.AtEncap {
			wire := reportPacket(&r.Wire, !d.config.plainUDP())
			w.Wire = &wire
		}
	}
	return w
}

func reportPacket(h *trace.Header, vxlan bool) packetReport {
	p := packetReport{
		Proto: linkName(h), Src: text(h.Src), SrcPort: h.SrcPort, Dst: text(h.Dst), DstPort: h.DstPort, Length: h.Len, TTL: h.TTL, ID: h.ID, Offset: h.Offset,
		Message: messageName(h), Seq: h.Seq, Payload: h.Payload, Checksum: h.Sum,
	}
	if h.DstMAC != (packet.MAC{}) {
		p.DstMAC = h.DstMAC.String()
	}
	if vxlan {
		p.VNI = &h.VNI
	}
	return p
}

func linkName(h *trace.Header) string {
	switch {
	case h.Src.IsValid():
		return protoName(h.Proto)
	case h.EtherType == packet.EtherTypeARP:
		return "arp"
	}
	return fmt.Sprintf("%#04x", h.EtherType)
}

// icmpNames are what is met often, by type.
var icmpNames = map[uint8]map[uint8]string{
	packet.ProtoICMP: {0: "echo reply", 3: "destination unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"},
	packet.ProtoICMPv6: {1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply",
		135: "neighbour solicitation", 136: "neighbour advertisement"},
}

func messageName(h *trace.Header) string {
	switch {
	case h.Offset > 0:
		return "later fragment"
	case h.Proto == packet.ProtoTCP:
		return tcpFlagNames(h.TCPFlags)
	case h.Proto == packet.ProtoICMP && h.ICMPType == 3 && h.ICMPCode == 4:
		return "fragmentation needed"
	case h.Proto == packet.ProtoICMP || h.Proto == packet.ProtoICMPv6:
		return cmp.Or(icmpNames[h.Proto][h.ICMPType], fmt.Sprintf("type %d code %d", h.ICMPType, h.ICMPCode))
	}
	return ""
}

func tcpFlagNames(flags uint8) string {
	var names []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if flags&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// reportStage says what a step found.
func reportStage(s *trace.Step, r *trace.Record) stageReport {
	out := stageReport{Stage: s.Point.String(), Peer: s.Peer, TTL: s.TTL}
	if s.Remote.IsValid() {
		out.Outer = s.Remote.String()
	}
	switch s.Point {
	case dataplane.AtRead:
		out.Found = foundAtRead(s, r)
	case dataplane.AtDecap:
		out.Found = fmt.Sprintf("from peer %s, inner source its own", s.Peer)
	case dataplane.AtFlow:
		out.flow(s)
	case dataplane.AtRoute:
		out.route(s, r.Header.Dst)
	case dataplane.AtEncap:
		out.Found = fmt.Sprintf("to peer %s at %s, TTL %d", s.Peer, s.Remote, s.TTL)
	default:
		out.Verdict = s.Verdict.String()
		out.Found = out.Verdict
		if s.Verdict.Consumed() {
			out.Stage = "used"
		}
	}
	return out
}

func foundAtRead(s *trace.Step, r *trace.Record) string {
	switch {
	case r.Made:
		return "made by the engine"
	case !s.Remote.IsValid():
		return fmt.Sprintf("from the TAP, TTL %d", s.TTL)
	case r.Header.VXLANFlags != 0:
		return fmt.Sprintf("from %s, VNI %d, to MAC %s, TTL %d", s.Remote, r.Header.VNI, r.Header.DstMAC, s.TTL)
	}
	return fmt.Sprintf("from %s, TTL %d", s.Remote, s.TTL)
}

func (out *stageReport) flow(s *trace.Step) {
	out.Flow, out.FlowState, out.FlowNew = fmt.Sprintf("%x", uint64(s.Flow)), s.State.String(), !s.Known
	kind, direction := "known", ""
	if out.FlowNew {
		kind = "new"
	}
	if s.Reply {
		direction = ", reply"
	}
	out.Found = fmt.Sprintf("%s flow %s, %s%s", kind, out.Flow, out.FlowState, direction)
}

func (out *stageReport) route(s *trace.Step, dst netip.Addr) {
	if !s.Routed {
		out.Found = fmt.Sprintf("none covers %s", dst)
		return
	}
	out.Route, out.RouteKind, out.MTU = s.Prefix.String(), s.Kind.String(), s.MTU
	out.Found = fmt.Sprintf("%s: %s", out.Route, out.RouteKind)
	if s.MTU > 0 {
		out.Found += fmt.Sprintf(" %s, path MTU %d", s.Peer, s.MTU)
	}
}
