// Package tables owns what the control plane compiled for the packet path: the FIB, the
// peers and who owns which source addresses, as one immutable Set.
//
// A Set never changes after Compile; readers share it without locks. Publishing and
// replacing Sets is the engine's. Nothing here touches frame bytes.
package tables

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/dataplane/lpm"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// A Kind says what the engine does with a packet that a route matches.
type Kind uint8

const (
	// Local routes lead to pods of this node, through the TAP or a port of the pod's own.
	Local Kind = iota + 1
	// ToPeer routes lead to another node, through the underlay.
	ToPeer
	// Host routes lead to this node itself: the kernel takes the packet.
	Host
	// Reject routes are cluster network that no node owns.
	Reject
)

// String returns the kind's name in listings.
func (k Kind) String() string {
	switch k {
	case Local:
		return "local"
	case ToPeer:
		return "peer"
	case Host:
		return "host"
	case Reject:
		return "reject"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// MarshalText makes JSON carry the name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// A MAC is an Ethernet address: the packet path's type, for those who build Sets and touch no
// frames.
type MAC = packet.MAC

// A Node is what the packet path knows of the node it runs on.
type Node struct {
	VTEP    MAC        // of the TAP: inner destination of what peers send here
	Gateway MAC        // of the engine, on the TAP's other end
	Engine  netip.Addr // the engine's own IPv4 address, on no interface; zero without IPv4
	Engine6 netip.Addr // its IPv6 address; zero without IPv6
	MTU     int        // largest IP packet of the node's pods, bytes
	Port    uint16     // UDP port of the tunnel

	// Largest inner IP packet that the underlay's link takes in one piece, by family, bytes. With both families that of
	// IPv4 is above MTU, which has to fit both.
	Limit4, Limit6 int
}

// Limit returns the one for packets of src's family.
func (n *Node) Limit(src netip.Addr) int {
	if src.Is4() {
		return n.Limit4
	}
	return n.Limit6
}

// A Peer is another node in one address family: a dual-stack node is two of them, with an underlay address and a VXLAN each.
type Peer struct {
	Name     string
	Endpoint netip.AddrPort // outer destination, and outer source but for the port
	VTEP     MAC            // inner destination MAC of what is sent there
	Sources  []netip.Prefix // inner sources it may send from: its subnets and own addresses
	MTU      int            // largest inner IP packet that gets there in one piece, bytes
	Probe    netip.Addr     // inner address there that answers echo requests; zero when none is known
	Native   bool           // the kernel sends there by itself, without the engine
	Activity *Activity      // what workers note of it, one for all generations; nil for nobody's use
}

// A Pod is a pod of this node whose interface the engine holds the other end of: a port of its own. It is not changed.
type Pod struct {
	Port     uint32     // its number, not 0
	MAC      MAC        // of the pod
	Gateway  MAC        // of the other end
	Addr4    netip.Addr // zero without IPv4
	Addr6    netip.Addr // zero without IPv6
	Gateway4 netip.Addr // link-local; the engine answers for them
	Gateway6 netip.Addr
}

// Addrs returns the pod's addresses.
func (p *Pod) Addrs() (addrs []netip.Addr) {
	for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
		if a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// A Route is one FIB entry.
type Route struct {
	Prefix netip.Prefix
	Kind   Kind
	Peer   *Peer // valid iff Kind is ToPeer
	Pod    *Pod  // of a Local route: whose port it leads to, nil for the TAP
}

// A Set is everything that a packet's way depends on, immutable. Every method is safe for
// concurrent use.
type Set struct {
	Generation uint64
	Node       Node

	ports   bool // some route leads to a pod's port
	routes  []Route
	fib     *lpm.Table // of routes
	sources []source
	owners  *lpm.Table // of sources
	peers   map[netip.Addr]*Peer
}

// A source is a prefix that a peer may send from.
type source struct {
	prefix netip.Prefix // as it was given
	peer   *Peer
	order  int // of the peer
}

// Compile returns the Set of one generation. It refuses peers without an endpoint, two peers with
// one endpoint address, two routes for one prefix, overlapping sources of different
// peers, routes of no kind or without a peer, and invalid prefixes, naming them.
func Compile(generation uint64, node Node, peers []*Peer, routes []Route) (*Set, error) {
	s := &Set{Generation: generation, Node: node, peers: make(map[netip.Addr]*Peer, len(peers)), routes: slices.Clone(routes)}
	for i, p := range peers {
		if err := s.addPeer(i, p); err != nil {
			return nil, err
		}
	}
	if err := s.sortSources(); err != nil {
		return nil, err
	}
	if err := s.sortRoutes(); err != nil {
		return nil, err
	}
	s.owners = lpm.New(prefixes(s.sources, func(o *source) netip.Prefix { return o.prefix.Masked() }))
	s.fib = lpm.New(prefixes(s.routes, func(r *Route) netip.Prefix { return r.Prefix }))
	return s, nil
}

func prefixes[T any](of []T, prefix func(*T) netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, len(of))
	for i := range of {
		all[i] = prefix(&of[i])
	}
	return all
}

func (s *Set) addPeer(order int, p *Peer) error {
	addr := p.Endpoint.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() {
		return fmt.Errorf("compile tables: peer %s has no endpoint", p.Name)
	}
	if other, ok := s.peers[addr]; ok {
		return fmt.Errorf("compile tables: peers %s and %s share the endpoint %s", other.Name, p.Name, addr)
	}
	s.peers[addr] = p
	for _, prefix := range p.Sources {
		if !prefix.IsValid() {
			return fmt.Errorf("compile tables: peer %s: invalid prefix among its addresses", p.Name)
		}
		s.sources = append(s.sources, source{prefix, p, order})
	}
	return nil
}

// sortSources leaves each prefix once, and refuses one that overlaps another peer's: behind one that contains it stands nothing else
// in the order of prefixes.
func (s *Set) sortSources() error {
	slices.SortStableFunc(s.sources, func(a, b source) int { return a.prefix.Compare(b.prefix) })
	var around source // the widest that contains the one at hand
	for _, o := range s.sources {
		if !around.prefix.IsValid() || !around.prefix.Overlaps(o.prefix) {
			around = o
			continue
		}
		if later := o; around.peer != o.peer {
			if around.order > o.order {
				later = around
			}
			return fmt.Errorf("compile tables: %s of peer %s overlaps another peer's addresses", later.prefix, later.peer.Name)
		}
	}
	s.sources = slices.CompactFunc(s.sources, func(a, b source) bool { return a.prefix.Masked() == b.prefix.Masked() })
	return nil
}

func (s *Set) sortRoutes() error {
	for i := range s.routes {
		r := &s.routes[i]
		if err := r.check(); err != nil {
			return err
		}
		r.Prefix = r.Prefix.Masked()
		s.ports = s.ports || r.Pod != nil
	}
	slices.SortFunc(s.routes, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	for i := range s.routes[:max(len(s.routes)-1, 0)] {
		if prefix := s.routes[i].Prefix; prefix == s.routes[i+1].Prefix {
			return fmt.Errorf("compile tables: two routes for %s", prefix)
		}
	}
	return nil
}

func (r *Route) check() error {
	if !r.Prefix.IsValid() {
		return fmt.Errorf("compile tables: route of kind %s: invalid prefix", r.Kind)
	}
	if r.Kind < Local || r.Kind > Reject || (r.Kind == ToPeer) != (r.Peer != nil) {
		return fmt.Errorf("compile tables: route %s is of kind %s: a peer route names a peer, the others none", r.Prefix, r.Kind)
	}
	if r.Pod != nil && (r.Kind != Local || r.Pod.Port == 0) {
		return fmt.Errorf("compile tables: route %s is of kind %s to the port %d of a pod", r.Prefix, r.Kind, r.Pod.Port)
	}
	return nil
}

// Lookup returns the longest matching route for dst, or nil.
func (s *Set) Lookup(dst netip.Addr) *Route {
	if i := s.fib.Lookup(dst); i != lpm.None {
		return &s.routes[i]
	}
	return nil
}

// PodAt returns the pod that has dst and a port, or nil.
func (s *Set) PodAt(dst netip.Addr) *Pod {
	if !s.ports {
		return nil
	}
	if r := s.Lookup(dst); r != nil {
		return r.Pod
	}
	return nil
}

// PeerAt returns the peer whose packets come from the outer address addr, or nil.
func (s *Set) PeerAt(addr netip.Addr) *Peer { return s.peers[addr] }

// Owner returns the peer that src belongs to, or nil.
func (s *Set) Owner(src netip.Addr) *Peer {
	if i := s.owners.Lookup(src); i != lpm.None {
		return s.sources[i].peer
	}
	return nil
}

// Large says whether Touch is worth its time.
func (s *Set) Large() bool { return s.fib.Large() || s.owners.Large() }

// Touch begins to load what Lookup will look at for dst, and Owner for src: see lpm.Table.
func (s *Set) Touch(src, dst []netip.Addr) {
	s.owners.Touch(src)
	s.fib.Touch(dst)
}

// Routes returns all routes, sorted by prefix.
func (s *Set) Routes() iter.Seq[*Route] {
	return func(yield func(*Route) bool) {
		for i := range s.routes {
			if !yield(&s.routes[i]) {
				return
			}
		}
	}
}

// AllPeers returns all peers, in no order.
func (s *Set) AllPeers() iter.Seq[*Peer] { return maps.Values(s.peers) }

// Peers returns the number of peers.
func (s *Set) Peers() int { return len(s.peers) }
