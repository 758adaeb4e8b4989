package gossip

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/control"
)

// A View is everything that this node knows of the network. It is not changed after it was handed over.
type View struct {
	NodeID      string
	Self        control.Node // subnets valid iff confirmed
	Peers       []Peer       // every other known node, sorted by name
	Problems    []string     // what somebody should look at; reasons with addresses
	Refused     map[string]uint64
	LastRefused map[string]string // the last one for each reason, in words
	Members     int               // live nodes, this one too
	Withdrawn   uint64            // confirmed claims that this node gave up because the block was another's
}

// A Peer is another node. Immutable.
type Peer struct {
	control.Node // subnets valid iff the node has confirmed them
	NodeID       string
	Endpoint     netip.AddrPort // public IP and gossip port
	TunnelPort   uint16
	State        string    // alive, dead or left
	Routable     bool      // traffic may go there
	LastSeen     time.Time // by this node, with a monotonic reading; zero: never
	Reason       string    // why not routable, or why in spite of its state; else ""

	id nodeID
}

// Peer states.
const (
	Alive = "alive"
	Dead  = "dead"
	Left  = "left"
)

// View returns what Run's last update said, with fresh times. Safe for concurrent use.
func (s *Store) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.view
	v.Peers = slices.Clone(v.Peers)
	for i := range v.Peers {
		if known := s.lives.of[v.Peers[i].id]; known != nil {
			v.Peers[i].LastSeen = known.seen
		}
	}
	return v
}

// look makes the View, and says whether it differs from the one before.
func (s *Store) look(now time.Duration) (View, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := View{
		NodeID: s.id.String(), Self: s.config.Self, Members: 1, Withdrawn: s.claimer.lost,
		Refused: map[string]uint64{}, LastRefused: map[string]string{},
	}
	v.Self.Subnet, v.Self.IPv6Subnet = s.pools.subnets(&record{claims: s.claimer.claims()})
	v.Peers = s.peers()
	for _, p := range v.Peers {
		if p.State == Alive {
			v.Members++
		}
	}
	v.Problems = s.problems(now, v.Members == 1)
	for reason, r := range s.refusals {
		v.Refused[reason], v.LastRefused[reason] = r.count, r.last
	}
	changed := !sameView(v, s.view)
	s.view = v
	return v, changed
}

func sameView(a, b View) bool {
	return a.NodeID == b.NodeID && a.Self == b.Self && a.Members == b.Members && a.Withdrawn == b.Withdrawn &&
		slices.Equal(a.Problems, b.Problems) && maps.Equal(a.Refused, b.Refused) && maps.Equal(a.LastRefused, b.LastRefused) &&
		slices.EqualFunc(a.Peers, b.Peers, func(p, q Peer) bool {
			p.LastSeen, q.LastSeen = time.Time{}, time.Time{}
			return p == q
		})
}

func (s *Store) peers() []Peer {
	var alive []*record
	for _, r := range s.known {
		if r == s.self || s.lives.alive(r) {
			alive = append(alive, r)
		}
	}
	claims := newIndex(holdings(s.pools, maps.Values(s.known)))
	var peers []Peer
	for _, r := range s.known {
		if r != s.self {
			peers = append(peers, s.peer(r, alive, claims))
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.NodeID, b.NodeID))
	})
	return peers
}

func (s *Store) peer(r *record, alive []*record, claims *index) Peer {
	p := Peer{
		Node:   r.node(),
		NodeID: r.id.String(), Endpoint: r.endpoint, TunnelPort: r.tunnelPort, State: Dead, id: r.id,
	}
	p.Subnet, p.IPv6Subnet = s.pools.subnets(r)
	known := s.lives.of[r.id]
	if known != nil {
		p.LastSeen = known.seen
	}
	switch {
	case r.leaving():
		p.State, p.Reason = Left, "it left"
	case s.lives.alive(r), s.lives.again(r):
		p.State, p.Reason = Alive, s.unusable(r, p, claims)
		p.Routable = p.Reason == ""
	case known == nil:
		p.Reason = "not seen alive since this node started"
	case !known.kept || known.epoch != r.epoch:
		p.Reason = "it does not answer"
	default:
		p.Reason = s.unusable(r, p, claims)
		if other := successor(r, alive); other != nil && p.Reason == "" {
			p.Reason = fmt.Sprintf("it does not answer, and %s took its place", other)
		}
		if p.Routable = p.Reason == ""; p.Routable {
			p.Reason = fmt.Sprintf("it does not answer, but neither do %d of %d peers: this node believes itself cut off and keeps its routes", s.lives.lost, s.lives.all)
		}
	}
	return p
}

// unusable says why a node that is there gets no traffic, "" when it does.
func (s *Store) unusable(r *record, p Peer, claims *index) string {
	if c, ok := s.conflicts[r.id]; ok {
		return "refused: " + c.String()
	}
	if !p.HasSubnet() {
		return "it has no subnet yet"
	}
	for _, block := range []netip.Prefix{p.Subnet, p.IPv6Subnet} {
		if !block.IsValid() {
			continue
		}
		if !s.pools.contain(block) {
			return fmt.Sprintf("its subnet %s is not in the network %s", block, s.pools)
		}
		if best := owner(block, claims.overlapping(block)); best.of != r {
			return fmt.Sprintf("its subnet %s is %s's", block, best.of)
		}
	}
	if r.tunnelPort != s.config.TunnelPort {
		return fmt.Sprintf("its tunnel is at UDP port %d, this node's at %d", r.tunnelPort, s.config.TunnelPort)
	}
	return ""
}

// successor returns a live node with r's name or address.
func successor(r *record, alive []*record) *record {
	for _, other := range alive {
		if other.name == r.name || other.endpoint.Addr() == r.endpoint.Addr() {
			return other
		}
	}
	return nil
}

// problems lists what somebody should look at.
func (s *Store) problems(now time.Duration, alone bool) []string {
	var found []string
	if s.claimer.problem != "" {
		found = append(found, s.claimer.problem)
	}
	if s.diskErr != nil {
		found = append(found, s.diskErr.Error())
	}
	if s.lives.cutOff {
		found = append(found, fmt.Sprintf("%d of %d peers fell silent together: this node believes itself cut off and keeps their routes", s.lives.lost, s.lives.all))
	}
	for _, at := range slices.SortedFunc(maps.Keys(s.joinProblems), netip.AddrPort.Compare) {
		if p := s.joinProblems[at]; p.refused || alone {
			found = append(found, p.words)
		}
	}
	for _, seed := range slices.Sorted(maps.Keys(s.seedProblems)) {
		if alone {
			found = append(found, s.seedProblems[seed])
		}
	}
	return append(found, s.refusalProblems(now)...)
}

// refusalProblems lists who is refused now, and what was within the last minute.
func (s *Store) refusalProblems(now time.Duration) (found []string) {
	for id, c := range s.conflicts {
		if id != s.id { // the claimer's problem
			found = append(found, fmt.Sprintf("refused (%s): %s", c.reason, c))
		}
	}
	for reason, r := range s.refusals {
		standing := reason == refusedName || reason == refusedEndpoint && len(s.conflicts) > 0
		if now-r.at < refusalShown && !standing && !strings.HasPrefix(r.last, "join ") {
			found = append(found, fmt.Sprintf("refused (%s): %s", reason, r.last))
		}
	}
	slices.Sort(found)
	return found
}
