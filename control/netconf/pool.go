package netconf

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// family is what differs between flannel's rules for IPv4 and for IPv6.
type family struct {
	name                      string
	enable                    string // keys
	network, length, min, max string
	bits                      int
	// maxNetwork is the longest Network: four subnets of four addresses. flannel needs four because
	// it leaves the first one out, and two more than that one would serve a single node.
	maxNetwork int
	usualLen   int // SubnetLen when unset and Network has room for four of them
	example    string
}

var (
	ipv4 = &family{
		name: "IPv4", enable: "EnableIPv4",
		network: "Network", length: "SubnetLen", min: "SubnetMin", max: "SubnetMax",
		bits: 32, maxNetwork: 28, usualLen: 24, example: "10.244.0.0/16",
	}
	ipv6 = &family{
		name: "IPv6", enable: "EnableIPv6",
		network: "IPv6Network", length: "IPv6SubnetLen", min: "IPv6SubnetMin", max: "IPv6SubnetMax",
		bits: 128, maxNetwork: 124, usualLen: 64, example: "fc00::/48",
	}
)

// pool is where the node subnets of one family come from.
type pool struct {
	network  netip.Prefix
	length   int
	min, max netip.Addr // first and last subnet to give out
}

// withDefaults is the pool of a masked network no longer than maxNetwork with nothing else set.
func (f *family) withDefaults(network netip.Prefix) pool {
	length := max(f.usualLen, network.Bits()+2)
	return pool{network, length, second(network, length), last(network, length)}
}

// second returns the start of the second subnet. The first is left out because its first address is
// the network's own.
func second(network netip.Prefix, length int) netip.Addr {
	return setBits(network.Addr(), length-1, length)
}

func last(network netip.Prefix, length int) netip.Addr {
	return setBits(network.Addr(), network.Bits(), length)
}

// setBits sets the bits from (counted from the most significant, 0) up to but without to.
func setBits(a netip.Addr, from, to int) netip.Addr {
	b := a.AsSlice()
	for i := from; i < to; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ = netip.AddrFromSlice(b)
	return a
}

// pool reads the keys of one family. Those of a family that is off are checked for their form only,
// as flannel does, and are not kept.
func (o *object) pool(f *family, on bool) pool {
	network := o.network(f, on)
	length := o.subnetLen(f, network)
	from, fromValue := o.subnet(f, f.min, length)
	to, toValue := o.subnet(f, f.max, length)
	if !network.IsValid() || length == 0 {
		return pool{}
	}
	p := pool{network, length, second(network, length), last(network, length)}
	if from.IsValid() {
		o.checkSubnet(f, f.min, fromValue, from, p)
		p.min = from
	}
	if to.IsValid() {
		o.checkSubnet(f, f.max, toValue, to, p)
		p.max = to
	}
	if p.max.Less(p.min) {
		o.fail(toValue, f.max, fmt.Sprintf("below %s %s", f.min, p.min),
			fmt.Sprintf("%s to %s", p.min, last(network, length)))
	}
	return p
}

// network returns the masked network, or the zero Prefix when it is absent, wrong or off.
func (o *object) network(f *family, on bool) netip.Prefix {
	allowed := fmt.Sprintf("an %s prefix from /1 to /%d, such as %s", f.name, f.maxNetwork, f.example)
	v, ok := o.typed(f.network, kindString, allowed)
	switch {
	case !ok && on:
		o.missingNetwork(f, allowed)
		return netip.Prefix{}
	case !ok:
		return netip.Prefix{}
	}
	p, reason := f.parsePrefix(v.text)
	if reason == "" && on && p.Bits() > f.maxNetwork {
		reason = "too small for four node subnets"
	}
	if reason == "" && on && p.Bits() == 0 {
		reason = "the whole address space"
	}
	if reason != "" {
		o.fail(v, f.network, reason, allowed)
		return netip.Prefix{}
	}
	if !on {
		o.warnIgnored(f, v)
		return netip.Prefix{}
	}
	if p != p.Masked() {
		o.warnAt(v.start, f.network, v.text, "host bits are set: taken as "+p.Masked().String()+", as flannel does")
	}
	return p.Masked()
}

// missingNetwork points at what asks for the network: the enabling key, or the whole object.
func (o *object) missingNetwork(f *family, allowed string) {
	at, reason := o.value.start, "missing"
	if v, ok := o.find(f.enable); ok {
		at, reason = v.start, "missing, but "+f.enable+" is true"
	}
	o.failAt(at, f.network, "", reason, allowed)
}

// warnIgnored says when a network has no effect because its enabling key was forgotten.
func (o *object) warnIgnored(f *family, v value) {
	if _, set := o.find(f.enable); !set {
		o.warnAt(v.start, f.network, printable(v.text), "ignored: "+f.enable+" is not set to true")
	}
}

func (f *family) parsePrefix(s string) (_ netip.Prefix, reason string) {
	addr, length, found := strings.Cut(s, "/")
	_, reason = f.parseAddr(addr)
	switch p, err := netip.ParsePrefix(s); {
	case reason != "":
		return p, reason
	case !found:
		return p, "no /length after the address"
	case err != nil && isNumber(length):
		return p, "no such prefix length"
	case err != nil:
		return p, "not an " + f.name + " prefix"
	default:
		return p, ""
	}
}

func (f *family) parseAddr(s string) (_ netip.Addr, reason string) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Zone() != "" || a.Is4In6():
		return a, "not an " + f.name + " address"
	case a.BitLen() != f.bits:
		return a, "of the other address family"
	}
	return a, ""
}

func isNumber(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}

// subnetLen returns the given length, that for an absent one, or 0 when either is wrong.
func (o *object) subnetLen(f *family, network netip.Prefix) int {
	var allowed string
	if network.IsValid() {
		allowed = fmt.Sprintf("%d to %d for %s %s", network.Bits()+2, f.maxNetwork+2, f.network, network)
	}
	n, v, ok := o.integer(f.length, allowed)
	switch {
	case ok && n < 0:
		o.fail(v, f.length, "negative", allowed)
	case !network.IsValid():
	case n == 0: // flannel's unset, given or not
		return f.withDefaults(network).length
	case n > int64(f.maxNetwork+2):
		o.fail(v, f.length, "longer than a usable node subnet", allowed)
	case n < int64(network.Bits()+2):
		o.fail(v, f.length, "too short for four node subnets", allowed)
	default:
		return int(n)
	}
	return 0
}

// subnet returns SubnetMin or SubnetMax without its length, which must be SubnetLen (0: unknown). It
// returns the zero Addr when the key is absent or wrong, or holds the unspecified address, flannel's
// unset.
func (o *object) subnet(f *family, name string, length int) (netip.Addr, value) {
	const allowed = "the first address of a node subnet"
	v, ok := o.typed(name, kindString, allowed)
	if !ok {
		return netip.Addr{}, v
	}
	a, reason := f.parseAddr(v.text)
	var p netip.Prefix
	if strings.Contains(v.text, "/") {
		p, reason = f.parsePrefix(v.text)
		a = p.Addr()
	}
	switch {
	case reason != "":
		o.fail(v, name, reason, allowed)
	case p.IsValid() && length > 0 && p.Bits() != length:
		o.fail(v, name, fmt.Sprintf("/%d differs from %s %d", p.Bits(), f.length, length),
			fmt.Sprintf("%s or %s/%d", a, a, length))
	case !a.IsUnspecified():
		return a, v
	}
	return netip.Addr{}, v
}

// checkSubnet checks that a subnet of p starts at a.
func (o *object) checkSubnet(f *family, name string, v value, a netip.Addr, p pool) {
	start := netip.PrefixFrom(a, p.length).Masked().Addr()
	switch {
	case !p.network.Contains(a):
		o.fail(v, name, fmt.Sprintf("outside %s %s", f.network, p.network),
			fmt.Sprintf("%s to %s", p.network.Addr(), last(p.network, p.length)))
	case a != start:
		o.fail(v, name, fmt.Sprintf("not the first address of a /%d subnet", p.length), start.String())
	}
}
