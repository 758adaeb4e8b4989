package pin

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A table is one family's.
type table struct {
	name    string
	family  nftables.TableFamily
	hook    *nftables.ChainHook
	length  uint32 // of its addresses, bytes
	rules   [][]expr.Any
	reasons []Reason // of its counters
}

// Before conntrack and everything else that remembers.
var priority = nftables.ChainPriorityRef(*nftables.ChainPriorityRaw - 10)

// arpInput is NF_ARP_IN.
var arpInput = nftables.ChainHookRef(0)

var tables = []*table{
	{name: "ip", family: nftables.TableFamilyIPv4, hook: nftables.ChainHookPrerouting, length: 4, reasons: []Reason{MAC, Source, DHCP}, rules: [][]expr.Any{
		unless(MAC, etherSource, macSet),
		unless(Source, network(12, 4), addrSet),
		when(DHCP, protocol(unix.IPPROTO_UDP), equals(transport(0, 2), 0, 67)),
	}},
	{name: "ip6", family: nftables.TableFamilyIPv6, hook: nftables.ChainHookPrerouting, length: 16, reasons: []Reason{MAC, Source, ND, DHCP}, rules: [][]expr.Any{
		unless(MAC, etherSource, macSet),
		when(ND, icmp6(routerAdvertisement)),
		when(ND, icmp6(redirect)),
		append(icmp6(neighbourAdvertisement), unless(ND, transport(8, 16), addrSet)...),
		unspecified(neighbourSolicitation), // duplicate address detection: it teaches nobody
		unspecified(listenerReport),
		unless(Source, network(8, 16), addrSet),
		when(DHCP, protocol(unix.IPPROTO_UDP), equals(transport(0, 2), 547>>8, 547&0xff)),
	}},
	{name: "arp", family: nftables.TableFamilyARP, hook: arpInput, length: 4, reasons: []Reason{MAC, ARP}, rules: [][]expr.Any{
		unless(MAC, etherSource, macSet),
		unless(ARP, network(8, 6), macSet),
		slices.Concat(equals(network(14, 4), 0, 0, 0, 0), pass), // a probe (RFC 5227): it teaches nobody
		unless(ARP, network(14, 4), addrSet),
	}},
}

// Types of ICMPv6 (RFC 4861, RFC 3810).
const (
	routerAdvertisement    = 134
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
	redirect               = 137
	listenerReport         = 143
)

func (t *table) own() *nftables.Table { return &nftables.Table{Name: tableName, Family: t.family} }

// A ruledChain is a chain with what is in it.
type ruledChain struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

// chains are one for all packets, with one comparison for those that no pod sent, and one for pods' packets. attach.LinkName makes
// the names of pods' links: "tulle" and hexadecimal digits.
func (t *table) chains() []ruledChain {
	own := t.own()
	pods := &nftables.Chain{Table: own, Name: "pods"}
	all := &nftables.Chain{Table: own, Name: "all", Type: nftables.ChainTypeFilter, Hooknum: t.hook, Priority: priority}
	return []ruledChain{{pods, t.rules}, {all, [][]expr.Any{{iif, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: linkName("tulle0"), ToData: linkName("tulleg")},
		&expr.Verdict{Kind: expr.VerdictGoto, Chain: pods.Name}}}}}
}

// A podSet is a set with an element for each of something that a pod has: the link's name, 16 bytes, and that.
type podSet struct {
	set *nftables.Set
	of  func(Pod) [][]byte
}

const (
	macSet  = "macs"
	addrSet = "addrs"
)

func (t *table) sets() []podSet {
	address := nftables.TypeIPAddr
	if t.length == 16 {
		address = nftables.TypeIP6Addr
	}
	return []podSet{
		{t.set(macSet, nftables.TypeEtherAddr), func(p Pod) [][]byte { return [][]byte{append(slices.Clone(p.MAC), 0, 0)} }}, // a whole number of 4 bytes
		{t.set(addrSet, address), t.addrs},
	}
}

func (t *table) set(name string, of nftables.SetDatatype) *nftables.Set {
	return &nftables.Set{Table: t.own(), Name: name, Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, of)}
}

// addrs are a pod's of the table's family. With IPv6 its link has another one, of its MAC (RFC 4291 appendix A).
func (t *table) addrs(p Pod) (all [][]byte) {
	for _, a := range p.Addrs {
		if b := a.AsSlice(); len(b) == int(t.length) {
			all = append(all, b)
		}
	}
	if t.length == 16 && len(all) > 0 && len(p.MAC) == 6 {
		m := p.MAC
		local := netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
		all = append(all, local.AsSlice())
	}
	return all
}

func (s podSet) elements(pods []Pod) (all []nftables.SetElement) {
	for _, p := range pods {
		for _, what := range s.of(p) {
			all = append(all, nftables.SetElement{Key: append(linkName(p.Link), what...)})
		}
	}
	return all
}

func linkName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// Expressions. Register 1 is 16 bytes, and register 2 follows it.
var (
	iif         = &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}
	etherSource = &expr.Payload{DestRegister: 2, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}
	pass        = []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
)

func network(offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: 2, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func transport(offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: 2, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

// equals matches a part of the packet.
func equals(part *expr.Payload, value ...byte) []expr.Any {
	return []expr.Any{part, &expr.Cmp{Op: expr.CmpOpEq, Register: 2, Data: value}}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 2}, &expr.Cmp{Op: expr.CmpOpEq, Register: 2, Data: []byte{number}}}
}

func icmp6(kind byte) []expr.Any {
	return slices.Concat(protocol(unix.IPPROTO_ICMPV6), equals(transport(0, 1), kind))
}

// unspecified lets one type of ICMPv6 through from the unspecified address.
func unspecified(kind byte) []expr.Any {
	return slices.Concat(icmp6(kind), equals(network(8, 16), make([]byte, 16)...), pass)
}

// unless drops what is in no element of the link's.
func unless(r Reason, part *expr.Payload, set string) []expr.Any {
	return append([]expr.Any{iif, part, &expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}}, count(r)...)
}

// when drops what matches.
func when(r Reason, matches ...[]expr.Any) []expr.Any {
	return append(slices.Concat(matches...), count(r)...)
}

func count(r Reason) []expr.Any {
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: string(r)}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// comment is what a rule is known by: it changes with what the rule does.
func comment(rule []expr.Any) []byte {
	sum := sha256.New()
	for _, e := range rule {
		fmt.Fprintf(sum, "%T%+v", e, e)
	}
	return userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("tulle %.8x", sum.Sum(nil)))
}
