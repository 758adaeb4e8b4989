package dataplane

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/encap"
)

// The test network: this node is 10.0.1.0/24 at 192.0.2.1, node b is 10.0.2.0/24 at 192.0.2.2, node c is 10.0.3.0/24 at
// 192.0.2.3, and 10.0.0.0/8 belongs to nobody.
var (
	nodeB = netip.MustParseAddrPort("192.0.2.2:8472")
	nodeC = netip.MustParseAddrPort("192.0.2.3:8472")
	macA  = packet.MAC{2, 0, 0, 0, 0, 1}
	macB  = packet.MAC{2, 0, 0, 0, 0, 2}
	macC  = packet.MAC{2, 0, 0, 0, 0, 3}
	gateA = packet.MAC{2, 0, 0, 0, 1, 1}
)

const testMTU = 1450

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func testTables(t testing.TB) *tables.Set {
	t.Helper()
	b := &tables.Peer{Name: "b", Endpoint: nodeB, VTEP: macB, Sources: []netip.Prefix{prefix("10.0.2.0/24"), prefix("192.0.2.2/32")}}
	c := &tables.Peer{Name: "c", Endpoint: nodeC, VTEP: macC, Sources: []netip.Prefix{prefix("10.0.3.0/24"), prefix("192.0.2.3/32")}}
	node := tables.Node{VTEP: macA, Gateway: gateA, Engine: addr("10.0.1.254"), MTU: testMTU}
	set, err := tables.Compile(1, node, []*tables.Peer{b, c}, []tables.Route{
		{Prefix: prefix("10.0.0.0/8"), Kind: tables.Reject},
		{Prefix: prefix("10.0.1.0/24"), Kind: tables.Local},
		{Prefix: prefix("10.0.1.0/32"), Kind: tables.Host},
		{Prefix: prefix("10.0.2.0/24"), Kind: tables.ToPeer, Peer: b},
		{Prefix: prefix("10.0.3.0/24"), Kind: tables.ToPeer, Peer: c},
	})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A rig is one worker between two in-memory ports, driven by hand.
type rig struct {
	t             testing.TB
	engine        *Engine
	w             *worker
	tap, underlay *memPort
}

// newRig returns a rig with published tables. At the end of the test the ledger must balance, and the engine's port
// counters must be those that the ports counted themselves.
func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, tap: newMemPort(t), underlay: newMemPort(t)}
	codec, err := encap.NewVXLAN(1)
	if err != nil {
		t.Fatal(err)
	}
	if r.engine, err = New(codec, []Ports{{r.tap, r.underlay}}); err != nil {
		t.Fatal(err)
	}
	r.w = r.engine.workers[0]
	r.engine.Publish(testTables(t))
	t.Cleanup(func() {
		r.w.poller.close()
		checkConservation(t, r.w.snapshot(), r.tap, r.underlay)
	})
	return r
}

// turn runs batches of one side until its port is empty.
func (r *rig) turn(side Side) {
	r.t.Helper()
	for {
		n, err := r.w.turn(side)
		if err != nil {
			r.t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// checkConservation is the end of every test of the engine.
func checkConservation(t testing.TB, c Counters, tap, underlay *memPort) {
	t.Helper()
	if l := c.Ledger(); !l.Balanced() || l.Queued != 0 {
		t.Errorf("the ledger does not balance: %+v", l)
	}
	for side, p := range []*memPort{tap, underlay} {
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

// udpFrame returns an Ethernet frame with a UDP packet.
func udpFrame(t testing.TB, src, dst packet.MAC, from, to string, payload int) []byte {
	eth := &layers.Ethernet{SrcMAC: src[:], DstMAC: dst[:], EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP(addr(from).AsSlice()), DstIP: net.IP(addr(to).AsSlice())}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	udp.SetNetworkLayerForChecksum(ip)
	return build(t, eth, ip, udp, gopacket.Payload(make([]byte, payload)))
}

// tcpSuper returns an Ethernet frame with a TCP super-packet as a TAP hands it over, and its metadata.
func tcpSuper(t testing.TB, from, to string, payload, size int) memFrame {
	eth := &layers.Ethernet{SrcMAC: macA[:], DstMAC: gateA[:], EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP(addr(from).AsSlice()), DstIP: net.IP(addr(to).AsSlice())}
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 5000, ACK: true, Window: 1000}
	tcp.SetNetworkLayerForChecksum(ip)
	return memFrame{
		data: build(t, eth, ip, tcp, gopacket.Payload(make([]byte, payload))),
		vnet: packet.VNet{Flags: packet.VNetNeedsCsum, GSOType: packet.GSOTCPv4, GSOSize: uint16(size), CsumStart: 34, CsumOffset: 16},
	}
}

// vxlan wraps an Ethernet frame as node b sends it.
func vxlan(inner []byte) []byte { return append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...) }

// fromB is a datagram of node b with an inner UDP packet.
func fromB(t testing.TB, from, to string) memFrame {
	return memFrame{data: vxlan(udpFrame(t, macB, macA, from, to, 64)), remote: nodeB}
}

func arpRequest(t testing.TB, from, to string) []byte {
	eth := &layers.Ethernet{SrcMAC: macA[:], DstMAC: []byte{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP}
	arp := &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
		SourceHwAddress: macA[:], SourceProtAddress: addr(from).AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: addr(to).AsSlice(),
	}
	return build(t, eth, arp)
}
