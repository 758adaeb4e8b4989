// Package trace owns the records of packets' ways through the engine: which packets are followed, and the bounded memory that their
// ways are written to, as a dataplane.Observer, by workers that never wait and never allocate. What does not fit is counted as
// missed.
//
// It reads packets' bytes leniently and on its own, for it has to name packets that the engine refuses; it judges nothing, changes
// nothing, and knows no text.
package trace

import (
	"math"
	"net/netip"
	"sync/atomic"

	"github.com/tulle-net/tulle/dataplane"
)

// A Filter says which packets are followed: by what they are when they are read, inside the encapsulation. Zero fields match all.
type Filter struct {
	Proto            uint8
	Src, Dst         netip.Prefix
	SrcPort, DstPort uint16
	Peer             string // only those that come from or go to this node
	Drops            bool   // only those that end in a drop
}

func (f *Filter) matches(h *Header) bool {
	return (f.Proto == 0 || f.Proto == h.Proto) && (f.SrcPort == 0 || f.SrcPort == h.SrcPort) && (f.DstPort == 0 || f.DstPort == h.DstPort) &&
		(!f.Src.IsValid() || f.Src.Contains(h.Src)) && (!f.Dst.IsValid() || f.Dst.Contains(h.Dst))
}

// matchesWay holds against the filter what is known only at the end.
func (f *Filter) matchesWay(r *Record) bool {
	return (!f.Drops || r.Verdict.Dropped()) && (f.Peer == "" || f.Peer == r.Peer())
}

// A Config says what a Recorder keeps.
type Config struct {
	Filter  Filter
	Count   int // packets to keep; 0 for no end. Those that the engine makes about one of them come on top
	Sample  int // follow one of so many that have the filter's addresses, protocol and ports; 0 is 1
	Workers int
	Bare    bool // the encapsulation has neither VXLAN nor Ethernet header
}

// lane sizes: packets of a worker's under way, and packets done that nobody took yet.
const (
	openSlots = 256
	doneSlots = 256
)

// A Recorder writes down packets' ways. Observe is for the engine's workers; Take is called by one goroutine.
type Recorder struct {
	config Config
	link   Link // of what goes over an underlay
	lanes  []lane
	left   atomic.Int64 // packets to keep still
	missed atomic.Uint64
}

// A lane is one worker's. done is a ring with one writer and one reader.
type lane struct {
	open    [openSlots]Record // by serial number; unused iff its Serial is 0
	kept    [openSlots]uint64 // serial numbers of those kept last
	matched uint64

	done        [doneSlots]Record
	head, taken atomic.Uint64 // written and read so far
}

// New returns a Recorder that has kept nothing yet.
func New(c Config) *Recorder {
	r := &Recorder{config: c, link: VXLAN, lanes: make([]lane, c.Workers)}
	if c.Bare {
		r.link = BareIP
	}
	r.left.Store(math.MaxInt64)
	if c.Count > 0 {
		r.left.Store(int64(c.Count))
	}
	return r
}

// Missed counts the packets that matched, or may have, and were not kept because there was no room.
func (r *Recorder) Missed() uint64 { return r.missed.Load() }

// Full reports whether all packets that were asked for are kept.
func (r *Recorder) Full() bool { return r.left.Load() <= 0 }

// Observe is the dataplane.Observer.
func (r *Recorder) Observe(s *dataplane.Sighting) {
	if s.Serial == 0 || s.Worker >= len(r.lanes) { // read before the observation began
		return
	}
	l := &r.lanes[s.Worker]
	record := &l.open[s.Serial%openSlots]
	if s.Point == dataplane.AtRead {
		r.meet(l, record, s)
		return
	}
	if record.Serial != s.Serial {
		return
	}
	record.add(s, r.link)
	partly := s.Point == dataplane.AtSent && s.Frame.Refused > 0 // the rest is dropped next
	if s.Verdict != 0 && !partly {
		record.Verdict, record.Segments = s.Verdict, s.Frame.Segments
		r.finish(l, record)
		record.Serial = 0
	}
}

// meet begins a record, in the place of one that is not done yet if need be.
func (r *Recorder) meet(l *lane, record *Record, s *dataplane.Sighting) {
	link := Ethernet
	switch {
	case !s.From.Inner():
		link = r.link
	case s.Frame.Detached:
		link = BareIP
	}
	h := Decode(s.Frame.Bytes(), link)
	if !r.wants(l, s, &h) {
		return
	}
	if record.Serial != 0 {
		r.missed.Add(1)
	}
	record.Worker, record.Serial, record.Made, record.About, record.From = s.Worker, s.Serial, s.Made, s.About, s.From
	record.Header, record.Wire, record.Verdict, record.count = h, Header{}, 0, 0
	record.add(s, link)
}

// wants says whether a packet is to be followed: it has what the filter asks for, or is about one that is followed.
func (r *Recorder) wants(l *lane, s *dataplane.Sighting, h *Header) bool {
	if s.Made && (l.open[s.About%openSlots].Serial == s.About || l.kept[s.About%openSlots] == s.About) {
		return true
	}
	if r.Full() || !r.config.Filter.matches(h) {
		return false
	}
	l.matched++
	return r.config.Sample <= 1 || l.matched%uint64(r.config.Sample) == 1
}

// finish keeps a packet that is done, if it is one to keep.
func (r *Recorder) finish(l *lane, record *Record) {
	follows := record.Made && l.kept[record.About%openSlots] == record.About
	if !follows && !(r.config.Filter.matches(&record.Header) && r.config.Filter.matchesWay(record) && r.left.Add(-1) >= 0) {
		return
	}
	head := l.head.Load()
	if head-l.taken.Load() == doneSlots {
		r.missed.Add(1)
		if !follows {
			r.left.Add(1)
		}
		return
	}
	l.done[head%doneSlots] = *record
	l.head.Store(head + 1)
	l.kept[record.Serial%openSlots] = record.Serial
}

// Take calls yield with each record kept since the last time, of each worker in order. The record is yield's only while it runs.
func (r *Recorder) Take(yield func(*Record)) {
	for i := range r.lanes {
		l := &r.lanes[i]
		for taken := l.taken.Load(); taken < l.head.Load(); taken++ {
			yield(&l.done[taken%doneSlots])
			l.taken.Store(taken + 1)
		}
	}
}
