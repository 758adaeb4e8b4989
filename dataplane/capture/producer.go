package capture

import (
	"sync/atomic"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// A memory is what is known of a packet at the points that it has passed.
type memory struct {
	serial       uint64
	flow         uint64
	peer         string
	from         dataplane.Side
	start        int    // where the frame began when it was read
	segments     uint16 // 0 until they are known
	known, made  bool
	routed       bool // nothing but a drop can still keep it from going on
	encapsulated bool
}

// memories is how many packets a worker's memory holds: more than one batch has, so that each is remembered until its port took it.
const memories = 4096

// A waiting record is reserved and not yet published: its packet is still being judged.
type waiting struct {
	serial   uint64
	position uint64
	length   int
}

// A producer is a session's part of one worker.
type producer struct {
	session *Session
	worker  int
	ring    ring
	memory  []memory
	waiting [8]waiting
	waits   int
	outer   [ipv6Len + udpLen]byte // scratch
	// By interface; the worker writes, others read.
	received, missed [numPlaces]atomic.Uint64
}

func (p *producer) init(s *Session, worker int) {
	p.session, p.worker = s, worker
	p.ring = newRing(s.config.ring)
	p.memory = make([]memory, memories)
}

// recall returns what is known of a packet; of one that was met before the session began, or too long ago, nothing.
func (p *producer) recall(serial uint64) *memory {
	m := &p.memory[serial%memories]
	if m.serial != serial || serial == 0 {
		*m = memory{serial: serial}
	}
	return m
}

// read begins a packet. One that the engine makes lies within the judging of another.
func (p *producer) read(sight *dataplane.Sighting) {
	if !sight.Made {
		p.settleAll()
	}
	f := sight.Frame
	m := p.recall(sight.Serial)
	*m = memory{serial: sight.Serial, from: sight.From, start: f.Start(), made: sight.Made}
	if sight.From.Inner() && !sight.Made {
		p.capture(placeTAP, sight, m, FlagInbound, p.atTAP(f), true)
	}
}

func (p *producer) decap(sight *dataplane.Sighting) {
	m := p.recall(sight.Serial)
	m.routed = !sight.Frame.Fragment
	p.name(m, sight)
	p.capture(placeDecap, sight, m, FlagInbound, bytesOf(sight.Frame), true)
}

func (p *producer) encap(sight *dataplane.Sighting) {
	m := p.recall(sight.Serial)
	m.encapsulated = true
	p.name(m, sight)
	if p.session.at[placeEncap] >= 0 {
		p.capture(placeEncap, sight, m, FlagOutbound, p.enclosed(sight.Frame, true), true)
	}
}

func (p *producer) name(m *memory, sight *dataplane.Sighting) {
	if sight.Peer != nil {
		m.peer = sight.Peer.Name[:min(len(sight.Peer.Name), maxPeer)]
	}
}

// sent is called when the judging of a batch is over.
func (p *producer) sent(sight *dataplane.Sighting) {
	p.settleAll()
	if sight.Verdict == packet.Delivered {
		p.capture(placeTAP, sight, p.recall(sight.Serial), FlagOutbound, p.atTAP(sight.Frame), false)
	}
}

func (p *producer) drop(sight *dataplane.Sighting) {
	m := p.recall(sight.Serial)
	if sight.Verdict == packet.DropTAPWrite || sight.Verdict == packet.DropPodWrite || sight.Verdict == packet.DropUnderlaySend {
		p.settleAll()
	}
	p.settle(sight.Serial, sight.Verdict)
	if !sight.Verdict.Dropped() || p.session.at[placeDrop] < 0 {
		return
	}
	f, towards := sight.Frame, FlagInbound
	if m.encapsulated {
		towards = FlagOutbound
	}
	switch {
	case m.encapsulated || !m.from.Inner() && f.Start() == m.start && !f.Detached:
		p.capture(placeDropIP, sight, m, towards, p.enclosed(f, m.encapsulated), false)
	case m.from == dataplane.TAP && p.session.config.L3:
		p.capture(placeDropIP, sight, m, towards, p.atTAP(f), false)
	case f.Detached:
		p.capture(placeDropIP, sight, m, towards, bytesOf(f), false)
	default:
		p.capture(placeDrop, sight, m, towards, bytesOf(f), false)
	}
}

// capture puts a packet into the ring. It waits for its verdict when one is still to come.
func (p *producer) capture(at place, sight *dataplane.Sighting, m *memory, flags Flags, data parts, undecided bool) {
	s := p.session
	number := s.at[at]
	if number < 0 || !s.wanted(s.interfaces[number].Link, &data) {
		return
	}
	p.received[at].Add(1)
	f := sight.Frame
	length := data.length()
	captured := min(length, s.config.SnapLen)
	r := Record{
		Interface: int(number), Verdict: sight.Verdict, Flags: flags | p.flags(f, m, data.outer), Time: s.config.Start.Add(sight.Time), Serial: sight.Serial,
		FlowID: m.flow, Length: length, Segments: f.Segments, Size: int(f.VNet.GSOSize), Worker: p.worker, Peer: m.peer,
	}
	room := len(r.Peer)
	if undecided {
		room = maxPeer
	}
	b, position := p.ring.reserve(recordLen(room, captured))
	if b == nil {
		p.missed[at].Add(1)
		return
	}
	data.copyTo(r.put(b, kindPacket, captured))
	if undecided {
		p.wait(waiting{sight.Serial, position, len(b)})
	}
}

func (p *producer) flags(f *packet.Frame, m *memory, outer []byte) (flags Flags) {
	if outer != nil {
		flags |= FlagSynthesized
	}
	if m.made {
		flags |= FlagMade
	}
	if m.known {
		flags |= FlagKnown
	}
	if f.VNet.NeedsCsum() {
		flags |= FlagPartial
	}
	return flags
}

// wait keeps a record from being published.
func (p *producer) wait(w waiting) {
	if p.waits == len(p.waiting) {
		p.settleAll()
	}
	p.waiting[p.waits] = w
	p.waits++
}

// settled is the position up to which everything is decided.
func (p *producer) settled() uint64 {
	if p.waits > 0 {
		return p.waiting[0].position
	}
	return p.ring.reserved
}

// settle writes the verdict of a packet into its waiting records.
func (p *producer) settle(serial uint64, v packet.Verdict) {
	m := p.recall(serial)
	kept := 0
	for _, w := range p.waiting[:p.waits] {
		if w.serial != serial {
			p.waiting[kept] = w
			kept++
			continue
		}
		amend(p.ring.at(w.position, w.length), v, m)
	}
	p.waits = kept
}

// settleAll decides what still waits: no drop was seen, so the packets go on. A fragment may wait for its datagram's first one: of
// that nothing is said.
func (p *producer) settleAll() {
	for p.waits > 0 {
		serial := p.waiting[0].serial
		m := p.recall(serial)
		v := packet.None
		switch {
		case m.encapsulated:
			v = packet.Encapsulated
		case m.routed || m.flow != 0:
			v = packet.Delivered
		}
		p.settle(serial, v)
	}
}
