package conntrack_test

import (
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

// The model is the table as a map, with the rules written out as the packages's documentation and RFC 9293 tell them:
// slow, without packing, hashing, bounds or concurrency.
type model struct {
	flows    map[[2]netip.AddrPort]map[uint8]*modelFlow
	ids      map[conntrack.ID]bool
	inserted uint64
}

type modelFlow struct {
	conntrack.Flow
	picked bool // up in the middle: windows don't count
	ends   [2]modelEnd
}

// modelEnd is one end of a TCP connection.
type modelEnd struct {
	heard       bool
	next, limit uint32 // sequence numbers: after what it sent, after what it may send
	window      uint32 // the widest it showed
	shift       int
	offered     bool // window scaling
}

// canonical orders the ends of a tuple.
func canonical(t conntrack.Tuple) [2]netip.AddrPort {
	a, b := netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort)
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	return [2]netip.AddrPort{a, b}
}

func newModel() *model {
	return &model{flows: map[[2]netip.AddrPort]map[uint8]*modelFlow{}, ids: map[conntrack.ID]bool{}}
}

// live returns the flow of a tuple unless it has timed out.
func (m *model) live(t conntrack.Tuple, now time.Duration) *modelFlow {
	f := m.flows[canonical(t)][t.Proto]
	if f == nil || now.Truncate(time.Second)-f.LastSeen > f.timeout() {
		return nil
	}
	return f
}

func (f *modelFlow) timeout() time.Duration {
	switch f.Tuple.Proto {
	case 6:
		switch f.State {
		case conntrack.Established:
			if f.Replied {
				return 2*time.Hour + 4*time.Minute
			}
			return 5 * time.Minute
		case conntrack.Close:
			return 10 * time.Second
		case conntrack.LastAck:
			return 30 * time.Second
		case conntrack.SynRecv, conntrack.CloseWait:
			return time.Minute
		}
		return 2 * time.Minute
	case 17:
		if f.Replied {
			return 2 * time.Minute
		}
		return 30 * time.Second
	case 1, 58:
		return time.Minute
	}
	return 10 * time.Minute
}

func (f *modelFlow) seen(now time.Duration) { f.LastSeen = max(f.LastSeen, now.Truncate(time.Second)) }

// lookup is Table.Lookup.
func (m *model) lookup(p *conntrack.Packet, now time.Duration) (conntrack.Hit, bool) {
	f := m.live(p.Tuple, now)
	if f == nil {
		return conntrack.Hit{}, false
	}
	reply := p.Src != f.Tuple.Src || p.SrcPort != f.Tuple.SrcPort
	verdict := "take"
	if p.Proto == 6 {
		if verdict = f.segment(reply, &p.TCP); verdict == "reopen" {
			return conntrack.Hit{}, false
		}
	} else if reply {
		f.State = conntrack.Replied
	}
	if verdict == "take" {
		f.Replied = f.Replied || reply
		f.seen(now)
	}
	return conntrack.Hit{ID: f.ID, State: f.State, Reply: reply, OutOfWindow: verdict == "out", NAT: f.NAT}, true
}

// insert is Table.Insert after a lookup that missed. The table chose the ID.
func (m *model) insert(p *conntrack.Packet, nat conntrack.NAT, id conntrack.ID, now time.Duration) (conntrack.Hit, conntrack.Result) {
	sec := now.Truncate(time.Second)
	f := &modelFlow{Flow: conntrack.Flow{ID: id, Tuple: p.Tuple, NAT: nat, Created: sec, LastSeen: sec, State: conntrack.Unreplied}}
	if p.Proto == 6 && !f.begin(&p.TCP) {
		return conntrack.Hit{}, conntrack.Refused
	}
	key := canonical(p.Tuple)
	if m.flows[key] == nil {
		m.flows[key] = map[uint8]*modelFlow{}
	}
	m.flows[key][p.Proto] = f
	m.inserted++
	return conntrack.Hit{ID: id, State: f.State, NAT: nat}, conntrack.Inserted
}

// kind names what the flags that matter make a segment, "" for what nobody sends.
func kind(s *conntrack.Segment) string {
	return map[uint8]string{0x02: "SYN", 0x12: "SYNACK", 0x11: "FIN", 0x10: "ACK", 0x04: "RST", 0x14: "RST"}[s.Flags&0x17]
}

func segmentEnd(s *conntrack.Segment) uint32 {
	return s.Seq + uint32(s.Len) + uint32(s.Flags&1) + uint32(s.Flags>>1&1)
}

func (f *modelFlow) begin(s *conntrack.Segment) bool {
	switch kind(s) {
	case "SYN":
		f.State = conntrack.SynSent
		f.syn(0, s)
		return true
	case "ACK":
		f.State, f.picked = conntrack.Established, true
		f.ends[0].middle(s)
		return true
	}
	return false
}

// syn notes a SYN or SYN|ACK of an end.
func (f *modelFlow) syn(from int, s *conntrack.Segment) {
	e, other := &f.ends[from], &f.ends[1-from]
	shift, offered := modelScale(s.Options)
	*e = modelEnd{heard: true, next: segmentEnd(s), shift: shift, offered: offered, window: rounded(max(uint32(s.Window), 1))}
	e.limit = e.next + other.window // of an end that was not heard it is 0
	if other.heard && !(e.offered && other.offered) {
		e.shift, other.shift, e.offered, other.offered = 0, 0, false, false
	}
}

// middle notes the first segment seen of an end whose SYN was missed.
func (e *modelEnd) middle(s *conntrack.Segment) {
	window := max(uint32(s.Window)<<e.shift, 1)
	*e = modelEnd{heard: true, next: segmentEnd(s), limit: segmentEnd(s) + window, window: rounded(window), shift: e.shift}
}

// modelScale reads options as RFC 9293, 3.1 and RFC 7323, 2.2 have them: kind, length, value; 0 ends, 1 fills.
func modelScale(o []byte) (shift int, offered bool) {
	for i := 0; i < len(o) && o[i] != 0; {
		if o[i] == 1 {
			i++
			continue
		}
		if i+1 >= len(o) || o[i+1] < 2 || i+int(o[i+1]) > len(o) {
			break
		}
		if o[i] == 3 && o[i+1] == 3 {
			return min(int(o[i+2]), 14), true
		}
		i += int(o[i+1])
	}
	return 0, false
}

// rounded is the smallest number of 11 significant bits that is not below v, up to 2^30.
func rounded(v uint32) uint32 {
	v = min(v, 1<<30)
	for step := uint32(1); ; step *= 2 {
		if up := (v + step - 1) / step; up <= 2047 {
			return up * step
		}
	}
}

// distance from y to x in sequence space.
func distance(x, y uint32) int32 { return int32(x - y) }

// segment says what a segment does: "take", "pass" unchanged, "out" of window or state, "reopen".
func (f *modelFlow) segment(reply bool, s *conntrack.Segment) string {
	from := 0
	if reply {
		from = 1
	}
	switch kind(s) {
	case "RST":
		return f.rst(from, s)
	case "SYN":
		return f.openAgain(from, s)
	case "SYNACK":
		return f.answer(from, s)
	case "FIN":
		return f.fin(from, s)
	case "ACK":
		return f.ack(from, s)
	}
	return "out"
}

func (f *modelFlow) rst(from int, s *conntrack.Segment) string {
	e, other := &f.ends[from], &f.ends[1-from]
	exact := e.heard && s.Seq == e.next
	answers := !e.heard && s.Flags&0x10 != 0 && s.Ack == other.next
	if exact || answers {
		f.State = conntrack.Close
		return "take"
	}
	if f.picked || from == 0 && f.State == conntrack.SynSent {
		return "pass"
	}
	if e.heard && distance(s.Seq, e.limit) <= 0 && distance(e.next-other.window, s.Seq) <= 0 {
		return "pass"
	}
	return "out"
}

func (f *modelFlow) openAgain(from int, s *conntrack.Segment) string {
	switch f.State {
	case conntrack.TimeWait, conntrack.Close:
		return "reopen"
	case conntrack.SynSent, conntrack.SynSent2:
		if from == 1 {
			f.State = conntrack.SynSent2
		}
		f.syn(from, s)
		return "take"
	}
	if from == 1 {
		return "out"
	}
	return "pass"
}

func (f *modelFlow) answer(from int, s *conntrack.Segment) string {
	switch {
	case f.State == conntrack.SynSent2, f.State == conntrack.SynSent && from == 1, f.State == conntrack.SynRecv && from == 0:
		return f.window(from, s, conntrack.SynRecv)
	case from == 1:
		return "pass"
	}
	return "out"
}

func (f *modelFlow) fin(from int, s *conntrack.Segment) string {
	switch f.State {
	case conntrack.SynSent, conntrack.SynSent2:
		return "out"
	case conntrack.SynRecv, conntrack.Established:
		return f.window(from, s, conntrack.FinWait)
	case conntrack.FinWait, conntrack.CloseWait:
		return f.window(from, s, conntrack.LastAck)
	}
	return f.window(from, s, f.State)
}

func (f *modelFlow) ack(from int, s *conntrack.Segment) string {
	switch f.State {
	case conntrack.SynSent, conntrack.SynSent2:
		return [2]string{"out", "pass"}[from]
	case conntrack.SynRecv:
		return f.window(from, s, [2]conntrack.State{conntrack.Established, conntrack.SynRecv}[from])
	case conntrack.FinWait:
		return f.window(from, s, conntrack.CloseWait)
	case conntrack.LastAck:
		return f.window(from, s, conntrack.TimeWait)
	}
	return f.window(from, s, f.State)
}

// window is van Rooij's four conditions, and what follows when they hold.
func (f *modelFlow) window(from int, s *conntrack.Segment, to conntrack.State) string {
	before := f.ends
	e, other := &f.ends[from], &f.ends[1-from]
	switch {
	case !e.heard && kind(s) == "SYNACK":
		f.syn(from, s)
	case !e.heard:
		e.middle(s)
	}
	within := distance(s.Seq, e.limit) <= 0 &&
		distance(e.next-other.window, segmentEnd(s)) <= 0 &&
		distance(s.Ack, other.next) <= 0 &&
		distance(other.next-max(e.window, 66000), s.Ack) <= 0
	if !within && !f.picked {
		f.ends = before
		return "out"
	}
	window := uint32(s.Window) << e.shift
	if s.Flags&0x02 != 0 {
		window = uint32(s.Window)
	}
	f.State = to
	f.learn(e, other, segmentEnd(s), s.Ack, window)
	return "take"
}

func (f *modelFlow) learn(e, other *modelEnd, end, ack, window uint32) {
	e.window = max(e.window, rounded(window))
	if other.heard {
		if beyond := distance(end, e.limit); beyond > 0 {
			other.window = rounded(other.window + uint32(beyond))
		}
		if distance(other.limit, ack+window) <= 0 {
			other.limit = ack + window
			if window == 0 {
				other.limit++ // one byte to probe the closed window with
			}
		}
	}
	if distance(end, e.next) > 0 {
		e.next = end
	}
}
