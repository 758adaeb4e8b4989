package netfilter

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A chain is one of the own table, with its rules. Without a hook others jump to it, which come after it.
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

	// untracked is one more chain if anybody else translates: that makes the kernel track, too. It has no name where chains have it already.
	untracked chain
}

// apply compares and, if anything differs, makes all anew in one transaction.
func (t *table) apply() (changed bool, err error) {
	conn, err := nftables.New()
	if err != nil {
		return false, err
	}
	all, err := conn.ListChainsOfTableFamily(t.family.table)
	if err != nil {
		return false, err
	}
	var own, foreign []*nftables.Chain
	for _, c := range all {
		if c.Table.Name == tableName {
			own = append(own, c)
		} else {
			foreign = append(foreign, c)
		}
	}
	if t.untracked.name != "" && slices.ContainsFunc(foreign, func(c *nftables.Chain) bool { return c.Type == nftables.ChainTypeNAT }) {
		t.chains = append(t.chains, t.untracked)
	}
	same, err := t.isThere(conn, own)
	if err != nil {
		return false, err
	}
	if !same {
		t.replace(conn, t.dropped(conn))
	}
	forward, err := t.applyForward(conn, foreign)
	if err != nil || same && !forward {
		return false, err
	}
	return true, conn.Flush()
}

func (t *table) own() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: t.family.table}
}

// isThere says whether the own table's chains are these, with these rules and no others. A rule is known by its comment.
func (t *table) isThere(conn *nftables.Conn, have []*nftables.Chain) (bool, error) {
	if len(have) != len(t.chains) {
		return false, nil
	}
	for _, want := range t.chains {
		i := slices.IndexFunc(have, func(c *nftables.Chain) bool { return c.Name == want.name })
		if i < 0 || !want.sameHook(have[i]) {
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

// sameHook says whether a chain of that name is called where this one has to be.
func (c *chain) sameHook(have *nftables.Chain) bool {
	if c.hook == nil || have.Hooknum == nil {
		return c.hook == nil && have.Hooknum == nil
	}
	return *have.Hooknum == *c.hook && have.Type == c.kind && *have.Priority == *c.priority
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

// replace puts the making of the own table into the transaction, or its removal when there is nothing for it. before is what was counted so far.
func (t *table) replace(conn *nftables.Conn, before uint64) {
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
			conn.AddRule(&nftables.Rule{Table: own, Chain: made, Exprs: r.counted(before), UserData: comments[i]})
		}
	}
}

// applyForward puts the own rules to the top of foreign chains at the forward hook that drop by policy: a packet that the own table accepts
// meets them all the same (nft(8): accept is final for one base chain). Docker's is one, and so iptables' filter FORWARD. What others
// put before them later stays there: whoever wants the top as well would want it back, and both for ever.
func (t *table) applyForward(conn *nftables.Conn, foreign []*nftables.Chain) (changed bool, err error) {
	for _, c := range foreign {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward {
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
		changed = t.applyTo(conn, c, rules, want) || changed
	}
	return changed, nil
}

// applyTo makes the own rules in a foreign chain these.
func (t *table) applyTo(conn *nftables.Conn, c *nftables.Chain, have []*nftables.Rule, want []rule) (changed bool) {
	comments := t.comments("forward", want)
	mine := slices.DeleteFunc(have, func(r *nftables.Rule) bool {
		text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		return !ok || !strings.HasPrefix(text, tableName+" ")
	})
	if sameRules(mine, comments) {
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
