package capture

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// ringSize is what waits in a worker's ring at most: some hundred super-packets, or fifty thousand small ones.
const ringSize = 8 << 20

// A Config says what a Session captures. Workers, Tunnel and at least one of Stages are needed.
type Config struct {
	Stages  []Stage
	Filter  *Filter // of the outermost headers of what is captured; nil for all
	Inner   *Filter // of the packet inside the tunnel; nil for all
	SnapLen int     // bytes kept of each packet; MaxSnapLen if 0
	Workers int
	Tunnel  Tunnel
	Start   time.Time                                // wall time at which the engine's clock was 0
	Local   []netip.Addr                             // this node's addresses on the underlay, for synthesized headers
	Source  func(worker int, f *packet.Frame) uint16 // port that a frame is sent from; nil: not known
	TAPName string
	L3      bool // the TAP carries IP packets: its frames' Ethernet headers are not the kernel's
	ring    int  // ringSize if 0
}

// A Session captures for one reader. Observe is called by the workers, everything else by the goroutine that owns it.
type Session struct {
	config     Config
	interfaces []Interface
	at         [numPlaces]int8 // interface of each place; -1 for not wanted
	producers  []producer
	wire       *wireReader   // nil for none
	wake       chan struct{} // a ring is half full
}

// A place is what becomes an interface: packets of one stage and one link type.
type place uint8

const (
	placeTAP place = iota
	placeEncap
	placeDecap
	placeDrop
	placeDropIP
	placeWire
	numPlaces
)

// NewSession returns a Session.
func NewSession(c Config) *Session {
	if c.SnapLen <= 0 || c.SnapLen > MaxSnapLen {
		c.SnapLen = MaxSnapLen
	}
	if c.ring == 0 {
		c.ring = ringSize
	}
	s := &Session{config: c, producers: make([]producer, c.Workers), wake: make(chan struct{}, 1)}
	for i := range s.at {
		s.at[i] = -1
	}
	for _, stage := range c.Stages {
		s.announce(stage)
	}
	for i := range s.producers {
		s.producers[i].init(s, i)
	}
	return s
}

// announce makes the interfaces of a stage.
func (s *Session) announce(stage Stage) {
	inner := RawIP
	if s.config.Tunnel.VXLAN {
		inner = Ethernet
	}
	const synthesized = "outer IP and UDP headers are synthesized, not as on the wire"
	device := Ethernet
	if s.config.L3 {
		device = RawIP
	}
	switch stage {
	case TAP:
		s.add(placeTAP, Interface{stage, "tap", "frames read from (inbound) and written to (outbound) " + s.config.TAPName, device})
	case Encap:
		s.add(placeEncap, Interface{stage, "encap", "encapsulated packets, as handed to the socket; " + synthesized, RawIP})
	case Decap:
		s.add(placeDecap, Interface{stage, "decap", "decapsulated packets that were accepted from their peer", inner})
	case Drop:
		s.add(placeDrop, Interface{stage, "drop", "dropped frames, without encapsulation", Ethernet})
		s.add(placeDropIP, Interface{stage, "drop-ip", "dropped packets without Ethernet header; of encapsulated ones the " + synthesized, RawIP})
	}
}

func (s *Session) add(p place, i Interface) {
	s.at[p] = int8(len(s.interfaces))
	s.interfaces = append(s.interfaces, i)
}

// Interfaces lists where packets of the session come from. Records refer to them by their place in the list.
func (s *Session) Interfaces() []Interface { return s.interfaces }

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

// Observe is a dataplane.Observer.
func (s *Session) Observe(sight *dataplane.Sighting) {
	if sight.Worker >= len(s.producers) {
		return
	}
	p := &s.producers[sight.Worker]
	if sight.Point != dataplane.AtRead { // which is before they are counted
		p.recall(sight.Serial).segments = uint16(sight.Frame.Segments)
	}
	switch sight.Point {
	case dataplane.AtRead:
		p.read(sight)
	case dataplane.AtDecap:
		p.decap(sight)
	case dataplane.AtRoute:
		p.recall(sight.Serial).routed = true
	case dataplane.AtFlow:
		m := p.recall(sight.Serial)
		m.flow, m.known = uint64(sight.Flow.ID), sight.Known
	case dataplane.AtEncap:
		p.encap(sight)
	case dataplane.AtSent:
		p.sent(sight)
	case dataplane.AtDrop:
		p.drop(sight)
	}
	if p.ring.publish(p.settled()) {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
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

// wanted applies the filters. Before a packet's bytes are copied, so that what nobody wants costs no room.
func (s *Session) wanted(link LinkType, p *parts) bool {
	c := &s.config
	if c.Filter == nil && c.Inner == nil {
		return true
	}
	head := p.data
	switch {
	case p.outer != nil:
		head = p.outer
	case p.link != nil: // made for the TAP: a filter sees what lies behind it
		link = RawIP
	}
	h := Dissect(head, link, p.length())
	if !c.Filter.Match(&h) || c.Inner == nil {
		return c.Filter.Match(&h)
	}
	if p.outer != nil {
		inner, link := c.Tunnel.Unwrap(p.data)
		h = Dissect(inner, link, len(inner))
	}
	return c.Inner.Match(&h)
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

// Flush publishes what still waits. No worker may be in Observe, nor come there.
func (s *Session) Flush() {
	for i := range s.producers {
		p := &s.producers[i]
		p.settleAll()
		p.ring.publish(p.settled())
	}
}

// Statistics sums an interface up over all workers.
func (s *Session) Statistics(number int) Statistics {
	total := Statistics{Interface: number}
	if w := s.wire; w != nil && w.number == number {
		total.Missed = w.missed.Load()
		total.Received = w.received.Load() + total.Missed
		return total
	}
	for at, n := range s.at {
		if int(n) != number {
			continue
		}
		for i := range s.producers {
			total.Missed += s.producers[i].missed[at].Load()
			total.Received += s.producers[i].received[at].Load()
		}
	}
	return total
}

// CheckStages finds the stages that a list of names means.
func CheckStages(names []string) (stages []Stage, err error) {
	var have [numStages]bool
	for _, name := range names {
		s, ok := ParseStage(name)
		if !ok {
			return nil, fmt.Errorf("stage %q: unknown (allowed: tap, encap, decap, drop, wire)", name)
		}
		if !have[s] {
			have[s] = true
			stages = append(stages, s)
		}
	}
	return stages, nil
}

// Close gives back what OpenWire took, if Run is never called.
func (s *Session) Close() {
	if s.wire != nil {
		s.wire.close()
	}
}
