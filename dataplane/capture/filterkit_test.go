package capture

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// The pools are small, so that random filters match random packets often.
var (
	pool4    = []string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.7.9"}
	pool6    = []string{"fd00::1", "fd00::2", "fd00:1::1"}
	poolNet  = []string{"10.0.0.0/24", "10.0.0.0/8", "10", "192.168", "0.0.0.0/0", "10.0.0.2/31", "10.0.0.2", "fd00::/16", "fd00::/64", "fd00::1", "::/0"}
	poolMAC  = []string{"02:00:00:00:00:01", "02:00:00:00:00:02"}
	poolPort = []uint16{0, 53, 80, 443, 8472}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// A randomPacket is one that gopacket serialized. plain ones are those about which libpcap and this package must agree.
func randomPacket(r *rand.Rand, plain bool) []byte {
	src, _ := net.ParseMAC(pick(r, poolMAC))
	dst, _ := net.ParseMAC(pick(r, poolMAC))
	eth := &layers.Ethernet{SrcMAC: src, DstMAC: dst}
	all := []gopacket.SerializableLayer{eth}
	to := &eth.EthernetType
	for !plain && r.IntN(4) == 0 && len(all) < 3 {
		tag := &layers.Dot1Q{VLANIdentifier: uint16(r.IntN(4095))}
		*to, to = layers.EthernetTypeDot1Q, &tag.Type
		all = append(all, tag)
	}
	switch r.IntN(8) {
	case 0:
		*to = layers.EthernetTypeARP
		all = append(all, &layers.ARP{AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1, SourceHwAddress: src,
			SourceProtAddress: net.ParseIP(pick(r, pool4)).To4(), DstHwAddress: dst, DstProtAddress: net.ParseIP(pick(r, pool4)).To4()})
	case 1, 2, 3:
		*to = layers.EthernetTypeIPv6
		all = append(all, randomIPv6(r, plain)...)
	default:
		*to = layers.EthernetTypeIPv4
		all = append(all, randomIPv4(r)...)
	}
	buf := gopacket.NewSerializeBuffer()
	all = append(all, gopacket.Payload(make([]byte, r.IntN(60))))
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, all...); err != nil {
		panic(err)
	}
	return bytes.Clone(buf.Bytes())
}

func randomIPv4(r *rand.Rand) []gopacket.SerializableLayer {
	proto, l4 := randomL4(r, false)
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: net.ParseIP(pick(r, pool4)), DstIP: net.ParseIP(pick(r, pool4))}
	if r.IntN(4) == 0 {
		ip.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
	}
	switch r.IntN(6) {
	case 0:
		ip.Flags = layers.IPv4MoreFragments
	case 1:
		ip.FragOffset = uint16(1 + r.IntN(8000))
	}
	return []gopacket.SerializableLayer{ip, l4}
}

func randomIPv6(r *rand.Rand, plain bool) []gopacket.SerializableLayer {
	proto, l4 := randomL4(r, true)
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: net.ParseIP(pick(r, pool6)), DstIP: net.ParseIP(pick(r, pool6))}
	if plain || r.IntN(2) == 0 {
		return []gopacket.SerializableLayer{ip, l4}
	}
	// Extension headers by hand: gopacket writes few of them.
	chain := []byte{}
	next := &ip.NextHeader
	for _, header := range [][]byte{{0, 0, 1, 4, 0, 0, 0, 0}, {0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}} {
		if r.IntN(2) == 0 {
			continue
		}
		kind := layers.IPProtocolIPv6HopByHop
		if len(header) == 16 {
			kind = layers.IPProtocolIPv6Destination
		}
		*next = kind
		chain = append(chain, header...)
		next = (*layers.IPProtocol)(&chain[len(chain)-len(header)])
	}
	if r.IntN(3) == 0 {
		*next = layers.IPProtocolIPv6Fragment
		chain = append(chain, 0, 0, 0, byte(r.IntN(2)), 1, 2, 3, 4)
		if r.IntN(2) == 0 {
			chain[len(chain)-6] = byte(1 + r.IntN(100))
		}
		next = (*layers.IPProtocol)(&chain[len(chain)-8])
	}
	*next = proto
	return []gopacket.SerializableLayer{ip, gopacket.Payload(chain), l4}
}

func randomL4(r *rand.Rand, v6 bool) (layers.IPProtocol, gopacket.SerializableLayer) {
	switch r.IntN(7) {
	case 0, 1, 2:
		return layers.IPProtocolTCP, &layers.TCP{SrcPort: layers.TCPPort(pick(r, poolPort)), DstPort: layers.TCPPort(pick(r, poolPort)), ACK: true}
	case 3, 4:
		return layers.IPProtocolUDP, &layers.UDP{SrcPort: layers.UDPPort(pick(r, poolPort)), DstPort: layers.UDPPort(pick(r, poolPort))}
	case 5:
		if v6 {
			return layers.IPProtocolICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
		}
		return layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}
	}
	return layers.IPProtocol(99), gopacket.Payload{0, 0, 8, 0}
}

// decoded is what gopacket finds in a packet.
func decoded(b []byte) (h Headers) {
	h.Length = len(b)
	var payload []byte
	for _, layer := range gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{}).Layers() {
		switch l := layer.(type) {
		case *layers.Ethernet:
			h.Link, h.SrcMAC, h.DstMAC, h.EtherType = true, packet.MAC(l.SrcMAC), packet.MAC(l.DstMAC), uint16(l.EthernetType)
		case *layers.Dot1Q:
			h.EtherType = uint16(l.Type)
		case *layers.ARP:
			h.Src, _ = netip.AddrFromSlice(l.SourceProtAddress)
			h.Dst, _ = netip.AddrFromSlice(l.DstProtAddress)
		case *layers.IPv4:
			h.setIP(l.SrcIP.To4(), l.DstIP.To4(), l.Protocol)
			if payload = l.Payload; l.FragOffset > 0 {
				payload = nil
			}
		case *layers.IPv6:
			h.setIP(l.SrcIP, l.DstIP, l.NextHeader)
			payload = l.Payload
		case *layers.IPv6HopByHop:
			h.Proto, payload = uint8(l.NextHeader), l.Payload
		case *layers.IPv6Destination:
			h.Proto, payload = uint8(l.NextHeader), l.Payload
		case *layers.IPv6Fragment:
			h.Proto = uint8(l.NextHeader)
			if payload = l.Payload; l.FragmentOffset > 0 {
				payload = nil
			}
		}
	}
	h.setPorts(payload)
	return h
}

func (h *Headers) setIP(src, dst net.IP, proto layers.IPProtocol) {
	h.IP, h.Proto = true, uint8(proto)
	h.Src, _ = netip.AddrFromSlice(src)
	h.Dst, _ = netip.AddrFromSlice(dst)
}

func (h *Headers) setPorts(payload []byte) {
	var tcp layers.TCP
	var udp layers.UDP
	switch {
	case h.Proto == 6 && tcp.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) == nil:
		h.HasPorts, h.SrcPort, h.DstPort = true, uint16(tcp.SrcPort), uint16(tcp.DstPort)
	case h.Proto == 17 && len(payload) >= 8 && udp.DecodeFromBytes(payload, gopacket.NilDecodeFeedback) == nil:
		h.HasPorts, h.SrcPort, h.DstPort = true, uint16(udp.SrcPort), uint16(udp.DstPort)
	}
}

// A question is a part of a random filter: its text, and its answer by the words of pcap-filter(7).
type question struct {
	text string
	ask  func(h *Headers) bool
}

func atEnd(dir string, src, dst bool) bool {
	switch dir {
	case "src ":
		return src
	case "dst ":
		return dst
	case "src and dst ":
		return src && dst
	}
	return src || dst
}

var dirs = []string{"", "src ", "dst ", "src or dst ", "src and dst "}

// randomFilter returns a filter of random shape.
func randomFilter(r *rand.Rand, depth int) question {
	if depth == 0 || r.IntN(4) == 0 {
		return pick(r, []func(*rand.Rand) question{askProto, askProto, askHost, askHost, askNet, askPort, askPort, askRange, askNumber, askMAC, askSize, askChain})(r)
	}
	left := randomFilter(r, depth-1)
	if r.IntN(3) == 0 {
		return question{pick(r, []string{"not (%s)", "! (%s)", "not(%s)"}), func(h *Headers) bool { return !left.ask(h) }}.filled(left.text)
	}
	right := randomFilter(r, depth-1)
	if r.IntN(2) == 0 { // left without parentheses: and and or join from the left
		return either2(r, left.text, left, right)
	}
	return either2(r, "("+left.text+")", left, right)
}

func (q question) filled(inner string) question {
	q.text = fmt.Sprintf(q.text, inner)
	return q
}

func either2(r *rand.Rand, text string, left, right question) question {
	if r.IntN(2) == 0 {
		return question{text + pick(r, []string{" and ", " && "}) + "(" + right.text + ")", func(h *Headers) bool { return left.ask(h) && right.ask(h) }}
	}
	return question{text + pick(r, []string{" or ", " || "}) + "(" + right.text + ")", func(h *Headers) bool { return left.ask(h) || right.ask(h) }}
}

func askProto(r *rand.Rand) question {
	all := map[string]func(h *Headers) bool{
		"ip":    func(h *Headers) bool { return h.EtherType == 0x800 },
		"ip6":   func(h *Headers) bool { return h.EtherType == 0x86dd },
		"arp":   func(h *Headers) bool { return h.EtherType == 0x806 },
		"tcp":   func(h *Headers) bool { return h.IP && h.Proto == 6 },
		"udp":   func(h *Headers) bool { return h.IP && h.Proto == 17 },
		"icmp":  func(h *Headers) bool { return h.EtherType == 0x800 && h.IP && h.Proto == 1 },
		"icmp6": func(h *Headers) bool { return h.EtherType == 0x86dd && h.IP && h.Proto == 58 },
	}
	name := pick(r, []string{"ip", "ip6", "arp", "tcp", "udp", "icmp", "icmp6"})
	return question{name, all[name]}
}

// family returns a protocol to stand in front of host or net, and its EtherType; 0 for none.
func family(r *rand.Rand, v6 bool) (string, uint16) {
	if v6 {
		return pick(r, []string{"", "ip6 "}), 0
	}
	proto := pick(r, []string{"", "ip ", "arp "})
	return proto, map[string]uint16{"": 0, "ip ": 0x800, "arp ": 0x806}[proto]
}

func askHost(r *rand.Rand) question {
	host := pick(r, append(pool4, pool6...))
	a := netip.MustParseAddr(host)
	proto, etherType := family(r, a.Is6())
	dir := pick(r, dirs)
	return question{proto + dir + "host " + host, func(h *Headers) bool {
		return (etherType == 0 || h.EtherType == etherType) && atEnd(dir, h.Src == a, h.Dst == a)
	}}
}

func askNet(r *rand.Rand) question {
	text := pick(r, poolNet)
	full := map[string]string{"10": "10.0.0.0/8", "192.168": "192.168.0.0/16", "10.0.0.2": "10.0.0.2/32", "fd00::1": "fd00::1/128"}[text]
	if full == "" {
		full = text
	}
	_, p, _ := net.ParseCIDR(full)
	dir := pick(r, dirs)
	in := func(a netip.Addr) bool {
		return a.IsValid() && a.Is4() == (p.IP.To4() != nil) && p.Contains(a.AsSlice())
	}
	return question{dir + "net " + text, func(h *Headers) bool { return atEnd(dir, in(h.Src), in(h.Dst)) }}
}

func portProto(r *rand.Rand) (string, uint8) {
	proto := pick(r, []string{"", "tcp ", "udp "})
	return proto, map[string]uint8{"": 0, "tcp ": 6, "udp ": 17}[proto]
}

func askPort(r *rand.Rand) question {
	proto, number := portProto(r)
	dir, port := pick(r, dirs), pick(r, poolPort)
	return question{fmt.Sprintf("%s%sport %d", proto, dir, port), func(h *Headers) bool {
		return h.HasPorts && (number == 0 || h.Proto == number) && atEnd(dir, h.SrcPort == port, h.DstPort == port)
	}}
}

func askRange(r *rand.Rand) question {
	proto, number := portProto(r)
	dir, from, to := pick(r, dirs), pick(r, poolPort), pick(r, poolPort)
	from, to = min(from, to), max(from, to)
	return question{fmt.Sprintf("%s%sportrange %d-%d", proto, dir, from, to), func(h *Headers) bool {
		return h.HasPorts && (number == 0 || h.Proto == number) && atEnd(dir, from <= h.SrcPort && h.SrcPort <= to, from <= h.DstPort && h.DstPort <= to)
	}}
}

func askNumber(r *rand.Rand) question {
	number := pick(r, []uint8{1, 6, 17, 58, 99})
	proto := pick(r, []string{"ip ", "ip6 "})
	etherType := map[string]uint16{"ip ": 0x800, "ip6 ": 0x86dd}[proto]
	return question{fmt.Sprintf("%sproto %d", proto, number), func(h *Headers) bool { return h.EtherType == etherType && h.IP && h.Proto == number }}
}

func askMAC(r *rand.Rand) question {
	text := pick(r, poolMAC)
	mac, _ := net.ParseMAC(text)
	dir := pick(r, dirs[:3])
	return question{"ether " + dir + "host " + text, func(h *Headers) bool {
		return atEnd(dir, bytes.Equal(h.SrcMAC[:], mac), bytes.Equal(h.DstMAC[:], mac))
	}}
}

func askSize(r *rand.Rand) question {
	n := 40 + r.IntN(60)
	if r.IntN(2) == 0 {
		return question{fmt.Sprintf("less %d", n), func(h *Headers) bool { return h.Length <= n }}
	}
	return question{fmt.Sprintf("greater %d", n), func(h *Headers) bool { return h.Length >= n }}
}

// askChain leaves out qualifiers that stand already.
func askChain(r *rand.Rand) question {
	a, b := pick(r, poolPort), pick(r, poolPort)
	dir := pick(r, dirs[:3])
	return question{fmt.Sprintf("(%sport %d or %d)", dir, a, b), func(h *Headers) bool {
		return h.HasPorts && (atEnd(dir, h.SrcPort == a, h.DstPort == a) || atEnd(dir, h.SrcPort == b, h.DstPort == b))
	}}
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
