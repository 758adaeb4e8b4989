package netfilter

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// A Native is a subnet of the cluster network whose packets may come by the underlay as they are.
type Native struct {
	Subnet netip.Prefix
	MAC    [6]byte // of its node on the underlay's link
}

// nativeChain judges what comes by the underlay from the cluster network to the cluster network.
const nativeChain = "native"

// natively lets packets between pods in by the underlay iff they are a known node's that is on the link, and counts those that are not. It
// is before conntrack, so that nothing is remembered of what is dropped. Each packet, or super-packet of GRO, is held against one rule for
// each node of the link until one matches.
func (c *Config) natively(f family, network netip.Prefix) []chain {
	if c.Underlay == "" {
		return nil
	}
	var rules []rule
	for _, n := range c.Natives {
		if n.Subnet.Addr().Is4() == (f.bits == 32) {
			rules = append(rules, rule{etherSource(n.MAC), f.src(n.Subnet), accept})
		}
	}
	rules = append(rules, rule{count, drop})
	return []chain{
		{name: nativeChain, rules: rules},
		{name: "native-in", hook: nftables.ChainHookPrerouting, kind: nftables.ChainTypeFilter, priority: nftables.ChainPriorityRef(*nftables.ChainPriorityRaw - 5),
			rules: []rule{{iif(c.Underlay), f.src(network), f.dst(network), jump(nativeChain)}}},
	}
}

var count = match{&expr.Counter{}}

func etherSource(mac [6]byte) match {
	return match{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mac[:]}}
}

// NativeDrops counts the packets that were not let in since the node began.
func NativeDrops() (packets uint64, err error) {
	conn, err := nftables.New()
	if err != nil {
		return 0, err
	}
	for _, t := range []table{{family: ip4}, {family: ip6}} {
		packets += t.dropped(conn)
	}
	return packets, nil
}

// dropped is the count of the family's table, 0 where there is none.
func (t *table) dropped(conn *nftables.Conn) uint64 {
	rules, err := conn.GetRules(t.own(), &nftables.Chain{Table: t.own(), Name: nativeChain})
	if err != nil || len(rules) == 0 {
		return 0
	}
	for _, e := range rules[len(rules)-1].Exprs {
		if c, ok := e.(*expr.Counter); ok {
			return c.Packets
		}
	}
	return 0
}

// counted is a rule's expressions, a counter of which goes on from packets.
func (r rule) counted(packets uint64) (all []expr.Any) {
	for _, e := range r.expressions() {
		if _, ok := e.(*expr.Counter); ok {
			e = &expr.Counter{Packets: packets}
		}
		all = append(all, e)
	}
	return all
}
