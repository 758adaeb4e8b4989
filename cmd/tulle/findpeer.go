package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// findPeer looks for a node with a route by its name, or by an address of its inside or outside the encapsulation. An error comes
// with its HTTP status.
func (d *daemon) findPeer(node string, family int) (*tables.Peer, int, error) {
	if node == d.config.self.Name {
		return nil, http.StatusNotFound, fmt.Errorf("%s is this node itself", node)
	}
	set := d.forwarder.tables()
	if peer := peerCalled(set, node, family); peer != nil {
		return peer, http.StatusOK, nil
	}
	var names []string
	for _, p := range d.network.peers() {
		if p.Name == node {
			return nil, http.StatusConflict, fmt.Errorf("%s has no route%s: its state is %s %s", node, map[int]string{4: " in IPv4", 6: " in IPv6"}[family], p.State, p.Reason)
		}
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return nil, http.StatusNotFound, fmt.Errorf("%s: no such node is known here (have: %s)", node, strings.Join(slices.Compact(names), ", "))
}

// peerCalled is the node in the given family, or IPv4's rather than IPv6's; nil when there is none. set may be nil.
func peerCalled(set *tables.Set, node string, family int) (found *tables.Peer) {
	if set == nil {
		return nil
	}
	if a, err := netip.ParseAddr(node); err == nil {
		peer := set.PeerAt(a)
		if peer == nil {
			peer = set.Owner(a)
		}
		if peer != nil && isFamily(peer, family) {
			return peer
		}
		return nil
	}
	for peer := range set.AllPeers() {
		if peer.Name == node && isFamily(peer, family) && (found == nil || peer.Sources[0].Addr().Is4()) {
			found = peer
		}
	}
	return found
}

func isFamily(p *tables.Peer, family int) bool {
	return family == 0 || p.Sources[0].Addr().Is4() == (family == 4)
}
