package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// splitTable is what keeps the two sides of a split underlay apart, in the underlay's namespace.
const splitTable = "tulle-split"

// apart says whether a node is on the far side of a split underlay.
func (r *record) apart(n *node) bool { return slices.Contains(r.Far, n.Number) }

// Split cuts the underlay in two, at once: the nodes with these numbers, those that are added later too, are on the far side. Nodes that are
// added or started meanwhile join one of their side and wait for that side only.
func (l *Lab) Split(ctx context.Context, numbers ...int) error {
	return l.change(ctx, func() error {
		if l.rec.Routed || len(l.rec.Far) > 0 {
			return errors.New("split the underlay: it has two parts already")
		}
		if err := l.edit(func() { l.rec.Far = numbers }); err != nil {
			return err
		}
		return In(underlayNamespace, func() error { return split(numbers) })
	})
}

// Heal joins what Split cut, at once. It does not wait for what the daemons make of it.
func (l *Lab) Heal(ctx context.Context) error {
	return l.change(ctx, func() error {
		err := In(underlayNamespace, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.DelTable(&nftables.Table{Name: splitTable, Family: nftables.TableFamilyBridge})
			return c.Flush()
		})
		if err != nil {
			return fmt.Errorf("heal the underlay: %w", err)
		}
		return l.edit(func() { l.rec.Far = nil })
	})
}

// split drops what is bridged from a far port to a near one, and the other way.
func split(numbers []int) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: splitTable, Family: nftables.TableFamilyBridge})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	far := &nftables.Set{Table: table, Name: "far", KeyType: nftables.TypeIFName}
	var ports []nftables.SetElement
	for _, number := range numbers {
		name := make([]byte, 16)
		copy(name, underlayPort(number))
		ports = append(ports, nftables.SetElement{Key: name})
	}
	if err := c.AddSet(far, ports); err != nil {
		return fmt.Errorf("split the underlay: %w", err)
	}
	for _, inFar := range []bool{true, false} {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: far.Name, SetID: far.ID, Invert: !inFar},
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, SetName: far.Name, SetID: far.ID, Invert: inFar},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("split the underlay: %w", err)
	}
	return nil
}
