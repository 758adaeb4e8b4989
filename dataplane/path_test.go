package dataplane

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A verdictCase is one packet and the one verdict that it must get.
type verdictCase struct {
	name     string
	side     Side
	frame    func(t testing.TB) memFrame
	want     packet.Verdict
	segments int        // wire segments that the packet stands for
	prepare  func(*rig) // before the packet is read
}

// edit returns node b's good datagram with one change.
func edit(f func(b []byte)) func(testing.TB) memFrame {
	return func(t testing.TB) memFrame {
		m := fromB(t, "10.0.2.9", "10.0.1.9")
		f(m.data)
		return m
	}
}

func plain(data func(t testing.TB) []byte) func(testing.TB) memFrame {
	return func(t testing.TB) memFrame { return memFrame{data: data(t)} }
}

func outTo(dst string) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, "10.0.1.9", dst, 64) })
}

// inFrom is node b's datagram from and to the given addresses.
func inFrom(from, to string) func(testing.TB) memFrame {
	return func(t testing.TB) memFrame { return fromB(t, from, to) }
}

const (
	vx  = 8       // inner Ethernet header in a datagram
	vip = vx + 14 // inner IP header
)

var verdictCases = []verdictCase{
	{"to a peer", TAP, outTo("10.0.2.9"), packet.Encapsulated, 1, nil},
	{"super-packet to a peer", TAP, func(t testing.TB) memFrame { return tcpSuper(t, "10.0.1.9", "10.0.2.9", 5000, 1400) }, packet.Encapsulated, 4, nil},
	{"hairpin to a local pod", TAP, outTo("10.0.1.7"), packet.Delivered, 1, nil},
	{"hairpin to the node", TAP, outTo("10.0.1.0"), packet.Delivered, 1, nil},
	{"from a peer", Underlay, inFrom("10.0.2.9", "10.0.1.9"), packet.Delivered, 1, nil},
	{"from a peer's own address", Underlay, inFrom("192.0.2.2", "10.0.1.9"), packet.Delivered, 1, nil},
	{"from a peer to the node", Underlay, inFrom("10.0.2.0", "10.0.1.0"), packet.Delivered, 1, nil},
	{"uncut super-packet of a kernel peer", Underlay, kernelSuper, packet.Delivered, 4, nil},
	{"ARP for the engine", TAP, plain(func(t testing.TB) []byte { return arpRequest(t, "10.0.1.0", "10.0.1.254") }), packet.ARPAnswered, 1, nil},
	{"ARP for a remote pod", TAP, plain(func(t testing.TB) []byte { return arpRequest(t, "10.0.1.0", "10.0.2.9") }), packet.ARPAnswered, 1, nil},

	{"no tables", TAP, outTo("10.0.2.9"), packet.DropNoTables, 1, func(r *rig) { r.engine.tables.Store(nil) }},
	{"cut by the read", Underlay, func(t testing.TB) memFrame {
		m := fromB(t, "10.0.2.9", "10.0.1.9")
		m.truncated = true
		return m
	}, packet.DropReadTruncated, 1, nil},
	{"IP longer than the frame", TAP, plain(func(t testing.TB) []byte { return udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)[:60] }), packet.DropFrameTruncated, 1, nil},
	{"EtherType", TAP, plain(func(t testing.TB) []byte {
		b := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)
		copy(b[12:], []byte{0x88, 0xcc})
		return b
	}), packet.DropEtherType, 1, nil},
	{"ARP for a local pod", TAP, plain(func(t testing.TB) []byte { return arpRequest(t, "10.0.1.0", "10.0.1.9") }), packet.DropARP, 1, nil},
	{"ARP probe for a remote pod", TAP, plain(func(t testing.TB) []byte { return arpRequest(t, "0.0.0.0", "10.0.2.9") }), packet.DropARP, 1, nil},
	{"ARP through the tunnel", Underlay, func(t testing.TB) memFrame {
		b := arpRequest(t, "10.0.2.0", "10.0.1.9")
		copy(b, macA[:])
		copy(b[6:], macB[:])
		return memFrame{data: vxlan(b), remote: nodeB}
	}, packet.DropARP, 1, nil},
	{"IP version", Underlay, edit(func(b []byte) { b[vip] = 0x55 }), packet.DropIPHeader, 1, nil},
	{"IP checksum", Underlay, edit(func(b []byte) { b[vip+10]++ }), packet.DropIPChecksum, 1, nil},
	{"GSO type against protocol", TAP, func(t testing.TB) memFrame {
		m := tcpSuper(t, "10.0.1.9", "10.0.2.9", 5000, 1400)
		m.vnet.GSOType = packet.GSOUDPL4
		return m
	}, packet.DropOffload, 1, nil},
	{"multicast", TAP, outTo("224.0.0.251"), packet.DropMulticast, 1, nil},
	{"broadcast", TAP, outTo("255.255.255.255"), packet.DropMulticast, 1, nil},

	{"unknown node", Underlay, func(t testing.TB) memFrame {
		m := fromB(t, "10.0.2.9", "10.0.1.9")
		m.remote = netip.MustParseAddrPort("192.0.2.66:8472")
		return m
	}, packet.DropUnknownPeer, 1, nil},
	{"datagram of 21 bytes", Underlay, func(testing.TB) memFrame { return memFrame{data: vxlan(make([]byte, 13)), remote: nodeB} }, packet.DropVXLANTruncated, 1, nil},
	{"no I flag", Underlay, edit(func(b []byte) { b[0] = 0 }), packet.DropVXLANFlags, 1, nil},
	{"other VNI", Underlay, edit(func(b []byte) { b[6] = 2 }), packet.DropVNI, 1, nil},
	{"other MAC", Underlay, edit(func(b []byte) { b[vx+5]++ }), packet.DropOtherMAC, 1, nil},
	{"own MAC", Underlay, edit(func(b []byte) { copy(b[vx+6:], macA[:]) }), packet.DropOwnMAC, 1, nil},
	{"another node's pod as source", Underlay, inFrom("10.0.3.9", "10.0.1.9"), packet.DropInnerSource, 1, nil},
	{"own pod as source", Underlay, inFrom("10.0.1.7", "10.0.1.9"), packet.DropInnerSource, 1, nil},
	{"outside source", Underlay, inFrom("198.51.100.1", "10.0.1.9"), packet.DropInnerSource, 1, nil},
	{"congestion mark on a Not-ECT flow", Underlay, func(t testing.TB) memFrame {
		m := fromB(t, "10.0.2.9", "10.0.1.9")
		m.tos = packet.ECNCE
		return m
	}, packet.DropECN, 1, nil},
	{"inner destination on another node", Underlay, inFrom("10.0.2.9", "10.0.3.9"), packet.DropInnerDestination, 1, nil},
	{"inner destination outside", Underlay, inFrom("10.0.2.9", "198.51.100.1"), packet.DropInnerDestination, 1, nil},

	{"no route", TAP, outTo("198.51.100.1"), packet.DropNoRoute, 1, nil},
	{"nobody's subnet", TAP, outTo("10.0.9.9"), packet.DropReject, 1, nil},
	{"TAP refuses", Underlay, inFrom("10.0.2.9", "10.0.1.9"), packet.DropTAPWrite, 1, func(r *rig) { r.tap().refuse = 1 }},
	{"underlay refuses", TAP, func(t testing.TB) memFrame { return tcpSuper(t, "10.0.1.9", "10.0.2.9", 5000, 1400) }, packet.DropUnderlaySend, 4, func(r *rig) { r.underlay().refuse = 1 }},
	{"underlay knows no next hop", TAP, func(t testing.TB) memFrame { return tcpSuper(t, "10.0.1.9", "10.0.2.9", 5000, 1400) }, packet.DropNextHop, 4, func(r *rig) { r.underlay().refuse, r.underlay().reason = 1, packet.DropNextHop }},
}

// kernelSuper is what a kernel VXLAN peer on the same machine sends: 4,200 bytes of TCP in one datagram, with the pseudo-header
// sum alone in the checksum field.
func kernelSuper(t testing.TB) memFrame {
	m := tcpSuper(t, "10.0.2.9", "10.0.1.9", 4200, 1400)
	copy(m.data, macA[:])
	copy(m.data[6:], macB[:])
	ip := m.data[14:]
	sum := uint32(6 + 20 + 4200)
	for i := 12; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	ip[20+16], ip[20+17] = byte(sum>>8), byte(sum)
	return memFrame{data: vxlan(m.data), remote: nodeB}
}

// TestVerdicts sends each packet alone and demands its verdict, counted once for each segment, and nothing else.
func TestVerdicts(t *testing.T) {
	for _, c := range verdictCases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			if c.prepare != nil {
				c.prepare(r)
			}
			before := r.w.count
			r.send(c.side, c.frame(t))
			if r.after != nil {
				r.after()
			}
			var want [packet.NumVerdicts]uint64
			want[c.want] = uint64(c.segments)
			if v := madeFor(c.side, c.want); v != packet.None {
				want[v]++
			}
			got := r.w.count.Verdicts
			for v, n := range before.Verdicts {
				got[v] -= n
			}
			if got != want {
				t.Errorf("verdicts %v, want %v", verdictText(got), verdictText(want))
			}
			if got := r.w.count.Ports[c.side].SegmentsIn - before.Ports[c.side].SegmentsIn; got != uint64(c.segments) {
				t.Errorf("%d segments in, want %d", got, c.segments)
			}
		})
	}
}

// madeFor is what becomes of the packet that the engine makes of one with this verdict: an answer, or an ICMP error.
func madeFor(side Side, v packet.Verdict) packet.Verdict {
	switch v {
	case packet.ARPAnswered, packet.NDAnswered, packet.EchoAnswered, packet.DropNoRoute, packet.DropReject, packet.DropTTL, packet.DropTooBig:
		return side.sent()
	}
	return packet.None
}

func verdictText(counts [packet.NumVerdicts]uint64) map[string]uint64 {
	m := map[string]uint64{}
	for v, n := range counts {
		if n > 0 {
			m[packet.Verdict(v).String()] = n
		}
	}
	return m
}

// TestVerdictsComplete demands a case for every verdict that there is.
func TestVerdictsComplete(t *testing.T) {
	covered := map[packet.Verdict]bool{}
	for _, c := range verdictCases {
		covered[c.want] = true
	}
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		if !covered[v] {
			t.Errorf("no case ends with %s", v)
		}
	}
}

// TestEncapsulatedBytes holds a whole datagram against gopacket's decoder.
func TestEncapsulatedBytes(t *testing.T) {
	r := newRig(t)
	inner := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)
	inner[15] |= packet.ECNECT0
	fixIPChecksum(inner)
	r.tap().put(memFrame{data: inner})
	r.turn(TAP)
	out := r.underlay().taken()
	if len(out) != 1 || out[0].remote != nodeB || out[0].tos != packet.ECNECT0 {
		t.Fatalf("sent %+v, want one datagram to %s with ECT(0)", out, nodeB)
	}
	p := gopacket.NewPacket(out[0].data, layers.LayerTypeVXLAN, gopacket.Default)
	v := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
	eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if !v.ValidIDFlag || v.VNI != 1 || !bytes.Equal(eth.DstMAC, macB[:]) || !bytes.Equal(eth.SrcMAC, macA[:]) {
		t.Errorf("decoded %+v %+v", v, eth)
	}
	if !bytes.Equal(out[0].data[vip:], inner[14:]) {
		t.Error("the inner packet was changed")
	}
}

// TestEncapsulatedChecksum demands that a checksum which the pod's kernel left to the device is finished on the wire: a
// receiver behind a real network has no other.
func TestEncapsulatedChecksum(t *testing.T) {
	r := newRig(t)
	want := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)
	partial := bytes.Clone(want)
	pseudo := packet.Sum(0).Add(want[26:34]).AddUint16(packet.ProtoUDP).AddUint16(8 + 64).Fold()
	partial[40], partial[41] = byte(pseudo>>8), byte(pseudo)
	r.tap().put(memFrame{data: partial, vnet: packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 6}})
	r.turn(TAP)
	out := r.underlay().taken()
	if len(out) != 1 || !bytes.Equal(out[0].data[vip:], want[14:]) {
		t.Errorf("sent %v, want the inner packet %v", out, want[14:])
	}
}

// TestARPReply holds the engine's answer against gopacket's decoder.
func TestARPReply(t *testing.T) {
	r := newRig(t)
	r.tap().put(memFrame{data: arpRequest(t, "10.0.1.0", "10.0.1.254")})
	r.turn(TAP)
	out := r.tap().taken()
	if len(out) != 1 {
		t.Fatalf("%d frames, want the reply", len(out))
	}
	p := gopacket.NewPacket(out[0].data, layers.LayerTypeEthernet, gopacket.Default)
	eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	arp := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if !bytes.Equal(eth.DstMAC, macA[:]) || !bytes.Equal(eth.SrcMAC, gateA[:]) || arp.Operation != layers.ARPReply ||
		!bytes.Equal(arp.SourceHwAddress, gateA[:]) || !bytes.Equal(arp.SourceProtAddress, addr("10.0.1.254").AsSlice()) ||
		!bytes.Equal(arp.DstHwAddress, macA[:]) || !bytes.Equal(arp.DstProtAddress, addr("10.0.1.0").AsSlice()) {
		t.Errorf("reply %+v %+v", eth, arp)
	}
}
