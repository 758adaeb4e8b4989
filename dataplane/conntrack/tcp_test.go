package conntrack_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

// A conversation is one TCP connection, told in segments like "> SA +100": who sends ('>' is the originator), the
// flags, and the payload's length. Sequence numbers follow from what was sent before, acknowledgements from what
// the other end sent.
type conversation struct {
	t     *testing.T
	table *conntrack.Table
	now   time.Duration
	next  [2]uint32
	syn   [2]bool // the last it sent was a SYN
	first conntrack.Packet
}

func newConversation(t *testing.T, c conntrack.Config) *conversation {
	return &conversation{t: t, table: newTable(t, c), now: now, next: [2]uint32{1<<32 - 5, 1000}, first: numbered(1, false, 6)}
}

var flagLetters = map[rune]uint8{'F': conntrack.FIN, 'S': conntrack.SYN, 'R': conntrack.RST, 'A': conntrack.ACK}

// packet returns the packet of one step and notes that it was sent.
func (c *conversation) packet(step string) conntrack.Packet {
	words := strings.Fields(step)
	from, p := 0, c.first
	if words[0] == "<" {
		from, p = 1, reversed(c.first)
	}
	p.TCP = conntrack.Segment{Seq: c.next[from], Window: 10_000}
	for _, letter := range words[1] {
		p.TCP.Flags |= flagLetters[letter]
	}
	if p.TCP.Flags&conntrack.ACK != 0 {
		p.TCP.Ack = c.next[1-from]
	}
	if len(words) > 2 {
		p.TCP.Len = 1000
	}
	if c.syn[from] && p.TCP.Flags == conntrack.SYN|conntrack.ACK {
		c.next[from]-- // of a simultaneous open: the SYN again
		p.TCP.Seq--
	}
	c.syn[from] = p.TCP.Flags == conntrack.SYN
	c.next[from] += uint32(p.TCP.Len)
	if p.TCP.Flags&(conntrack.SYN|conntrack.FIN) != 0 {
		c.next[from]++
	}
	return p
}

// see is the engine: a lookup, and an insert if it misses.
func (c *conversation) see(p conntrack.Packet) conntrack.Hit {
	hit, ok := c.table.Lookup(&p, c.now)
	if !ok {
		hit, _ = c.table.Insert(&p, conntrack.NAT{}, c.now)
	}
	return hit
}

func (c *conversation) play(steps ...string) (hit conntrack.Hit) {
	for _, step := range steps {
		hit = c.see(c.packet(step))
	}
	return hit
}

// The states of whole connections, segment by segment.
func TestTCPStates(t *testing.T) {
	for _, script := range []string{
		"> S syn-sent, < SA syn-recv, > A established, > A 1 established, < A 1 established, > FA fin-wait, < A close-wait, < FA last-ack, > A time-wait",
		"> S syn-sent, < SA syn-recv, > A established, < FA fin-wait, > FA last-ack, < A time-wait",
		"> S syn-sent, < S syn-sent2, > SA syn-recv, < SA syn-recv, > A 1 established",
		"> S syn-sent, < RA close, > S syn-sent",
		"> S syn-sent, < SA syn-recv, > R close",
		"> A established, < A established, > FA fin-wait",
		"> S syn-sent, < SA syn-recv, > A established, > FA fin-wait, < FA last-ack, > A time-wait, < S syn-sent, > SA syn-recv, < A established",
	} {
		c := newConversation(t, conntrack.Config{Flows4: 10})
		ids := map[conntrack.ID]bool{}
		for step := range strings.SplitSeq(script, ", ") {
			i := strings.LastIndex(step, " ")
			hit := c.play(step[:i])
			if hit.State.String() != step[i+1:] || hit.OutOfWindow {
				t.Fatalf("%s: at %q %+v", script, step, hit)
			}
			ids[hit.ID] = true
		}
		if opened := strings.Count(script, "syn-sent,") + strings.Count(script, "close, > S"); len(ids) != max(opened, 1) {
			t.Errorf("%s: %d IDs", script, len(ids))
		}
	}
}

// What may not begin a flow does not.
func TestTCPNoFlow(t *testing.T) {
	for _, step := range []string{"> SA", "> R", "> RA", "> FA", "> SF", "> F"} {
		c := newConversation(t, conntrack.Config{Flows4: 10})
		p := c.packet(step)
		if hit, result := c.table.Insert(&p, conntrack.NAT{}, now); result != conntrack.Refused || hit.ID != 0 {
			t.Errorf("%s: %v", step, result)
		}
	}
}

// Out of window: the flag, and nothing else. What follows finds the connection as it was.
func TestOutOfWindow(t *testing.T) {
	for name, spoil := range map[string]func(*conntrack.Segment){
		"data beyond the window":     func(s *conntrack.Segment) { s.Seq += 10_001 },
		"data older than the window": func(s *conntrack.Segment) { s.Seq -= 10_000 + 65_160 + 10 },
		"acknowledges what was not":  func(s *conntrack.Segment) { s.Ack++ },
		"acknowledges of long ago":   func(s *conntrack.Segment) { s.Ack -= 70_000 },
		"RST beyond the window":      func(s *conntrack.Segment) { s.Flags, s.Seq = conntrack.RST, s.Seq+10_001 },
		"RST older than the window":  func(s *conntrack.Segment) { s.Flags, s.Seq = conntrack.RST, s.Seq-10_100 },
		"FIN beyond the window":      func(s *conntrack.Segment) { s.Flags |= conntrack.FIN; s.Seq += 10_001 },
		"SYN|FIN":                    func(s *conntrack.Segment) { s.Flags = conntrack.SYN | conntrack.FIN },
		"no flags":                   func(s *conntrack.Segment) { s.Flags = 0 },
		"SYN|ACK of the originator":  func(s *conntrack.Segment) { s.Flags |= conntrack.SYN },
	} {
		c := newConversation(t, conntrack.Config{Flows4: 10})
		c.play("> S", "< SA", "> A")
		before, _ := c.table.Find(c.first.Tuple, c.now)
		c.now += 5 * time.Second
		bad := c.packet("> A")
		bad.TCP.Window = 60_000
		spoil(&bad.TCP)
		if hit := c.see(bad); !hit.OutOfWindow || hit.State != conntrack.Established || hit.ID != before.ID {
			t.Errorf("%s: %+v", name, hit)
		}
		if after, _ := c.table.Find(c.first.Tuple, c.now); after != before {
			t.Errorf("%s: the entry was %+v and is %+v", name, before, after)
		}
		far := c.packet("< A 1")
		far.TCP.Seq += 10_001 // within the 60,000 that the bad segment showed
		if hit := c.see(far); !hit.OutOfWindow {
			t.Errorf("%s: it opened the window: %+v", name, hit)
		}
	}
}

// A super-packet of 64 KiB fits when the window, scaled as the SYNs agreed, has room for it, and only then.
func TestWindowScale(t *testing.T) {
	scale := []byte{2, 4, 5, 180, 1, 3, 3, 4}
	for _, test := range []struct {
		syn, synAck []byte
		within      bool
	}{{scale, scale, true}, {scale, nil, false}, {nil, scale, false}} {
		c := newConversation(t, conntrack.Config{Flows4: 10})
		syn := c.packet("> S")
		syn.TCP.Options = test.syn
		c.see(syn)
		synAck := c.packet("< SA")
		synAck.TCP.Options = test.synAck
		c.see(synAck)
		c.play("> A", "< A")
		for range 2 {
			data := c.packet("> A")
			data.TCP.Len = 65_160
			c.next[0] += 65_160
			if hit := c.see(data); hit.OutOfWindow && (test.within || data.TCP.Seq == 1<<32-4) {
				t.Errorf("%+v: %+v", test, hit)
			} else if c.next[0] > 100_000 && hit.OutOfWindow == test.within {
				t.Errorf("%+v: %+v", test, hit)
			}
		}
	}
}

// A RST within the window that is not exact passes for the receiver to challenge (RFC 5961, 3.2), and closes nothing. The
// SYN of an end that lost its state passes likewise.
func TestChallenged(t *testing.T) {
	c := newConversation(t, conntrack.Config{Flows4: 10})
	c.play("> S", "< SA", "> A")
	for _, step := range []string{"> R", "> S"} {
		p := c.packet(step)
		p.TCP.Seq += 5000
		if hit := c.see(p); hit.OutOfWindow || hit.State != conntrack.Established {
			t.Errorf("%s: %+v", step, hit)
		}
	}
	c.next[0]-- // the SYN did not count
	if hit := c.play("> R"); hit.State != conntrack.Close {
		t.Errorf("the exact RST: %+v", hit)
	}
}
