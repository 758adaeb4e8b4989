package main

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A network merges what the stores know into one State, compiles it and hands it on. Stores call setFile and setStore with
// everything they know each time; nothing depends on the order. Its methods are safe for concurrent use.
type network struct {
	base    control.State // this node, without peers; the subnet is valid iff it was given
	publish func(*tables.Set)
	settle  func(control.State) // gets a State with Natives
	live    func() control.View // the store's view now; nil without a store beside the file
	source  string              // the store's name
	paths   func(outer ...netip.Addr) []pathReport
	// remember takes what the next daemon begins with, should this one be killed; nil for nobody.
	remember func(json.RawMessage)

	mu         sync.Mutex // guards the rest
	file       control.View
	store      control.View // of the store beside the file
	generation uint64
	state      control.State
	ignored    []control.Ignored
	problem    string  // why the tables could not be compiled
	inherited  *legacy // nil once the stores have said enough themselves
}

// setFile takes what the peers file says.
func (n *network) setFile(v control.View) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, problem := range v.Problems {
		slog.Error("peers file is not usable; its peers stay as they are", "error", problem)
	}
	n.file = v
	n.refresh()
}

// setStore takes the store's view.
func (n *network) setStore(v control.View) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.store = v
	if l := n.inherited; l != nil && v.Self.HasSubnet() && (v.Self.Subnet != l.Subnet || v.Self.IPv6Subnet != l.IPv6Subnet) {
		n.inherited = nil
	}
	n.refresh()
}

// setPathMTU takes the measured MTUs of the paths to peers, by outer address. The map is not changed after.
func (n *network) setPathMTU(measured map[netip.Addr]int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.base.PathMTU = measured
	n.refresh()
}

// setOnLink takes the outer addresses of peers that are neighbours on the underlay's link. The map is not changed after.
func (n *network) setOnLink(macs map[netip.Addr]tables.MAC) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.base.OnLink = macs
	n.refresh()
}

// setPods takes this node's pods to which the engine has ports. The list is not changed after.
func (n *network) setPods(pods []*tables.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.base.Pods = pods
	n.refresh()
}

// reserved lists the subnets that static peers hold: gossip does not claim them.
func (n *network) reserved() []netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	var subnets []netip.Prefix
	for _, p := range n.file.Peers {
		for _, subnet := range []netip.Prefix{p.Subnet, p.IPv6Subnet} {
			if subnet.IsValid() {
				subnets = append(subnets, subnet)
			}
		}
	}
	return subnets
}

// refresh compiles what is known now. n.mu is held.
func (n *network) refresh() {
	next := n.merge()
	if n.generation > 0 && next.Equal(n.state) {
		return
	}
	n.generation++
	n.state, n.ignored, n.problem = next, nil, ""
	n.bequeath()
	if !next.Self.HasSubnet() {
		n.publish(nil) // fail closed
		n.settle(next)
		return
	}
	set, ignored, err := control.Compile(n.generation, next)
	if err != nil {
		n.problem = err.Error()
		slog.Error("tables not compiled; the old ones stay", "error", err)
		return
	}
	n.ignored = ignored
	for _, i := range ignored {
		slog.Warn("peer ignored", "peer", i.Peer.Name, "reason", i.Reason, "routedInTheOtherFamily", i.Routed)
	}
	n.publish(set)
	next.Natives = control.Natives(set, next.OnLink)
	n.settle(next)
	slog.Info("tables published", "generation", n.generation, "subnet", next.Self.Subnet, "peers", set.Peers())
}

// merge puts the stores' nodes together, the file's first. A list for all nodes may have this node in it.
func (n *network) merge() control.State {
	s := n.base
	if !s.Self.HasSubnet() {
		s.Self.Subnet, s.Self.IPv6Subnet = n.store.Self.Subnet, n.store.Self.IPv6Subnet
	}
	if n.inherited != nil && !s.Self.HasSubnet() {
		s.Self.Subnet, s.Self.IPv6Subnet = n.inherited.Subnet, n.inherited.IPv6Subnet
	}
	s.Peers = nil
	for _, p := range n.file.Peers {
		if !p.Is(s.Self) {
			s.Peers = append(s.Peers, p.Node)
		}
	}
	for _, p := range n.store.Peers {
		if p.Routable && p.HasSubnet() {
			s.Peers = append(s.Peers, p.Node)
		}
	}
	s.Peers = append(s.Peers, n.unheard()...)
	return s
}

// A peerReport is one other node, as tulle status and tulle peers show it.
type peerReport struct {
	Name            string   `json:"name"`
	PublicIP        string   `json:"publicIP"`           // empty without IPv4
	Endpoint        string   `json:"endpoint,omitempty"` // of its gossip
	Subnet          string   `json:"subnet"`
	PublicIPv6      string   `json:"publicIPv6,omitempty"`
	IPv6Subnet      string   `json:"ipv6Subnet,omitempty"`
	Backend         string   `json:"backend"`
	VTEPMAC         string   `json:"vtepMAC,omitempty"`
	VTEPMACv6       string   `json:"vtepMACv6,omitempty"` // where it is another than vtepMAC
	Source          string   `json:"source"`              // gossip, etcd or file
	State           string   `json:"state"`
	Routable        bool     `json:"routable"`                  // its subnet is routed to it
	Native          bool     `json:"native,omitempty"`          // without encapsulation
	LastSeenSeconds *float64 `json:"lastSeenSeconds,omitempty"` // ago; only gossip knows
	Reason          string   `json:"reason,omitempty"`          // what is wrong with it

	Paths []pathReport `json:"paths,omitempty"` // to each of its outer addresses that traffic goes to
}

// peers reports every node that a store knows.
func (n *network) peers() []peerReport {
	var heard []control.Peer
	if n.live != nil {
		heard = n.live().Peers // not under n.mu: the store asks for reserved under its own lock
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	reasons, unrouted := map[control.Node]string{}, map[control.Node]bool{}
	for _, i := range n.ignored {
		reasons[i.Peer], unrouted[i.Peer] = i.Reason, !i.Routed
	}
	routed := func(p control.Node) bool { return !unrouted[p] && slices.Contains(n.state.Peers, p) }
	peers := []peerReport{}
	for _, p := range n.file.Peers {
		if p.Is(n.state.Self) {
			continue
		}
		r := n.reportNode(p.Node)
		r.Source, r.State, r.Routable, r.Reason = storeFile, p.State, routed(p.Node), reasons[p.Node]
		peers = append(peers, r)
	}
	for _, p := range heard {
		r := n.reportNode(p.Node)
		r.Source, r.State, r.Routable, r.Reason = n.source, p.State, p.Routable && routed(p.Node), p.Reason
		if r.Reason == "" {
			r.Reason = reasons[p.Node]
		}
		r.Endpoint = text(p.Endpoint)
		if !p.LastSeen.IsZero() {
			seen := secondsSince(p.LastSeen)
			r.LastSeenSeconds = &seen
		}
		peers = append(peers, r)
	}
	return peers
}

func (n *network) onLink(a netip.Addr) bool {
	_, ok := n.state.OnLink[a]
	return ok
}

func (n *network) reportNode(p control.Node) peerReport {
	r := peerReport{
		Name: p.Name, Backend: cmp.Or(p.BackendType, netconf.TypeUDP), // flannel's udp leases carry no type
		PublicIP: text(p.PublicIP), Subnet: text(p.Subnet), PublicIPv6: text(p.PublicIPv6), IPv6Subnet: text(p.IPv6Subnet),
		Paths: n.paths(p.PublicIP, p.PublicIPv6), Native: n.state.Direct && (n.onLink(p.PublicIP) || n.onLink(p.PublicIPv6)),
	}
	if p.BackendType != netconf.TypeVXLAN {
		return r
	}
	if p.PublicIP.IsValid() {
		r.VTEPMAC = p.VTEP.String()
	}
	if p.PublicIPv6.IsValid() && p.VTEPv6.String() != r.VTEPMAC {
		r.VTEPMACv6 = p.VTEPv6.String()
	}
	return r
}

// text returns an address or a prefix as it is shown, "" for the zero value.
func text(v interface {
	IsValid() bool
	String() string
}) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

// report returns this node's state, its stores' problems and what the store refused.
func (n *network) report() (s control.State, problems []string, refused map[string]uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	problems = slices.Concat([]string{}, n.store.Problems, n.file.Problems)
	if n.problem != "" {
		problems = append(problems, n.problem)
	}
	return n.state, problems, n.store.Refused
}
