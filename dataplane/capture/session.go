package capture

import (
	"fmt"
	"net/netip"
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
