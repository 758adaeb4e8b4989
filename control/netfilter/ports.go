package netfilter

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A Port is one of the node's that leads to a pod of this node.
type Port struct {
	Protocol uint8      // unix.IPPROTO_TCP or unix.IPPROTO_UDP
	Host     netip.Addr // of the node; the zero Addr is for every one of the pod's family
	Number   uint16
	Pod      netip.AddrPort
}

// mapped returns the chains that lead the node's ports to pods, and the rule for what leaves towards them.
//
// The destination is translated before the packet's first way to the TAP, its second way is not tracked, and the reply goes from the pod
// straight to where it is translated back. But a reply from the network to the network is not tracked either: who asks from the
// network does it with the node's address there, also the pod that asks for itself. A loopback address is not mapped: the kernel lets
// what comes from one leave the node only with route_localnet, with which others reach what listens there. Nor is a link-local one, for
// the engine takes nothing that comes from there.
func (c *Config) mapped(f family, network, own netip.Prefix) (chains []chain, leaving []rule) {
	var ports []rule
	for _, p := range c.Ports {
		if p.Pod.Addr().Is4() == (f.bits == 32) {
			ports = append(ports, f.lead(p))
		}
	}
	if len(ports) == 0 {
		return nil, nil
	}
	const name = "ports"
	lead := rule{f.notDst(f.linkLocal()), local, jump(name)}
	return []chain{
		{name: name, rules: ports},
		{name: "ports-in", hook: nftables.ChainHookPrerouting, kind: nftables.ChainTypeNAT, priority: nftables.ChainPriorityNATDest, rules: []rule{lead}},
		{name: "ports-own", hook: nftables.ChainHookOutput, kind: nftables.ChainTypeNAT, priority: nftables.ChainPriorityNATDest, rules: []rule{append(rule{f.notDst(f.loopback())}, lead...)}},
	}, []rule{{f.src(network), translated, f.nat(expr.NATTypeSourceNAT, own.Addr(), 0)}}
}

// lead is the rule of one port.
func (f family) lead(p Port) rule {
	r := rule{protocol(p.Protocol), dstPort(p.Number)}
	if p.Host.IsValid() {
		r = append(r, f.dst(netip.PrefixFrom(p.Host, p.Host.BitLen())))
	}
	return append(r, f.nat(expr.NATTypeDestNAT, p.Pod.Addr(), p.Pod.Port()))
}

// nat translates to an address, and to a port if that is not 0.
func (f family) nat(kind expr.NATType, to netip.Addr, port uint16) match {
	family := uint32(unix.NFPROTO_IPV4)
	if f.bits != 32 {
		family = unix.NFPROTO_IPV6
	}
	nat := &expr.NAT{Type: kind, Family: family, RegAddrMin: 1}
	m := match{&expr.Immediate{Register: 1, Data: to.AsSlice()}}
	if port != 0 {
		nat.RegProtoMin = 2
		m = append(m, &expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)})
	}
	return append(m, nat)
}

func (f family) loopback() netip.Prefix  { return f.either("127.0.0.0/8", "::1/128") }
func (f family) linkLocal() netip.Prefix { return f.either("169.254.0.0/16", "fe80::/10") }

func jump(to string) match { return match{&expr.Verdict{Kind: expr.VerdictJump, Chain: to}} }

func protocol(number uint8) match {
	return match{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}}}
}

func dstPort(number uint16) match {
	return match{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)}}
}

// translated is what belongs to a flow whose destination was translated: IPS_DST_NAT of nf_conntrack_common.h.
var translated = match{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
	&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(1 << 5), Xor: make([]byte, 4)},
	&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
