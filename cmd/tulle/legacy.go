package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/gossip"
)

// inheritFor is how long a daemon forwards to nodes that only the daemon before has heard of: the time to find them again.
const inheritFor = 10 * time.Second

// A legacy is what a daemon that is killed leaves of what gossip told it, so that the next one forwards at once. What comes of files is not
// in it: the next one reads them itself. The measured path MTUs are not either: they are measured again.
type legacy struct {
	Fit        string         `json:"fit"` // the configuration that it is of, in words
	Subnet     netip.Prefix   `json:"subnet"`
	IPv6Subnet netip.Prefix   `json:"ipv6Subnet"`
	Peers      []control.Node `json:"peers"`
}

// fit is what a legacy depends on.
func (n *network) fit() string {
	b := n.base
	return fmt.Sprintf("node %s at %s with VTEP %s, networks %s, %s VNI %d port %d, MTU %d of %v", b.Self.Name, both(text(b.Self.PublicIP), text(b.Self.PublicIPv6)), b.Self.VTEP,
		both(text(b.Network), text(b.IPv6Network)), b.Self.BackendType, b.Self.VNI, b.Port, b.MTU, b.Limits)
}

// bequeath leaves what is known now. n.mu is held.
func (n *network) bequeath() {
	if n.remember == nil {
		return
	}
	l := legacy{Fit: n.fit(), Subnet: n.state.Self.Subnet, IPv6Subnet: n.state.Self.IPv6Subnet}
	for _, p := range n.state.Peers {
		if !slices.ContainsFunc(n.file.Peers, func(q control.Peer) bool { return q.Node == p }) {
			l.Peers = append(l.Peers, p)
		}
	}
	data, err := json.Marshal(l)
	if err != nil {
		slog.Error("the state is not kept", "error", err)
		return
	}
	n.remember(data)
}

// inherit begins with what the daemon before left. given are the subnets that this one has to have, if any.
func (n *network) inherit(data json.RawMessage, given, given6 netip.Prefix) error {
	var l legacy
	if err := json.Unmarshal(data, &l); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if fit := n.fit(); l.Fit != fit {
		return fmt.Errorf("held: %s; configured: %s", l.Fit, fit)
	}
	if given.IsValid() && given != l.Subnet || given6.IsValid() && given6 != l.IPv6Subnet {
		return fmt.Errorf("held: subnet %s; given: %s", both(text(l.Subnet), text(l.IPv6Subnet)), both(text(given), text(given6)))
	}
	n.inherited = &l
	return nil
}

// forget ends the inheritance in time: by then the stores know everybody who is still there.
func (n *network) forget(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(inheritFor):
	}
	n.disinherit()
	<-ctx.Done()
	return nil
}

func (n *network) disinherit() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inherited != nil {
		n.inherited = nil
		n.refresh()
	}
}

// unheard lists the inherited peers that no store has said anything of, good or bad. n.mu is held.
func (n *network) unheard() (peers []control.Node) {
	if n.inherited == nil {
		return nil
	}
	same := func(a, b control.Node) bool { return a.Name == b.Name || a.Underlay() == b.Underlay() }
next:
	for _, p := range n.inherited.Peers {
		for _, q := range n.store.Peers {
			if same(p, q.Node) && (q.Routable || q.State == gossip.Left || !q.LastSeen.IsZero()) {
				continue next // but for one that gossip knows of and has not seen yet
			}
		}
		if !slices.ContainsFunc(n.file.Peers, func(q control.Peer) bool { return same(p, q.Node) }) {
			peers = append(peers, p)
		}
	}
	return peers
}
