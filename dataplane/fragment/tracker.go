// Package fragment owns what the packet path remembers of fragmented datagrams: the verdict
// of the first fragment, which all others follow, those that wait for it, and which bytes
// were seen, so that no two fragments overlap (RFC 791, RFC 8200 section 4.5, RFC 5722).
//
// It never reassembles, never decides a first fragment and reads no clock. Memory is bounded
// and taken up front; no step costs more than its fragment's own length, and releasing those held.
package fragment

import (
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Limits bound a Tracker. A zero field means its default.
type Limits struct {
	Datagrams int           // remembered at once, 2 KiB each; 1,024
	Held      int           // fragments that wait for their first; 1,024
	Memory    int           // bytes for those, in steps of 128 KiB; 1 MiB
	Wait      time.Duration // the longest that one waits; 3 s
}

func (l Limits) withDefaults() Limits {
	pick := func(n *int, preset int) {
		if *n <= 0 {
			*n = preset
		}
	}
	pick(&l.Datagrams, 1024)
	pick(&l.Held, 1024)
	pick(&l.Memory, 1<<20)
	if l.Wait <= 0 {
		l.Wait = 3 * time.Second
	}
	return l
}

// Lifetimes of a datagram's entry.
const (
	// lifetime counts from the first fragment seen, as Linux's ipfrag_time does.
	lifetime = 30 * time.Second

	// linger is what is left of it once all fragments were seen. Duplicates are late by less.
	// One that is later yet begins a new datagram, and so waits in vain for Limits.Wait at most.
	// A first fragment begins a new datagram at once: senders use IDs again within a second
	// (RFC 4963; Linux begins with a random one for each socket), the receiver has let go of the
	// whole datagram already, and the duplicate that it may be instead does no harm.
	linger = time.Second
)

// An Action is what the engine is to do with a fragment.
type Action uint8

// Actions.
const (
	Decide Action = iota + 1 // as with any packet, then call Decided
	Pass                     // as with the first fragment of its datagram, which passed
	Drop                     // with the verdict returned
	Held                     // nothing: the Tracker has a copy that Decided or Expire returns
)

// A Lost is a held fragment that its datagram's first fragment did not save.
type Lost struct {
	Frame   *packet.Frame
	Verdict packet.Verdict
}

// A Tracker makes the fragments of a datagram share one fate. It is used by one goroutine,
// which calls Recycle before each batch, Judge for each fragment, Decided after each Decide
// before the next Judge, and Expire after the batch and when NextDeadline is due. The zero
// value is of no use: see New.
type Tracker struct {
	limits  Limits
	table   table
	hold    hold
	current *datagram // of the last Judge; nil when it is not remembered
	frames  []*packet.Frame
	lost    []Lost
}

// New returns a Tracker with all the memory that it will use.
func New(l Limits) *Tracker {
	l = l.withDefaults()
	return &Tracker{
		limits: l, table: newTable(l.Datagrams), hold: newHold(l.Held, l.Memory),
		frames: make([]*packet.Frame, 0, l.Held), lost: make([]Lost, 0, l.Held),
	}
}

// Judge takes a frame that Parse accepted as a fragment. The verdict is None unless the
// action is Drop:
//   - DropIPHeader for a fragment without payload, or one that is not the last and no multiple
//     of 8 bytes long (which Parse refuses too). Nothing else is made of it.
//   - DropFragmentOverlap for an exact duplicate, which does no harm to its datagram; and for a
//     fragment that overlaps another, lies behind the end, moves the end or makes the datagram
//     longer than 65,535 bytes, and with it for all that wait or come later.
//   - DropFragmentMemory for one that cannot wait for its first. It counts as never seen.
//   - The first fragment's verdict, for those behind it.
func (t *Tracker) Judge(f *packet.Frame, now time.Duration) (Action, packet.Verdict) {
	t.current = nil
	p := pieceOf(f)
	switch {
	case p.atomic():
		return Decide, packet.None // RFC 6946: on its own
	case !p.sound():
		return Drop, packet.DropIPHeader
	}
	d := t.remember(keyOf(f), p, now)
	t.current = d
	switch d.place(p) {
	case repeated:
		return Drop, packet.DropFragmentOverlap
	case conflicting:
		d.poisoned = true
		t.hold.doom(d, packet.DropFragmentOverlap)
		return Drop, packet.DropFragmentOverlap
	}
	if p.offset > 0 && !d.decided && !t.hold.keep(d, f, now+t.limits.Wait) {
		return Drop, packet.DropFragmentMemory
	}
	d.mark(p, now)
	switch {
	case p.offset == 0:
		return Decide, packet.None
	case !d.decided:
		return Held, packet.None
	case passes(d.verdict):
		return Pass, packet.None
	}
	return Drop, d.verdict
}

// remember returns the entry of the piece's datagram, a new one if there is none or it is over.
func (t *Tracker) remember(k key, p piece, now time.Duration) *datagram {
	d := t.table.find(k)
	if d == nil {
		d = t.table.oldest()
		t.hold.doom(d, packet.DropFragmentMemory)
		t.table.rename(d, k)
		d.reset(now)
	} else if now >= d.expires || p.offset == 0 && d.whole() {
		t.hold.doom(d, packet.DropFragmentOrphan)
		d.reset(now)
	}
	t.table.touch(d)
	return d
}

// passes reports whether the fragments behind a first one with this verdict may go.
func passes(v packet.Verdict) bool { return v == packet.None || v.Sent() }

// Decided says what became of the fragment that Judge gave Decide for: None or a verdict of
// a frame that was sent when it passes. It returns those that waited for it, in the order of
// their arrival: they have the same fate. They are valid until Recycle.
func (t *Tracker) Decided(v packet.Verdict) []*packet.Frame {
	d := t.current
	if d == nil || d.decided || d.poisoned {
		return nil
	}
	d.decided, d.verdict = true, v
	from := len(t.frames)
	for h := t.hold.release(d); h != nil; h = t.hold.release(d) {
		t.frames = append(t.frames, &h.frame)
	}
	return t.frames[from:]
}

// Expire returns the held fragments that will not be released: DropFragmentOrphan when they
// waited too long, DropFragmentMemory when their datagram's entry was needed for another,
// DropFragmentOverlap when it was spoilt. They are valid until Recycle.
func (t *Tracker) Expire(now time.Duration) []Lost {
	t.hold.expire(now)
	from := len(t.lost)
	for h := t.hold.takeLost(); h != nil; h = t.hold.takeLost() {
		t.lost = append(t.lost, Lost{Frame: &h.frame, Verdict: h.verdict})
	}
	return t.lost[from:]
}

// NextDeadline returns when Expire has something to return; false when nothing is held.
func (t *Tracker) NextDeadline() (time.Duration, bool) { return t.hold.deadline() }

// Held returns the wire segments that are held now.
func (t *Tracker) Held() int { return t.hold.segments() }

// Recycle takes back the frames that Decided and Expire returned.
func (t *Tracker) Recycle() {
	t.hold.recycle()
	t.frames, t.lost = t.frames[:0], t.lost[:0]
}
