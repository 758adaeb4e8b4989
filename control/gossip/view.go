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
	"github.com/tulle-net/tulle/control/claim"
)

// A View is what the store knows, the reasons with addresses.
type View = control.View

// A Peer is another node: its subnets are valid iff it has confirmed them, its endpoint is its public IP and gossip port.
type Peer = control.Peer

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
	v.Outdated = s.outdated
	v.Peers = slices.Clone(v.Peers)
	seen := make(map[string]time.Time, len(s.lives.of))
	for id, life := range s.lives.of {
		seen[id.String()] = life.seen
	}
	for i := range v.Peers {
		if at, ok := seen[v.Peers[i].NodeID]; ok {
			v.Peers[i].LastSeen = at
		}
	}
	return v
}

// look makes the View, and says whether it differs from the one before.
func (s *Store) look(now time.Duration) (View, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := View{
		NodeID: s.id.String(), Self: s.config.Self, Members: 1, Withdrawn: s.claimer.Lost,
		Refused: map[string]uint64{}, LastRefused: map[string]string{},
	}
	v.Self.Subnet, v.Self.IPv6Subnet = s.pools.Subnets(&claim.Record{Claims: s.claimer.Claims()})
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
	records := make([]*claim.Record, 0, len(s.known))
	alive := make([]*claim.Record, 0, len(s.known))
	for _, r := range s.known {
		if r == s.self || s.lives.alive(r) {
			alive = append(alive, r)
		}
		if r != s.self {
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b *claim.Record) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.ID.Compare(b.ID)) })
	claims := claim.NewIndex(s.machine.Holdings(maps.Values(s.known)))
	peers := make([]Peer, 0, len(records))
	for _, r := range records {
		peers = append(peers, s.peer(r, alive, claims))
	}
	return peers
}

func (s *Store) peer(r *claim.Record, alive []*claim.Record, claims *claim.Index) Peer {
	p := Peer{
		Node:   nodeOf(r),
		NodeID: s.nameOf(r), Endpoint: r.Endpoint, TunnelPort: r.TunnelPort, State: Dead,
	}
	p.Subnet, p.IPv6Subnet = s.pools.Subnets(r)
	known := s.lives.of[r.ID]
	if known != nil {
		p.LastSeen = known.seen
	}
	switch {
	case r.Leaving():
		p.State, p.Reason = Left, "it left"
	case s.lives.alive(r), s.lives.again(r):
		p.State, p.Reason = Alive, s.unusable(r, p, claims)
		p.Routable = p.Reason == ""
	case known == nil:
		p.Reason = "not seen alive since this node started"
	case !known.kept || known.epoch != r.Epoch:
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

// nameOf returns the text of the record's ID, which a look needs for every node.
func (s *Store) nameOf(r *claim.Record) string {
	if l := s.lives.of[r.ID]; l != nil {
		if l.id == "" {
			l.id = r.ID.String()
		}
		return l.id
	}
	return r.ID.String()
}

// unusable says why a node that is there gets no traffic, "" when it does.
func (s *Store) unusable(r *claim.Record, p Peer, claims *claim.Index) string {
	if c, ok := s.conflicts[r.ID]; ok {
		return "refused: " + c.String()
	}
	if !p.HasSubnet() {
		return "it has no subnet yet"
	}
	for _, block := range []netip.Prefix{p.Subnet, p.IPv6Subnet} {
		if !block.IsValid() {
			continue
		}
		if !s.pools.Contain(block) {
			return fmt.Sprintf("its subnet %s is not in the network %s", block, s.pools)
		}
		if best := claim.Owner(block, claims.Overlapping(block)); best.Of == nil {
			return fmt.Sprintf("its subnet %s was taken away from it", block)
		} else if best.Of != r {
			return fmt.Sprintf("its subnet %s is %s's", block, best.Of)
		}
	}
	if r.TunnelPort != s.config.TunnelPort {
		return fmt.Sprintf("its tunnel is at UDP port %d, this node's at %d", r.TunnelPort, s.config.TunnelPort)
	}
	return ""
}

// successor returns a live node with r's name or address.
func successor(r *claim.Record, alive []*claim.Record) *claim.Record {
	for _, other := range alive {
		if other.Name == r.Name || other.Endpoint.Addr() == r.Endpoint.Addr() {
			return other
		}
	}
	return nil
}

// problems lists what somebody should look at.
func (s *Store) problems(now time.Duration, alone bool) []string {
	var found []string
	if s.claimer.Problem != "" {
		found = append(found, s.claimer.Problem)
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

// nodeOf returns what the record says of its node, without subnets.
func nodeOf(r *claim.Record) control.Node {
	n := control.Node{Name: r.Name, BackendType: r.Backend, VNI: r.VNI}
	addressOf(&n, r.Endpoint.Addr(), r)
	for _, a := range r.Addrs {
		addressOf(&n, a, r)
	}
	return n
}

// addressOf takes an address of the node, the first of each family.
func addressOf(n *control.Node, a netip.Addr, r *claim.Record) {
	switch {
	case a.Is4() && !n.PublicIP.IsValid():
		n.PublicIP, n.VTEP = a, r.VTEP
	case a.Is6() && !n.PublicIPv6.IsValid():
		n.PublicIPv6, n.VTEPv6 = a, r.VTEP
	}
}
