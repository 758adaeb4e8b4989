package dataplane

import (
	"slices"
	"sync"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A Point is a place on a packet's way at which it can be observed.
type Point uint8

// Points, in the order of the way. Not every packet passes each.
const (
	AtRead  Point = iota + 1 // as the port handed it over: from an underlay, still encapsulated
	AtDecap                  // decapsulated, and fit to come from its peer
	AtFlow                   // its flow was found, or, once all is decided, made
	AtRoute                  // its route was
	AtEncap                  // encapsulated for its peer; the outer headers are the port's to write
	AtSent                   // a port took it
	AtDrop                   // thrown away: the Verdict says why. Or used up: it says for what
)

// String returns the point's name in traces.
func (p Point) String() string {
	names := [...]string{AtRead: "read", AtDecap: "decap", AtFlow: "flow", AtRoute: "route", AtEncap: "encap", AtSent: "sent", AtDrop: "drop"}
	if int(p) < len(names) {
		return names[p]
	}
	return "invalid"
}

// A Sighting is a packet at a point. It and its Frame are the worker's and valid only until the Observer returns.
type Sighting struct {
	Point   Point
	Worker  int
	Serial  uint64         // counts the worker's packets while somebody observes: the same at each point
	From    Side           // where the packet came in; of one that the engine made itself: TAP
	Made    bool           // by the engine itself
	About   uint64         // valid iff Made: the Serial of the packet that it answers or complains of
	Verdict packet.Verdict // valid iff AtSent or AtDrop
	Time    time.Duration  // by the engine's clock
	Frame   *packet.Frame
	Peer    *tables.Peer  // nil until it is known, and for packets that stay on the node; of one from a peer: whose outer source it has
	Route   *tables.Route // valid from AtRoute on; nil: there is none
	Flow    conntrack.Hit // valid from AtFlow on iff its ID is not 0
	Known   bool          // valid iff Flow is: the flow was there before the packet
}

// An Observer sees packets. It is called by the workers, on the packet path: it copies what it wants and returns.
type Observer func(*Sighting)

// observers are those of an engine. Workers load the list once for each batch; without any it is nil, and a
// point costs a comparison.
type observers struct {
	mu  sync.Mutex // held by whoever changes the list
	all []*Observer
}

// Observers returns how many there are.
func (e *Engine) Observers() int {
	e.watchers.mu.Lock()
	defer e.watchers.mu.Unlock()
	return len(e.watchers.all)
}

// Observe calls o for each point of each packet from the next batches on, until the function that it returns was called. After
// that o may still be called for the batches under way.
func (e *Engine) Observe(o Observer) (stop func()) {
	e.watchers.mu.Lock()
	defer e.watchers.mu.Unlock()
	e.setObservers(append(slices.Clone(e.watchers.all), &o))
	return sync.OnceFunc(func() {
		e.watchers.mu.Lock()
		defer e.watchers.mu.Unlock()
		e.setObservers(slices.DeleteFunc(slices.Clone(e.watchers.all), func(other *Observer) bool { return other == &o }))
	})
}

func (e *Engine) setObservers(all []*Observer) {
	e.watchers.all = all
	if len(all) == 0 {
		e.observed.Store(nil)
		return
	}
	e.observed.Store(&all)
}

// meet begins a packet's observation. What was known of the packet before it is forgotten.
func (w *worker) meet(from Side, f *packet.Frame) {
	if w.observers != nil {
		w.begins(f, Sighting{Worker: w.number, From: from})
	}
}

// meetMade is meet for a packet that the engine made itself, about another one. Both may be in the same frame, one after the
// other.
func (w *worker) meetMade(f *packet.Frame, about uint64) {
	if w.observers != nil {
		w.begins(f, Sighting{Worker: w.number, From: TAP, Made: true, About: about})
	}
}

func (w *worker) begins(f *packet.Frame, s Sighting) {
	w.serial++
	f.Serial, w.sighting = w.serial, s
	w.see(AtRead, f, packet.None)
}

// see shows the packet at hand to the observers.
func (w *worker) see(p Point, f *packet.Frame, v packet.Verdict) {
	if w.observers == nil {
		return
	}
	s := &w.sighting
	s.Point, s.Verdict, s.Frame, s.Serial, s.Time = p, v, f, f.Serial, w.engine.Clock()
	for _, o := range *w.observers {
		(*o)(s)
	}
}

// seeFlow, seeRoute and seePeer add what was found out about the packet at hand.
func (w *worker) seeFlow(f *packet.Frame, hit conntrack.Hit, known bool) {
	if w.observers != nil {
		w.sighting.Flow, w.sighting.Known = hit, known
		w.see(AtFlow, f, packet.None)
	}
}

func (w *worker) seeRoute(f *packet.Frame, r *tables.Route) {
	if w.observers != nil {
		w.sighting.Route = r
		w.see(AtRoute, f, packet.None)
	}
}

func (w *worker) seePeer(p Point, f *packet.Frame, peer *tables.Peer) {
	if w.observers != nil {
		w.sighting.Peer = peer
		w.see(p, f, packet.None)
	}
}

// cameFrom notes whose outer source the packet at hand has, whatever becomes of it.
func (w *worker) cameFrom(peer *tables.Peer) {
	if w.observers != nil {
		w.sighting.Peer = peer
	}
}

// seeAside shows a packet that is not the one at hand: what was found out about it is not repeated.
func (w *worker) seeAside(p Point, f *packet.Frame, v packet.Verdict) {
	if w.observers != nil {
		aside := w.sighting
		w.sighting = Sighting{Worker: w.number}
		w.see(p, f, v)
		w.sighting = aside
	}
}
