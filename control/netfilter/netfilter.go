// Package netfilter owns what the node's netfilter does with traffic between pods and the world outside of the cluster network, and
// which of the node's ports lead to pods: a table named tulle of each family, and, where somebody else's FORWARD chain drops by
// policy, two rules at its top.
//
// It speaks nftables over netlink (nf_tables(7) of the kernel, no program is run), knows no peers, and touches no table but its own, of
// another's chain no rule but its own, and of the kernel's flows only those of ports that came or went.
package netfilter

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A Mode says what becomes of traffic between pods and addresses outside of the cluster network.
type Mode string

// The modes. In all of them pods reach each other, and nodes reach pods, with addresses of the cluster network.
const (
	Unset    Mode = ""         // as Flat, but a CNI plugin that reads subnet.env is to masquerade by itself
	Isolated Mode = "isolated" // it is dropped, that of nodes' other addresses too; the node still reaches its pods, and they it
	Flat     Mode = "flat"     // it keeps its addresses: whoever is outside has routes to pods
	Island   Mode = "island"   // it gets the node's address: nobody outside knows pods
)

// Modes are those that people choose from.
var Modes = []Mode{Isolated, Flat, Island}

// tableName is that of both families' tables.
const tableName = "tulle"

// A Config is what the node's netfilter has to do. Without a network and a subnet of a family nothing is done in it.
type Config struct {
	Mode     Mode
	TAP      string
	Networks [2]netip.Prefix // of the cluster, IPv4 and IPv6
	Subnets  [2]netip.Prefix // of the node
	Ports    []Port          // not in mode Isolated
	Underlay string          // the link over which the nodes reach each other; "" leaves what comes by it alone
	Natives  []Native        // who may send over it without encapsulation
}

// Apply makes it so, whatever it was before, and says whether anything had to be changed. Each family changes at once or not at all.
func (c *Config) Apply() (changed bool, err error) {
	for _, t := range c.tables() {
		made, err := t.apply()
		changed = changed || made
		if err != nil {
			return changed, fmt.Errorf("nftables: table %s %s: %w", t.family, tableName, err)
		}
	}
	return changed, nil
}

// Remove takes away all that Apply made, also by an earlier process. It is no error when it is gone already.
func Remove() error {
	_, err := new(Config).Apply()
	return err
}

// tables returns what has to be there of each family.
func (c *Config) tables() []table {
	four, six := table{family: ip4}, table{family: ip6}
	for i, t := range []*table{&four, &six} {
		if net := c.Networks[i]; net.IsValid() && c.Subnets[i].IsValid() {
			t.chains, t.forward = c.chains(t.family, net.Masked(), c.Subnets[i].Masked())
			if len(t.chains) == 0 {
				t.untracked = c.untracked(t.family, net.Masked())
			}
			t.chains = append(c.natively(t.family, net.Masked()), t.chains...)
		}
	}
	return []table{four, six}
}

// chains returns those of a family's own table, and the rules for other tables' FORWARD chains.
func (c *Config) chains(f family, network, own netip.Prefix) (chains []chain, forward []rule) {
	within := rule{f.src(network), f.dst(network)}
	forward = []rule{{f.src(network), accept}, {f.dst(network), accept}}
	if c.Mode == Isolated {
		return []chain{{name: "forward", hook: nftables.ChainHookForward, kind: nftables.ChainTypeFilter, priority: nftables.ChainPriorityFilter, rules: []rule{
			append(within, accept), {f.src(network), drop}, {f.dst(network), drop}}}}, []rule{append(within, accept)}
	}
	chains, leaving := c.mapped(f, network, own)
	if c.Mode == Island {
		leaving = append(leaving, rule{f.src(network), f.notDst(network), f.notDst(f.multicast()), masquerade},
			rule{oif(c.TAP), f.dst(network), f.notDst(own), notOwnSource, masquerade})
	}
	if len(leaving) == 0 {
		return nil, forward
	}
	return append(chains, c.untracked(f, network),
		chain{name: "postrouting", hook: nftables.ChainHookPostrouting, kind: nftables.ChainTypeNAT, priority: nftables.ChainPriorityNATSource, rules: leaving}), forward
}

// untracked keeps the kernel from tracking what passes it twice. Translating makes it track flows, and a packet between pods passes it from
// the pod to the TAP and from the TAP on, with one tuple that conntrack takes for one flow. What goes from the network to the network is
// therefore not tracked, unless it is for the node itself, and nothing that the engine has handed over for a pod. What comes from outside
// for a remote pod takes the node's address in the network, for peers believe no other source.
func (c *Config) untracked(f family, network netip.Prefix) chain {
	return chain{name: "prerouting", hook: nftables.ChainHookPrerouting, kind: nftables.ChainTypeFilter, priority: nftables.ChainPriorityRaw, rules: []rule{
		{iif(c.TAP), f.dst(network), notLocal, notrack}, {f.src(network), f.dst(network), notLocal, notrack}}}
}

// Probe says why this kernel cannot do what Apply wants, nil when it can.
func Probe() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if _, err := c.ListTables(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("nftables: %w: this kernel has none (CONFIG_NF_TABLES)", err)
	}
	return nil
}
