// Package pin owns what holds pods behind a link of their own to their MAC and addresses: tables named tulle-pods of the families ip,
// ip6 and arp, through which everything from a pod passes before the kernel routes, tracks or learns from it.
//
// A pod is an element of two sets of each table, so that the rules are the same however many pods there are, and a pod's link that is
// in no set sends nothing. What is dropped is counted by reason, in packets as the kernel has them: a super-packet is one. The package
// speaks nftables over netlink, and knows nothing of routes or of where pods come from.
package pin

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "tulle-pods"

// A Pod is what comes in on a link and is let through.
type Pod struct {
	Link  string // one of attach.LinkName
	Addrs []netip.Addr
	MAC   net.HardwareAddr
}

// A Reason is why something that a pod sent was dropped.
type Reason string

// The reasons.
const (
	MAC    Reason = "drop_pod_mac"    // the frame's source is not the pod's MAC
	Source Reason = "drop_pod_source" // the IP source is none of the pod's addresses
	ARP    Reason = "drop_pod_arp"    // the ARP sender is not the pod's MAC with an address of the pod's
	ND     Reason = "drop_pod_nd"     // a router advertisement, a redirect, or a neighbour advertisement for another's address
	DHCP   Reason = "drop_pod_dhcp"   // from a DHCP server's port
)

// Reasons lists all of them.
var Reasons = []Reason{MAC, Source, ARP, ND, DHCP}

// Apply makes the tables hold these pods and no others, and says whether anything had to be changed. Without pods there are no tables.
func Apply(pods []Pod) (changed bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		made, err := t.apply(conn, pods)
		if err != nil {
			return changed, fmt.Errorf("nftables: table %s %s: %w", t.name, tableName, err)
		}
		changed = changed || made
	}
	if !changed {
		return false, nil
	}
	if err := conn.Flush(); err != nil {
		return false, fmt.Errorf("nftables: tables %s: %w", tableName, err)
	}
	return true, nil
}

// Change adds pods and takes others away without looking at the rest. It fails when the tables are not what Apply left.
func Change(add, remove []Pod) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		for _, s := range t.sets() {
			if err := errors.Join(conn.SetDeleteElements(s.set, s.elements(remove)), conn.SetAddElements(s.set, s.elements(add))); err != nil {
				return fmt.Errorf("nftables: set %s: %w", s.set.Name, err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: tables %s: %w", tableName, err)
	}
	return nil
}

// Drops returns how many packets were dropped for each reason, since the tables were made.
func Drops() (map[Reason]uint64, error) {
	drops := map[Reason]uint64{}
	for _, r := range Reasons {
		drops[r] = 0
	}
	conn, err := nftables.New()
	if err != nil {
		return drops, fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		objects, err := conn.GetNamedObjects(t.own())
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return drops, fmt.Errorf("nftables: counters of table %s %s: %w", t.name, tableName, err)
		}
		for _, o := range objects {
			if o, ok := o.(*nftables.NamedObj); ok {
				if c, ok := o.Obj.(*expr.Counter); ok {
					drops[Reason(o.Name)] += c.Packets
				}
			}
		}
	}
	return drops, nil
}

// apply puts what has to change of a table into the transaction.
func (t *table) apply(conn *nftables.Conn, pods []Pod) (changed bool, err error) {
	chains, err := conn.ListChainsOfTableFamily(t.family)
	if err != nil {
		return false, err
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != tableName })
	if len(pods) == 0 {
		if len(chains) > 0 {
			conn.DelTable(t.own())
		}
		return len(chains) > 0, nil
	}
	same, err := t.isThere(conn, chains)
	if err != nil {
		return false, err
	}
	if !same {
		return true, t.replace(conn, pods)
	}
	for _, s := range t.sets() {
		made, err := s.apply(conn, pods)
		if err != nil {
			return changed, err
		}
		changed = changed || made
	}
	return changed, nil
}

// apply puts the difference between a set and the pods into the transaction.
func (s podSet) apply(conn *nftables.Conn, pods []Pod) (changed bool, err error) {
	have, err := conn.GetSetElements(s.set)
	if err != nil {
		return false, fmt.Errorf("set %s: %w", s.set.Name, err)
	}
	want := s.elements(pods)
	missing := func(all []nftables.SetElement, among []nftables.SetElement) (left []nftables.SetElement) {
		keys := map[string]bool{}
		for _, e := range among {
			keys[string(e.Key)] = true
		}
		for _, e := range all {
			if !keys[string(e.Key)] {
				left = append(left, e)
			}
		}
		return left
	}
	gone, added := missing(have, want), missing(want, have)
	if err := errors.Join(conn.SetDeleteElements(s.set, gone), conn.SetAddElements(s.set, added)); err != nil {
		return false, fmt.Errorf("set %s: %w", s.set.Name, err)
	}
	return len(gone)+len(added) > 0, nil
}

// isThere says whether the table's chains are those that replace makes. A rule is known by its comment.
func (t *table) isThere(conn *nftables.Conn, chains []*nftables.Chain) (bool, error) {
	want := t.chains()
	if len(chains) != len(want) {
		return false, nil
	}
	for _, w := range want {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool { return c.Name == w.chain.Name })
		if i < 0 || (chains[i].Hooknum == nil) != (w.chain.Hooknum == nil) {
			return false, nil
		}
		rules, err := conn.GetRules(t.own(), chains[i])
		if err != nil {
			return false, err
		}
		if !slices.EqualFunc(rules, w.rules, func(r *nftables.Rule, w []expr.Any) bool { return bytes.Equal(r.UserData, comment(w)) }) {
			return false, nil
		}
	}
	return true, nil
}

// replace puts the making of the table into the transaction.
func (t *table) replace(conn *nftables.Conn, pods []Pod) error {
	own := conn.AddTable(t.own()) // so that it can be deleted
	conn.DelTable(own)
	conn.AddTable(own)
	for _, s := range t.sets() {
		if err := conn.AddSet(s.set, s.elements(pods)); err != nil {
			return err
		}
	}
	for _, r := range t.reasons {
		conn.AddObj(&nftables.NamedObj{Table: own, Name: string(r), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for _, c := range t.chains() {
		conn.AddChain(c.chain)
	}
	for _, c := range t.chains() {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: own, Chain: c.chain, Exprs: r, UserData: comment(r)})
		}
	}
	return nil
}
