package conntrack

// What a segment is to the state machine.
type segmentKind uint8

const (
	kindSYN segmentKind = iota
	kindSYNACK
	kindFIN
	kindACK
	kindRST
	kinds
)

// kind returns what s is, and false for flags that no end sends together (as Linux: PSH, URG, ECE and CWR aside).
func (s *Segment) kind() (segmentKind, bool) {
	switch s.Flags & (FIN | SYN | RST | ACK) {
	case SYN:
		return kindSYN, true
	case SYN | ACK:
		return kindSYNACK, true
	case FIN | ACK:
		return kindFIN, true
	case ACK:
		return kindACK, true
	case RST, RST | ACK:
		return kindRST, true
	}
	return 0, false
}

// end returns the sequence number after the segment. SYN and FIN take one.
func (s *Segment) end() uint32 {
	end := s.Seq + uint32(s.Len)
	if s.Flags&SYN != 0 {
		end++
	}
	if s.Flags&FIN != 0 {
		end++
	}
	return end
}

// noScale is a peer's scale as long as it has not offered window scaling.
const noScale = 15

// windowScale returns the shift that a SYN's options offer (RFC 7323, 2.2), noScale if they don't.
func windowScale(options []byte) uint8 {
	for len(options) > 0 {
		switch kind := options[0]; {
		case kind == 0:
			return noScale
		case kind == 1:
			options = options[1:]
			continue
		case len(options) < 2 || options[1] < 2 || int(options[1]) > len(options):
			return noScale
		case kind == 3 && options[1] == 3:
			return min(options[2], 14)
		}
		options = options[options[1]:]
	}
	return noScale
}

// What the transition table says beside a state.
const (
	invalid State = states + iota // fits no connection in this state
	ignored                       // passes and changes nothing: the ends sort it out
	reopens                       // the SYN of the next connection
)

// next is Linux's tcp_conntracks without RST: [reply][kind][state]. It differs in that the SYN of either end re-opens a
// connection that is closed.
var next = [2][kinds - 1][SynSent2 + 1]State{
	{
		//           none, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Close, SynSent2
		kindSYN:    {SynSent, SynSent, ignored, ignored, ignored, ignored, ignored, reopens, reopens, SynSent2},
		kindSYNACK: {invalid, invalid, SynRecv, invalid, invalid, invalid, invalid, invalid, invalid, SynRecv},
		kindFIN:    {invalid, invalid, FinWait, FinWait, LastAck, LastAck, LastAck, TimeWait, Close, invalid},
		kindACK:    {Established, invalid, Established, Established, CloseWait, CloseWait, TimeWait, TimeWait, Close, invalid},
	},
	{
		kindSYN:    {invalid, SynSent2, invalid, invalid, invalid, invalid, invalid, reopens, reopens, SynSent2},
		kindSYNACK: {invalid, SynRecv, ignored, ignored, ignored, ignored, ignored, ignored, ignored, SynRecv},
		kindFIN:    {invalid, invalid, FinWait, FinWait, LastAck, LastAck, LastAck, TimeWait, Close, invalid},
		kindACK:    {invalid, ignored, SynRecv, Established, CloseWait, CloseWait, TimeWait, TimeWait, Close, ignored},
	},
}

// A peer is one end of a connection.
type peer struct {
	end    uint32 // after the last sequence number it sent
	maxEnd uint32 // after the last one that the other end's window allows it to send
	maxWin uint32 // widest window it has shown, bytes; 0 until it is heard
	scale  uint8  // shift of its windows
}

// A conn is a connection as the tracker computes with it; entries hold it packed.
type conn struct {
	state   State
	liberal bool
	peers   [2]peer // originator, replier
}

// An outcome is what a segment does to its connection.
type outcome uint8

const (
	accepted outcome = iota
	passed           // it changes nothing, not even when the flow was last seen
	refused          // out of window or out of state; changes nothing
	reopened         // it belongs to the next connection
)

// open starts a connection with its first segment, and returns false if that is none to start with. A connection in
// the middle is picked up (nf_conntrack_tcp_loose).
func (c *conn) open(s *Segment) bool {
	kind, ok := s.kind()
	if !ok || kind == kindRST || next[0][kind][free] == invalid {
		return false
	}
	c.state = next[0][kind][free]
	c.liberal = c.state != SynSent
	if c.liberal {
		c.peers[0].pickUp(s)
		return true
	}
	c.peers[1].scale = noScale
	c.start(0, s)
	return true
}

// start takes a peer's SYN or SYN|ACK. Both must offer window scaling for it to count. The peer may use
// the window of the other end's SYN at once, as fast open does (Linux waits for the next ACK).
func (c *conn) start(from int, s *Segment) {
	p, other := &c.peers[from], &c.peers[1-from]
	p.end = s.end()
	p.maxEnd = p.end + other.maxWin
	p.maxWin = max(uint32(s.Window), 1)
	p.scale = windowScale(s.Options)
	if other.maxWin != 0 && (p.scale == noScale || other.scale == noScale) {
		p.scale, other.scale = noScale, noScale
	}
}

// pickUp takes what a segment in the middle tells of its sender.
func (p *peer) pickUp(s *Segment) {
	p.end = s.end()
	p.maxWin = max(p.window(s), 1)
	p.maxEnd = p.end + p.maxWin

}

// window returns the window that a segment shows, bytes. Those of SYNs are never scaled.
func (p *peer) window(s *Segment) uint32 {
	if s.Flags&SYN != 0 || p.scale == noScale {
		return uint32(s.Window)
	}
	return uint32(s.Window) << p.scale
}

// track advances the connection by a segment of peer from. What c is afterwards counts iff it returns accepted.
func (c *conn) track(from int, s *Segment) outcome {
	kind, ok := s.kind()
	if !ok {
		return refused
	}
	if kind == kindRST {
		return c.reset(from, s)
	}
	switch to := next[from][kind][c.state]; {
	case to == invalid:
		return refused
	case to == ignored:
		return passed
	case to == reopens:
		return reopened
	case kind == kindSYN:
		c.start(from, s)
		c.state = to
		return accepted
	default:
		return c.advance(from, kind, to, s)
	}
}

// advance checks a segment of a connection under way against the windows, and moves both.
func (c *conn) advance(from int, kind segmentKind, to State, s *Segment) outcome {
	if c.peers[from].maxWin == 0 {
		c.meet(from, kind, s)
	}
	if !c.liberal && !c.inWindow(from, s) {
		return refused
	}
	c.move(from, s)
	c.state = to
	return accepted
}

// meet takes the first segment of a replier.
func (c *conn) meet(from int, kind segmentKind, s *Segment) {
	if kind == kindSYNACK {
		c.start(from, s)
		return
	}
	c.peers[from].pickUp(s)
}

// after says whether sequence number x comes after y (RFC 9293, 3.4).
func after(x, y uint32) bool { return int32(x-y) > 0 }

// ackWindow is how far an ACK may lie back at least (Linux: MAXACKWINCONST). SACK blocks are not read: the left edge
// counts as it is.
const ackWindow = 66000

// inWindow is van Rooij's four bounds: data within the receiver's window, not older than one window; acknowledged is only
// what was sent, and not too long ago. As in Linux only a segment's start must be within the window.
func (c *conn) inWindow(from int, s *Segment) bool {
	p, other := &c.peers[from], &c.peers[1-from]
	return !after(s.Seq, p.maxEnd) &&
		!after(p.end-other.maxWin, s.end()) &&
		!after(s.Ack, other.end) &&
		!after(other.end-max(p.maxWin, ackWindow), s.Ack)
}

// move takes what an accepted segment tells: what was sent, and which window the other end has now.
func (c *conn) move(from int, s *Segment) {
	p, other := &c.peers[from], &c.peers[1-from]
	end, window := s.end(), p.window(s)
	p.maxWin = max(p.maxWin, window)
	if after(end, p.end) {
		p.end = end
	}
	if other.maxWin == 0 {
		return // picked up, and not heard yet
	}
	if after(end, p.maxEnd) {
		other.maxWin = min(other.maxWin+end-p.maxEnd, maxWindow)
	}
	if maxEnd := s.Ack + window; !after(other.maxEnd, maxEnd) {
		other.maxEnd = maxEnd
		if window == 0 {
			other.maxEnd++ // a window probe
		}
	}
}

// reset takes a RST (RFC 5961, 3.2): it closes the connection iff its sequence number is the next one. Within the window it passes,
// so that the receiver can challenge it, and so does one of an originator that answers an ACK we let through
// in SynSent. A peer not heard before can only refuse what it acknowledges.
func (c *conn) reset(from int, s *Segment) outcome {
	p, other := &c.peers[from], &c.peers[1-from]
	switch {
	case p.maxWin == 0 && s.Flags&ACK != 0 && s.Ack == other.end, p.maxWin != 0 && s.Seq == p.end:
		c.state = Close
		return accepted
	case c.liberal, from == 0 && c.state == SynSent:
		return passed
	case p.maxWin != 0 && !after(s.Seq, p.maxEnd) && !after(p.end-other.maxWin, s.Seq):
		return passed
	}
	return refused
}
