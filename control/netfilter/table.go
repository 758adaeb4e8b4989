package netfilter

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A chain is one of the own table, with its rules.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	kind     nftables.ChainType
	priority *nftables.ChainPriority
	rules    []rule
}

// A table is what has to be there of a family.
type table struct {
	family  family
	chains  []chain
	forward []rule // at the top of each foreign chain that drops what it forwards
}

// apply compares and, if anything differs, makes all anew in one transaction.
func (t *table) apply() (changed bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, err
	}
	same, err := t.isThere(conn)
	if err != nil {
		return false, err
	}
	if !same {
		t.replace(conn)
	}
	foreign, err := t.applyForward(conn)
	if err != nil || same && !foreign {
		return false, err
	}
	return true, conn.Flush()
}

func (t *table) own() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: t.family.table}
}

// isThere says whether the own table has these chains with these rules and no others. A rule is known by its comment.
func (t *table) isThere(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(t.family.table)
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == tableName }) {
		return len(t.chains) == 0, nil
	}
	all, err := conn.ListChainsOfTableFamily(t.family.table)
	if err != nil {
		return false, err
	}
	have := slices.DeleteFunc(all, func(c *nftables.Chain) bool { return c.Table.Name != tableName })
	if len(t.chains) == 0 || len(have) != len(t.chains) {
		return false, nil
	}
	for _, want := range t.chains {
		i := slices.IndexFunc(have, func(c *nftables.Chain) bool { return c.Name == want.name })
		if i < 0 || have[i].Hooknum == nil || *have[i].Hooknum != *want.hook || have[i].Type != want.kind || *have[i].Priority != *want.priority {
			return false, nil
		}
		rules, err := conn.GetRules(t.own(), have[i])
		if err != nil {
			return false, err
		}
		if !sameRules(rules, t.comments(want.name, want.rules)) {
			return false, nil
		}
	}
	return true, nil
}

func sameRules(have []*nftables.Rule, want [][]byte) bool {
	return slices.EqualFunc(have, want, func(r *nftables.Rule, comment []byte) bool { return bytes.Equal(r.UserData, comment) })
}

// comments are what rules are known by: each says whose it is, and changes with what it does.
func (t *table) comments(of string, rules []rule) (all [][]byte) {
	for i, r := range rules {
		sum := sha256.New()
		for _, e := range r.expressions() {
			fmt.Fprintf(sum, "%T%+v", e, e)
		}
		all = append(all, userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("%s %s %d %.8x", tableName, of, i, sum.Sum(nil))))
	}
	return all
}

// replace puts the making of the own table into the transaction, or its removal when there is nothing for it.
func (t *table) replace(conn *nftables.Conn) {
	conn.AddTable(t.own()) // so that it can be deleted
	conn.DelTable(t.own())
	if len(t.chains) == 0 {
		return
	}
	own := conn.AddTable(t.own())
	for _, c := range t.chains {
		made := conn.AddChain(&nftables.Chain{Table: own, Name: c.name, Type: c.kind, Hooknum: c.hook, Priority: c.priority})
		comments := t.comments(c.name, c.rules)
		for i, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: own, Chain: made, Exprs: r.expressions(), UserData: comments[i]})
		}
	}
}

// applyForward puts the own rules to the top of foreign chains at the forward hook that drop by policy: a packet that the own table accepts
// meets them all the same (nft(8): accept is final for one base chain). Docker's is one, and so iptables' filter FORWARD.
func (t *table) applyForward(conn *nftables.Conn) (changed bool, err error) {
	all, err := conn.ListChainsOfTableFamily(t.family.table)
	if err != nil {
		return false, err
	}
	for _, c := range all {
		if c.Table.Name == tableName || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward {
			continue
		}
		want := t.forward
		if c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			want = nil
		}
		rules, err := conn.GetRules(c.Table, c)
		if errors.Is(err, unix.ENOENT) {
			continue // it has gone meanwhile
		}
		if err != nil {
			return changed, err
		}
		changed = t.applyTop(conn, c, rules, want) || changed
	}
	return changed, nil
}

// applyTop makes the own rules those at the top of a foreign chain.
func (t *table) applyTop(conn *nftables.Conn, c *nftables.Chain, have []*nftables.Rule, want []rule) (changed bool) {
	comments := t.comments("forward", want)
	mine := slices.DeleteFunc(slices.Clone(have), func(r *nftables.Rule) bool {
		text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		return !ok || len(text) <= len(tableName) || text[:len(tableName)+1] != tableName+" "
	})
	if len(mine) == len(want) && len(have) >= len(want) && sameRules(have[:len(want)], comments) {
		return false
	}
	for _, r := range mine {
		conn.DelRule(r) // it fails only for want of a handle, which listed rules have
	}
	for i := range want {
		i = len(want) - 1 - i
		conn.InsertRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: want[i].expressions(), UserData: comments[i]})
	}
	return true
}
