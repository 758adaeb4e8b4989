package trace

import (
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// maxSteps is the longest way that there is: read, flow, route, encap, sent and drop, and some room.
const maxSteps = 8

// A Record is one packet's way. It holds no pointer to the packet.
type Record struct {
	Worker  int
	Serial  uint64 // the worker's number of the packet
	Made    bool   // by the engine itself
	About   uint64 // valid iff Made: the Serial of the packet that it answers or complains of
	From    dataplane.Side
	Header  Header // as it was read or made
	Wire    Header // as it was encapsulated; valid iff it has a step AtEncap
	Verdict packet.Verdict
	// Segments is the number of wire segments that the packet stood for.
	Segments int

	steps [maxSteps]Step
	count int
}

// Steps are the points that the packet passed, in order.
func (r *Record) Steps() []Step { return r.steps[:r.count] }

// A Step is a packet at a point, and what was found out there.
type Step struct {
	Point dataplane.Point
	Time  time.Duration // by the engine's clock
	Peer  string        // "" until it is known

	Remote  netip.AddrPort  // AtRead: the outer source; AtEncap: the outer destination
	TTL     uint8           // AtRead, AtEncap
	Flow    conntrack.ID    // AtFlow
	State   conntrack.State // AtFlow
	Known   bool            // AtFlow: the flow was there before the packet
	Reply   bool            // AtFlow: against the direction of the flow's first packet
	Routed  bool            // AtRoute: there is a route; what follows is its
	Prefix  netip.Prefix    // AtRoute
	Kind    tables.Kind     // AtRoute
	MTU     int             // AtRoute, valid iff Kind is ToPeer: largest inner packet that gets there in one piece, bytes
	Verdict packet.Verdict  // AtSent, AtDrop
}

// add puts what a sighting says behind the steps so far.
func (r *Record) add(s *dataplane.Sighting, link Link) {
	if r.count == maxSteps {
		return
	}
	step := &r.steps[r.count]
	r.count++
	*step = Step{Point: s.Point, Time: s.Time}
	if s.Peer != nil {
		step.Peer = s.Peer.Name
	}
	switch s.Point {
	case dataplane.AtRead:
		step.TTL = r.Header.TTL
		if !s.From.Inner() {
			step.Remote = s.Frame.Remote
		}
	case dataplane.AtFlow:
		step.Flow, step.State, step.Reply, step.Known = s.Flow.ID, s.Flow.State, s.Flow.Reply, s.Known
	case dataplane.AtRoute:
		step.route(s.Route)
	case dataplane.AtEncap:
		r.Wire = Decode(s.Frame.Bytes(), link)
		step.TTL, step.Remote = r.Wire.TTL, s.Frame.Remote
	case dataplane.AtSent, dataplane.AtDrop:
		step.Verdict = s.Verdict
	}
}

func (s *Step) route(r *tables.Route) {
	if r == nil {
		return
	}
	s.Routed, s.Prefix, s.Kind = true, r.Prefix, r.Kind
	if r.Peer != nil {
		s.Peer, s.MTU = r.Peer.Name, r.Peer.MTU
	}
}

// Peer names the other node that the packet came from, went to or was to go to; "" when there is none or it was not found out.
func (r *Record) Peer() string {
	for i := range r.Steps() {
		if name := r.steps[i].Peer; name != "" {
			return name
		}
	}
	return ""
}
