package control

import (
	"context"
	"net/netip"
	"time"
)

// A Store says which nodes there are, and gets this node its subnet. Traffic never depends on it: what it said last is forwarded while
// it cannot be reached.
type Store interface {
	// Run works until ctx ends. It calls update, one call at a time, with everything that it knows each time that this has changed; nobody has to
	// have seen the views before. It is called once.
	Run(ctx context.Context, update func(View)) error
	// View is what update got last, with fresh times. It is safe beside Run.
	View() View
}

// A View is everything that a store knows of the network. It is not changed after it was handed over.
type View struct {
	NodeID      string // of this node; empty where nodes have none
	Self        Node   // subnets valid iff they are this node's
	Peers       []Peer // every other known node, sorted by name
	Problems    []string
	Refused     map[string]uint64 // what was not believed, by reason
	LastRefused map[string]string // the last one for each reason, in words
	Members     int               // live nodes, this one too
	Withdrawn   uint64            // subnets that this node gave up because they were another's
	Outdated    uint64            // records older than what is known of their node: not looked at, forged or not
}

// A Peer is another node as a store knows it. Immutable.
type Peer struct {
	Node       // subnets valid iff they are the node's
	NodeID     string
	Endpoint   netip.AddrPort // of its gossip; zero without
	TunnelPort uint16         // 0 where the store does not say
	State      string
	Routable   bool      // traffic may go there
	LastSeen   time.Time // by this node, with a monotonic reading; zero: never, or the store does not know
	Reason     string    // why not routable, or why in spite of its state; else ""
}
