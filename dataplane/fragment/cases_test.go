package fragment_test

import (
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// A conversation is a Tracker that is asked by hand.
type conversation struct {
	t       *testing.T
	tracker *fragment.Tracker
	batch   *packet.Batch
}

func converse(t *testing.T) conversation {
	return conversation{t, fragment.New(fragment.Limits{}), packet.NewBatch(1 << 18)}
}

func (c conversation) expect(p part, now time.Duration, action fragment.Action, verdict packet.Verdict) {
	c.t.Helper()
	c.batch.Reset()
	if a, v := c.tracker.Judge(p.frame(c.batch, 0), now); a != action || v != verdict {
		c.t.Fatalf("%+v: action %d, verdict %v, want %d, %v", p, a, v, action, verdict)
	}
}

// IPv4 tells datagrams apart by protocol too, IPv6 does not.
func TestKeys(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		c := converse(t)
		p := part{v6: v6, id: 7, proto: packet.ProtoUDP, offset: 0, length: 8, more: true}
		c.expect(p, 0, fragment.Decide, packet.None)
		p.proto = packet.ProtoTCP
		if v6 {
			c.expect(p, 0, fragment.Drop, packet.DropFragmentOverlap)
		} else {
			c.expect(p, 0, fragment.Decide, packet.None)
		}
		p.id++
		c.expect(p, 0, fragment.Decide, packet.None)
		p.host++
		c.expect(p, 0, fragment.Decide, packet.None)
	}
}

// An address that IPv4 and IPv6 write alike is two.
func TestFamiliesDiffer(t *testing.T) {
	c := converse(t)
	p := part{id: 1, length: 8, more: true}
	c.expect(p, 0, fragment.Decide, packet.None)
	p.v6 = true
	f := p.frame(c.batch, 0)
	f.Src, f.Dst = host(source4, 0), target4
	if a, _ := c.tracker.Judge(f, 0); a != fragment.Decide {
		t.Errorf("action %d, want %d", a, fragment.Decide)
	}
}

// An atomic fragment (RFC 6946) has nothing to do with others of its ID.
func TestAtomic(t *testing.T) {
	c := converse(t)
	atomic := part{v6: true, id: 1, length: 100}
	for range 3 {
		c.expect(atomic, 0, fragment.Decide, packet.None)
		if out := c.tracker.Decided(packet.DropNoRoute); out != nil {
			t.Errorf("%d frames released", len(out))
		}
		c.expect(part{v6: true, id: 1, offset: 8, length: 8, more: true}, 0, fragment.Held, packet.None)
		c = converse(t)
	}
}

// A verdict is for the datagram whose first fragment was judged last, and only once.
func TestDecidedTwice(t *testing.T) {
	c := converse(t)
	c.expect(part{id: 1, length: 8, more: true}, 0, fragment.Decide, packet.None)
	c.tracker.Decided(packet.DropNoRoute)
	c.tracker.Decided(packet.Delivered)
	c.expect(part{id: 1, offset: 8, length: 8, more: true}, 0, fragment.Drop, packet.DropNoRoute)
}

// An ID used again after the whole datagram went through starts anew with its first fragment, at
// once; others are duplicates for 1 s. With a gap left, it does at 30 s.
func TestReusedID(t *testing.T) {
	c := converse(t)
	parts := []part{{id: 1, length: 8, more: true}, {id: 1, offset: 8, length: 3}}
	at := time.Duration(0)
	for _, gap := range []time.Duration{time.Second - 1, time.Second, 2 * time.Second, time.Hour} {
		c.expect(parts[0], at, fragment.Decide, packet.None)
		c.tracker.Decided(packet.None)
		c.expect(parts[1], at, fragment.Pass, packet.None)
		c.expect(parts[1], at+time.Second-1, fragment.Drop, packet.DropFragmentOverlap)
		at += gap
	}
	c.expect(parts[0], at, fragment.Decide, packet.None)
	c.expect(parts[0], at+30*time.Second-1, fragment.Drop, packet.DropFragmentOverlap)
	c.expect(parts[0], at+30*time.Second, fragment.Decide, packet.None)
}

// Whoever waits until NextDeadline finds something lost, and not before.
func TestDeadline(t *testing.T) {
	c := converse(t)
	c.expect(part{id: 1, offset: 8, length: 8}, time.Second, fragment.Held, packet.None)
	at, ok := c.tracker.NextDeadline()
	if at != 4*time.Second || !ok || len(c.tracker.Expire(at-1)) != 0 || c.tracker.Held() != 1 {
		t.Fatalf("deadline %v, %v, %d held before", at, ok, c.tracker.Held())
	}
	lost := c.tracker.Expire(at)
	if len(lost) != 1 || lost[0].Verdict != packet.DropFragmentOrphan || c.tracker.Held() != 0 {
		t.Fatalf("lost at the deadline: %v, %d held", lost, c.tracker.Held())
	}
	if _, ok := c.tracker.NextDeadline(); ok {
		t.Error("a deadline with nothing held")
	}
}

// The largest datagram of each family, and one byte more.
func TestLongest(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		header := 20
		if v6 {
			header = v6Chain
		}
		last := part{v6: v6, id: 1, offset: 65480}
		last.length = 65535 - header - last.offset
		c := converse(t)
		c.expect(last, 0, fragment.Held, packet.None)
		last.id, last.length = 2, last.length+1
		c.expect(last, 0, fragment.Drop, packet.DropFragmentOverlap)
		c.expect(part{v6: v6, id: 2, length: 8, more: true}, 0, fragment.Drop, packet.DropFragmentOverlap)
	}
}

// A last fragment whose final block is cut, and a longer one in the same block.
func TestCutBlock(t *testing.T) {
	c := converse(t)
	c.expect(part{id: 1, length: 16, more: true}, 0, fragment.Decide, packet.None)
	c.tracker.Decided(packet.Encapsulated)
	c.expect(part{id: 1, offset: 16, length: 5}, 0, fragment.Pass, packet.None)
	c.expect(part{id: 1, offset: 16, length: 5}, 0, fragment.Drop, packet.DropFragmentOverlap)
	c.expect(part{id: 1, offset: 16, length: 8, more: true}, 0, fragment.Drop, packet.DropFragmentOverlap)
	c.expect(part{id: 1, offset: 1024, length: 8, more: true}, 0, fragment.Drop, packet.DropFragmentOverlap)
}

func TestTrackerAllocates(t *testing.T) {
	tracker := fragment.New(fragment.Limits{Datagrams: 16, Held: 32})
	batch := packet.NewBatch(1 << 20)
	now, id := time.Duration(0), uint32(0)
	held := 0
	turn := func() {
		tracker.Recycle()
		batch.Reset()
		now += 200 * time.Millisecond
		for range 20 {
			id++
			for _, p := range []part{{id: id, offset: 1480, length: 1480, more: true}, {id: id, length: 1480, more: id%3 > 0}, {id: id, offset: 2960, length: 5}} {
				switch action, _ := tracker.Judge(p.frame(batch, 0), now); {
				case action == fragment.Held:
					held++
				case action == fragment.Decide && id%3 == 2:
					tracker.Decided(packet.Delivered)
				}
			}
		}
		tracker.Expire(now)
		tracker.Held()
	}
	for range 20 {
		turn()
	}
	frames := testing.AllocsPerRun(50, func() {
		batch.Reset()
		for range 60 {
			part{length: 1480}.frame(batch, 0)
		}
	})
	if n := testing.AllocsPerRun(50, turn); n > frames {
		t.Errorf("%v allocations in a turn, %v of them to make the frames", n, frames)
	}
	if held < 100 {
		t.Errorf("%d frames held", held)
	}
}
