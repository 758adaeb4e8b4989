package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/gossip"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// heir is a node's network before any store has spoken, in the configuration that it had before it was killed.
func heir(published **tables.Set, left *json.RawMessage) *network {
	self := parseNode("192.0.2.1", "", "", "")
	self.Name, self.VTEP = "n1", tables.MAC{2, 5: 1}
	return &network{
		base:    control.State{Self: self, Network: netip.MustParsePrefix("10.244.0.0/16"), Port: 8472, MTU: 1450},
		publish: func(s *tables.Set) { *published = s }, settle: func(control.State) {}, remember: func(l json.RawMessage) { *left = l },
	}
}

func named(name, public, subnet string) control.Node {
	n := parseNode(public, subnet, "", "")
	n.Name, n.VTEP = name, tables.MAC{2, 4: public[len(public)-1], 5: 9}
	return n
}

// TestLegacy lets a daemon leave what it knows and another begin with it: it forwards to all nodes before any store has spoken, to none
// that a store calls dead, and after a while to none that no store knows.
func TestLegacy(t *testing.T) {
	var set *tables.Set
	var left json.RawMessage
	alive, dead, silent, listed := named("n2", "192.0.2.2", "10.244.2.0/24"), named("n3", "192.0.2.3", "10.244.3.0/24"), named("n4", "192.0.2.4", "10.244.4.0/24"), named("n5", "192.0.2.5", "10.244.5.0/24")
	first := heir(&set, &left)
	first.setFile(control.NewFileStore(first.base.Self, "", []control.Node{listed}).View())
	self := first.base.Self
	self.Subnet = netip.MustParsePrefix("10.244.1.0/24")
	peer := func(n control.Node, routable bool) control.Peer {
		return control.Peer{Node: n, Routable: routable, LastSeen: time.Now()}
	}
	first.setStore(control.View{Self: self, Peers: []control.Peer{peer(alive, true), peer(dead, true), peer(silent, true)}})
	if set.Peers() != 4 {
		t.Fatalf("%d peers", set.Peers())
	}
	demand := func(n *network, what string, want ...control.Node) {
		t.Helper()
		if set == nil || !slices.Equal(n.state.Peers, want) || set.Peers() != len(want) || n.state.Self != self {
			t.Errorf("%s: %s", what, cmp.Diff(want, n.state.Peers, cmp.Comparer(func(a, b control.Node) bool { return a == b })))
		}
	}
	begin := func() *network {
		n, was := heir(&set, &left), left
		set = nil
		if err := n.inherit(was, netip.Prefix{}, netip.Prefix{}); err != nil {
			t.Fatal(err)
		}
		n.setFile(control.View{})
		return n
	}
	// What came of a file is not left: the file is read again, and says nothing of n5 now.
	second := begin()
	demand(second, "before any store", alive, dead, silent)
	second = begin() // killed at once
	demand(second, "before any store, again", alive, dead, silent)
	second.setStore(control.View{Self: self})
	demand(second, "gossip knows nobody yet", alive, dead, silent)
	second.setStore(control.View{Self: self, Peers: []control.Peer{{Node: silent, State: gossip.Dead}}})
	demand(second, "gossip knows of one and has not seen it", alive, dead, silent)
	second.setStore(control.View{Self: self, Peers: []control.Peer{peer(alive, true), peer(dead, false)}})
	demand(second, "gossip knows two", alive, silent)
	second.disinherit()
	demand(second, "after a while", alive)

	third := begin()
	demand(third, "what the second left", alive)
	other := self
	other.Subnet = netip.MustParsePrefix("10.244.9.0/24")
	third.setStore(control.View{Self: other})
	if third.state.Self != other || len(third.state.Peers) != 0 {
		t.Errorf("with another subnet: %+v", third.state)
	}
}

// TestLegacyRefused is what another configuration left, or something else.
func TestLegacyRefused(t *testing.T) {
	var set *tables.Set
	var left json.RawMessage
	first := heir(&set, &left)
	self := first.base.Self
	self.Subnet = netip.MustParsePrefix("10.244.1.0/24")
	first.setStore(control.View{Self: self})
	for what, change := range map[string]func(*network){
		"n9":        func(n *network) { n.base.Self.Name = "n9" },
		"192.0.2.9": func(n *network) { n.base.Self.PublicIP = netip.MustParseAddr("192.0.2.9") },
		"VNI 9":     func(n *network) { n.base.Self.VNI = 9 },
		"10.9.0.0":  func(n *network) { n.base.Network = netip.MustParsePrefix("10.9.0.0/16") },
		"port 9":    func(n *network) { n.base.Port = 9 },
		"MTU 9":     func(n *network) { n.base.MTU = 9 },
		"[9 0]":     func(n *network) { n.base.Limits[0] = 9 },
	} {
		n := heir(&set, &left)
		change(n)
		if err := n.inherit(left, netip.Prefix{}, netip.Prefix{}); err == nil || !strings.Contains(err.Error(), what) || n.inherited != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	n := heir(&set, &left)
	if err := n.inherit(left, netip.MustParsePrefix("10.244.7.0/24"), netip.Prefix{}); err == nil || n.inherited != nil {
		t.Errorf("another subnet is given: %v", err)
	}
	if err := n.inherit(json.RawMessage(`[1]`), netip.Prefix{}, netip.Prefix{}); err == nil || n.inherited != nil {
		t.Errorf("no state: %v", err)
	}
	if err := n.inherit(left, self.Subnet, netip.Prefix{}); err != nil {
		t.Error(err)
	}
}
