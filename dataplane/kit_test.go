package dataplane

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/encap"
)

// The test network: this node is 10.0.1.0/24 at 192.0.2.1, node b is 10.0.2.0/24 at 192.0.2.2, node c is 10.0.3.0/24 at
// 192.0.2.3, and 10.0.0.0/8 belongs to nobody. In IPv6 they are fd00:1::/64 at 2001:db8::1 and so on, of fd00::/16. The path
// to node c takes 1,300 bytes.
var (
	nodeB  = netip.MustParseAddrPort("192.0.2.2:8472")
	nodeC  = netip.MustParseAddrPort("192.0.2.3:8472")
	nodeB6 = netip.MustParseAddrPort("[2001:db8::2]:8472")
	nodeC6 = netip.MustParseAddrPort("[2001:db8::3]:8472")
	macA   = packet.MAC{2, 0, 0, 0, 0, 1}
	macB   = packet.MAC{2, 0, 0, 0, 0, 2}
	macC   = packet.MAC{2, 0, 0, 0, 0, 3}
	gateA  = packet.MAC{2, 0, 0, 0, 1, 1}
)

const (
	testMTU   = 1430
	narrowMTU = 1300
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func testPeer(name string, endpoint netip.AddrPort, mac packet.MAC, mtu int, sources ...string) *tables.Peer {
	p := &tables.Peer{Name: name, Endpoint: endpoint, VTEP: mac, MTU: mtu}
	for _, s := range sources {
		p.Sources = append(p.Sources, prefix(s))
	}
	return p
}

func testTables(t testing.TB) *tables.Set { return testTablesWith(t, nil) }

// testTablesWith has routes to the ports of pods too.
func testTablesWith(t testing.TB, pods []*tables.Pod) *tables.Set {
	t.Helper()
	b := testPeer("b", nodeB, macB, 1450, "10.0.2.0/24", "192.0.2.2/32")
	c := testPeer("c", nodeC, macC, narrowMTU, "10.0.3.0/24", "192.0.2.3/32")
	b6 := testPeer("b", nodeB6, macB, 1430, "fd00:2::/64", "2001:db8::2/128")
	c6 := testPeer("c", nodeC6, macC, narrowMTU, "fd00:3::/64", "2001:db8::3/128")
	node := tables.Node{VTEP: macA, Gateway: gateA, Engine: addr("10.0.1.254"), Engine6: addr("fd00:1::ffff:ffff:ffff:fffe"),
		MTU: testMTU, Limit4: 1450, Limit6: 1430, Port: 8472}
	routes := []tables.Route{
		{Prefix: prefix("10.0.0.0/8"), Kind: tables.Reject},
		{Prefix: prefix("10.0.1.0/24"), Kind: tables.Local},
		{Prefix: prefix("10.0.1.0/32"), Kind: tables.Host},
		{Prefix: prefix("10.0.1.254/32"), Kind: tables.Reject},
		{Prefix: prefix("10.0.2.0/24"), Kind: tables.ToPeer, Peer: b},
		{Prefix: prefix("10.0.3.0/24"), Kind: tables.ToPeer, Peer: c},
		{Prefix: prefix("fd00::/16"), Kind: tables.Reject},
		{Prefix: prefix("fd00:1::/64"), Kind: tables.Local},
		{Prefix: prefix("fd00:1::/128"), Kind: tables.Host},
		{Prefix: prefix("fd00:1::ffff:ffff:ffff:fffe/128"), Kind: tables.Reject},
		{Prefix: prefix("fd00:2::/64"), Kind: tables.ToPeer, Peer: b6},
		{Prefix: prefix("fd00:3::/64"), Kind: tables.ToPeer, Peer: c6},
	}
	for _, p := range pods {
		for _, a := range p.Addrs() {
			routes = append(routes, tables.Route{Prefix: netip.PrefixFrom(a, a.BitLen()), Kind: tables.Local, Pod: p})
		}
	}
	set, err := tables.Compile(1, node, []*tables.Peer{b, c, b6, c6}, routes)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A rig is one worker between in-memory ports, driven by hand, on a clock that stands still unless moved.
type rig struct {
	t      testing.TB
	engine *Engine
	w      *worker
	ports  [numSides]*memPort
	pods   []*memPort // of testPods; a turn of the side Pod is one of the first
	now    atomic.Int64
	probes []probeAnswer
	after  func() // of a verdictCase: to be done after its packet was read, before it is judged
}

type probeAnswer struct {
	peer    netip.Addr
	id, seq uint16
	size    int
}

func (r *rig) tap() *memPort       { return r.ports[TAP] }
func (r *rig) underlay() *memPort  { return r.ports[Underlay] }
func (r *rig) underlay6() *memPort { return r.ports[Underlay6] }

// withFlows gives the rig a flow table of another size.
func withFlows(t testing.TB, v4, v6 int) func(*Config) {
	return func(c *Config) {
		flows, err := conntrack.New(conntrack.Config{Flows4: v4, Flows6: v6})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { flows.Close() })
		c.Flows = flows
	}
}

// newRig returns a rig with published tables, for VXLAN. At the end of the test the ledger must balance, and the engine's port
// counters must be those that the ports counted themselves.
func newRig(t testing.TB, options ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t}
	r.now.Store(int64(time.Hour))
	for side := range r.ports {
		r.ports[side] = newMemPort(t)
	}
	codec, err := encap.NewVXLAN(1)
	if err != nil {
		t.Fatal(err)
	}
	flows, err := conntrack.New(conntrack.Config{Flows4: 4096, Flows6: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flows.Close() })
	c := Config{
		BusyPoll: 50 * time.Microsecond,
		Codec:    codec, Ports: []Ports{{r.tap(), r.underlay(), r.underlay6()}}, Flows: flows,
		Join:  packet.Joining{TCP: true, UDP: true},
		Clock: func() time.Duration { return time.Duration(r.now.Load()) },
		Probe: func(peer netip.Addr, id, seq uint16, size int, _ time.Duration) {
			r.probes = append(r.probes, probeAnswer{peer, id, seq, size})
		},
	}
	for _, change := range options {
		change(&c)
	}
	if r.engine, err = New(c); err != nil {
		t.Fatal(err)
	}
	r.w = r.engine.workers[0]
	pods := testPods()
	for _, p := range pods {
		port := newMemPort(t)
		r.pods = append(r.pods, port)
		if err := r.engine.SetPods([]PodPort{{p, []Port{port}}}); err != nil {
			t.Fatal(err)
		}
	}
	r.engine.Publish(testTablesWith(t, pods))
	t.Cleanup(func() {
		r.w.poller.close()
		checkConservation(t, r.w.snapshot(), r.ports)
		checkPods(t, r.w.snapshot().Ports[Pod], r.pods)
	})
	return r
}

// plainUDP makes the rig one of flannel's udp backend.
func plainUDP(c *Config) { c.Codec, c.DecrementTTL = encap.PlainUDP{}, true }

func (r *rig) port(side Side) *memPort {
	if side == Pod {
		return r.pods[0]
	}
	return r.ports[side]
}

// turn runs batches of one side until its port is empty.
func (r *rig) turn(side Side) {
	r.t.Helper()
	for {
		var n int
		var err error
		if side == Pod {
			n, err = r.w.serve(1)
		} else {
			n, err = r.w.turn(side)
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// send hands frames to one side and runs it until they are decided.
func (r *rig) send(side Side, frames ...memFrame) {
	r.t.Helper()
	r.port(side).put(frames...)
	r.turn(side)
}

// checkConservation is the end of every test of the engine.
func checkConservation(t testing.TB, c Counters, ports [numSides]*memPort) {
	t.Helper()
	if l := c.Ledger(); !l.Balanced() || l.Queued != 0 {
		t.Errorf("the ledger does not balance: %+v", l)
	}
	for side, p := range ports {
		got, want := c.Ports[side], p.counted
		want.SegmentsIn = got.SegmentsIn // the port does not parse; the ledger has judged these
		if got != want {
			t.Errorf("%s: counted %+v, the port itself %+v", Side(side), got, want)
		}
	}
}

var serialize = gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}

func build(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, serialize, l...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

// ipLayers returns the Ethernet and IP headers of a packet of either family; change may touch up the IPv4 one.
func ipLayers(src, dst packet.MAC, from, to string, proto layers.IPProtocol) (*layers.Ethernet, gopacket.SerializableLayer) {
	eth := &layers.Ethernet{SrcMAC: src[:], DstMAC: dst[:], EthernetType: layers.EthernetTypeIPv4}
	a, b := net.IP(addr(from).AsSlice()), net.IP(addr(to).AsSlice())
	if addr(from).Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
		return eth, &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: a, DstIP: b}
	}
	return eth, &layers.IPv4{Version: 4, TTL: 64, Flags: layers.IPv4DontFragment, Protocol: proto, SrcIP: a, DstIP: b}
}

// udpFrame returns an Ethernet frame with a UDP packet, DF set.
func udpFrame(t testing.TB, src, dst packet.MAC, from, to string, payload int) []byte {
	return udpFrameTo(t, src, dst, from, to, 5000, payload)
}

func udpFrameTo(t testing.TB, src, dst packet.MAC, from, to string, port, payload int) []byte {
	eth, ip := ipLayers(src, dst, from, to, layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: 4000, DstPort: layers.UDPPort(port)}
	udp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	return build(t, eth, ip, udp, gopacket.Payload(make([]byte, payload)))
}

// echoFrame returns an Ethernet frame with an ICMP or ICMPv6 echo message, identifier 7.
func echoFrame(t testing.TB, src, dst packet.MAC, from, to string, reply bool) []byte {
	eth, ip := ipLayers(src, dst, from, to, layers.IPProtocolICMPv4)
	payload := gopacket.Payload(make([]byte, 56))
	if addr(from).Is4() {
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if reply {
			kind = layers.ICMPv4TypeEchoReply
		}
		return build(t, eth, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: 7, Seq: 1}, payload)
	}
	ip6 := ip.(*layers.IPv6)
	ip6.NextHeader = layers.IPProtocolICMPv6
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if reply {
		kind = layers.ICMPv6TypeEchoReply
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	icmp.SetNetworkLayerForChecksum(ip6)
	return build(t, eth, ip6, icmp, &layers.ICMPv6Echo{Identifier: 7, SeqNumber: 1}, payload)
}

// portUnreachable returns an Ethernet frame with the ICMP error that a receiver makes of a UDP packet: quoted goes from
// the error's destination to its source.
func portUnreachable(t testing.TB, src, dst packet.MAC, quoted []byte) []byte {
	q := gopacket.NewPacket(quoted, layers.LayerTypeEthernet, gopacket.Default)
	if ip, ok := q.NetworkLayer().(*layers.IPv4); ok {
		eth, outer := ipLayers(src, dst, ip.DstIP.String(), ip.SrcIP.String(), layers.IPProtocolICMPv4)
		icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort)}
		return build(t, eth, outer, icmp, gopacket.Payload(quoted[14:42]))
	}
	ip := q.NetworkLayer().(*layers.IPv6)
	eth, outer := ipLayers(src, dst, ip.DstIP.String(), ip.SrcIP.String(), layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodePortUnreachable)}
	icmp.SetNetworkLayerForChecksum(outer.(*layers.IPv6))
	return build(t, eth, outer, icmp, gopacket.Payload(append(make([]byte, 4), quoted[14:]...)))
}

// solicitation returns a neighbour solicitation for target as Linux sends it.
func solicitation(t testing.TB, src, dst packet.MAC, from, target string) []byte {
	a := addr(target).As16()
	group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
	eth, ip := ipLayers(src, dst, from, group.String(), layers.IPProtocolICMPv6)
	ip.(*layers.IPv6).HopLimit = 255
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
	icmp.SetNetworkLayerForChecksum(ip.(*layers.IPv6))
	ns := &layers.ICMPv6NeighborSolicitation{TargetAddress: a[:]}
	if !addr(from).IsUnspecified() {
		ns.Options = layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: src[:]}}
	}
	return build(t, eth, ip, icmp, ns)
}

// tcpSuper returns an Ethernet frame with a TCP super-packet as a TAP hands it over, and its metadata.
func tcpSuper(t testing.TB, from, to string, payload, size int) memFrame {
	eth, ip := ipLayers(macA, gateA, from, to, layers.IPProtocolTCP)
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 5000, ACK: true, Window: 1000}
	tcp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	v := packet.VNet{Flags: packet.VNetNeedsCsum, GSOType: packet.GSOTCPv4, GSOSize: uint16(size), CsumStart: 34, CsumOffset: 16}
	if addr(from).Is6() {
		v.GSOType, v.CsumStart = packet.GSOTCPv6, 54
	}
	return memFrame{data: build(t, eth, ip, tcp, gopacket.Payload(make([]byte, payload))), vnet: v}
}

// vxlan wraps an Ethernet frame as node b sends it.
func vxlan(inner []byte) []byte { return append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...) }

// fromB is a datagram of node b with an inner UDP packet.
func fromB(t testing.TB, from, to string) memFrame {
	return wrapB(udpFrame(t, macB, macA, from, to, 64))
}

// wrapB is node b's datagram with an inner frame, over the underlay of the frame's family.
func wrapB(inner []byte) memFrame {
	m := memFrame{data: vxlan(inner), remote: nodeB}
	if inner[12] == 0x86 {
		m.remote = nodeB6
	}
	return m
}

// fragments cuts an Ethernet frame with an IPv4 packet at the given payload offsets, multiples of 8.
func fragments(frame []byte, id uint16, cuts ...int) [][]byte {
	var all [][]byte
	ip, payload := frame[14:34], frame[34:]
	for i, from := range append([]int{0}, cuts...) {
		to, more := len(payload), uint16(0)
		if i < len(cuts) {
			to, more = cuts[i], 0x2000
		}
		f := append(append(append([]byte(nil), frame[:14]...), ip...), payload[from:to]...)
		binary.BigEndian.PutUint16(f[16:], uint16(20+to-from))
		binary.BigEndian.PutUint16(f[18:], id)
		binary.BigEndian.PutUint16(f[20:], more|uint16(from/8))
		fixIPChecksum(f)
		all = append(all, f)
	}
	return all
}

func arpRequest(t testing.TB, from, to string) []byte {
	eth := &layers.Ethernet{SrcMAC: macA[:], DstMAC: []byte{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP}
	arp := &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
		SourceHwAddress: macA[:], SourceProtAddress: addr(from).AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: addr(to).AsSlice(),
	}
	return build(t, eth, arp)
}

func fixIPChecksum(frame []byte) {
	ip := frame[14:34]
	ip[10], ip[11] = 0, 0
	sum := packet.Sum(0).Add(ip).Checksum()
	ip[10], ip[11] = byte(sum>>8), byte(sum)
}
