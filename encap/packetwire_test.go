package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A decoded is an outer packet as gopacket reads it.
type decoded struct {
	eth      *layers.Ethernet
	src, dst netip.Addr
	tos, ttl uint8
	id       uint32
	label    uint32
	length   int // of the IP packet
	df, more bool
	fragment bool
	offset   int
	udp      *layers.UDP // nil in a later fragment
	data     []byte      // behind the UDP header, or behind the IP headers of a fragment
}

// decode reads a frame and checks its lengths and checksums.
func decode(t *testing.T, frame []byte) (d decoded) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true, SkipDecodeRecovery: true})
	d.eth = p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		d.src, _ = netip.AddrFromSlice(ip.SrcIP.To4())
		d.dst, _ = netip.AddrFromSlice(ip.DstIP.To4())
		d.tos, d.ttl, d.id, d.length = ip.TOS, ip.TTL, uint32(ip.Id), int(ip.Length)
		d.df, d.more, d.offset = ip.Flags&layers.IPv4DontFragment != 0, ip.Flags&layers.IPv4MoreFragments != 0, int(ip.FragOffset)*8
		d.data = ip.Payload
		if packet.Sum(0).Add(ip.Contents).Fold() != 0xffff {
			t.Errorf("wrong checksum of the IP header %x", ip.Contents)
		}
	case *layers.IPv6:
		d.src, _ = netip.AddrFromSlice(ip.SrcIP)
		d.dst, _ = netip.AddrFromSlice(ip.DstIP)
		d.tos, d.ttl, d.label, d.length = ip.TrafficClass, ip.HopLimit, ip.FlowLabel, 40+int(ip.Length)
		d.data = ip.Payload
		if fragment, ok := p.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment); ok {
			d.id, d.more, d.offset, d.data = fragment.Identification, fragment.MoreFragments, int(fragment.FragmentOffset)*8, fragment.Payload
			d.fragment = true
		}
	}
	d.fragment = d.fragment || d.more || d.offset > 0
	if d.length != len(frame)-packet.EthernetLen {
		t.Errorf("IP says %d bytes, the frame has %d", d.length, len(frame)-packet.EthernetLen)
	}
	if d.fragment {
		return d
	}
	d.udp = p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	checkUDP(t, d, d.data)
	d.data = d.udp.Payload
	return d
}

// checkUDP holds a UDP packet's length and checksum against what RFC 768 says, without the code under test.
func checkUDP(t *testing.T, d decoded, udp []byte) {
	t.Helper()
	if n := int(binary.BigEndian.Uint16(udp[4:])); n != len(udp) {
		t.Errorf("UDP says %d bytes, there are %d", n, len(udp))
	}
	sum := sumUDP(d, udp)
	if stored := binary.BigEndian.Uint16(udp[6:]); sum != 0xffff || stored == 0 {
		t.Errorf("UDP checksum %#x of %d bytes: the sum is %#x", stored, len(udp), sum)
	}
}

// sumUDP is the Internet checksum over pseudo-header and parts, by the book (RFC 1071).
func sumUDP(d decoded, parts ...[]byte) uint32 {
	udp := slices.Concat(parts...)
	sum, b := uint32(17+len(udp)), slices.Concat(d.src.AsSlice(), d.dst.AsSlice(), udp)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 != 0 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

// What is on a wire without offloads, packet by packet, as another decoder reads it.
func TestPacketOnTheWire(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		w.setOffloads(t, false)
		u := w.packet(t, 0, Config{})[0]
		tap := w.tap(t)
		out := packet.NewBatch(1 << 20)
		for i, tos := range []uint8{0, 1, 2, 3, 0xb8, 0xbb} {
			port := uint16(1000 + i)
			outgoing(t, out, flow{port, 80}.tcp(t, pattern(20001)), 1390, w.addr(1)).OuterTOS = tos
			outgoing(t, out, flow{port, 80}.udp(t, pattern(501)), 0, w.addr(1)).OuterTOS = tos
			outgoing(t, out, flow{port, 80}.udp(t, pattern(1402-8*i)), 0, w.addr(1)).OuterTOS = tos
		}
		want := wireOf(out)
		u.Write(out)
		checkSent(t, out)
		frames := w.tapped(t, tap)
		if len(frames) != len(want) {
			t.Fatalf("%d packets on the wire, want %d", len(frames), len(want))
		}
		n := 0
		for _, f := range out.Frames {
			for range f.Segments {
				d := decode(t, frames[n])
				w.checkOuter(t, d, f)
				if d.udp == nil || !bytes.Equal(d.data, want[n]) || d.fragment {
					t.Fatalf("packet %d is not the datagram", n)
				}
				if int(d.udp.DstPort) != wirePort || d.udp.SrcPort < firstPort {
					t.Errorf("ports %d to %d", d.udp.SrcPort, d.udp.DstPort)
				}
				n++
			}
		}
		checkIDs(t, w, frames)
	})
}

// checkOuter compares an outer header with what the frame asks for.
func (w *wireTest) checkOuter(t *testing.T, d decoded, f *packet.Frame) {
	t.Helper()
	if packet.MAC(d.eth.SrcMAC) != w.macs[0] || packet.MAC(d.eth.DstMAC) != w.macs[1] {
		t.Errorf("MACs %v to %v", d.eth.SrcMAC, d.eth.DstMAC)
	}
	if d.src != w.sites[0].addr || d.dst != w.sites[1].addr || d.tos != f.OuterTOS || d.ttl != 64 || d.df {
		t.Errorf("outer header %+v for TOS %#x", d, f.OuterTOS)
	}
	if d.dst.Is6() && d.label == 0 {
		t.Error("no flow label")
	}
}

// checkIDs demands that no two of the last 65,536 IPv4 packets have the same identification.
func checkIDs(t *testing.T, w *wireTest, frames [][]byte) {
	t.Helper()
	if w.sites[0].addr.Is6() {
		return
	}
	seen := map[uint32]bool{}
	for _, f := range frames {
		id := decode(t, f).id
		if seen[id] {
			t.Errorf("two packets have ID %d", id)
		}
		seen[id] = true
	}
}

// Datagrams larger than the path's MTU are on the wire in fragments that it carries; put together in a simple way they are what was
// sent, with a right checksum.
func TestPacketFragmentsOnTheWire(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		w.setOffloads(t, false)
		for _, mtu := range []int{1280, 1281, 1287, 1500} {
			t.Run(fmt.Sprintf("MTU %d", mtu), func(t *testing.T) { w.checkFragments(t, mtu) })
		}
	})
}

func (w *wireTest) checkFragments(t *testing.T, mtu int) {
	w.mtu = mtu
	u, tap, out := w.packet(t, 0, Config{})[0], w.tap(t), packet.NewBatch(1<<20)
	for i, n := range []int{1300, 1452, 1453, 5000, 65000} {
		outgoing(t, out, flow{uint16(i), 80}.udp(t, pattern(n)), 0, w.addr(1)).OuterTOS = 2
	}
	outgoing(t, out, flow{9, 80}.tcp(t, pattern(20001)), 1460, w.addr(1)).OuterTOS = 2
	want := wireOf(out)
	u.Write(out)
	checkSent(t, out)
	got := w.glue(t, w.tapped(t, tap), mtu, out.Frames[0])
	if len(got) != len(want) {
		t.Fatalf("%d datagrams, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("datagram %d of %d bytes is another", i, len(want[i]))
		}
	}
}

// glue puts fragments together that arrive in order.
func (w *wireTest) glue(t *testing.T, frames [][]byte, mtu int, like *packet.Frame) (datagrams [][]byte) {
	t.Helper()
	var whole []byte
	ids, last := map[uint32]bool{}, uint32(0)
	for _, frame := range frames {
		d := decode(t, frame)
		w.checkOuter(t, d, like)
		if d.length > mtu {
			t.Errorf("a packet of %d bytes on a path of %d", d.length, mtu)
		}
		if !d.fragment {
			datagrams = append(datagrams, d.data)
			continue
		}
		if d.offset == 0 {
			whole = nil
			if ids[d.id] {
				t.Errorf("ID %d is used twice", d.id)
			}
			ids[d.id], last = true, d.id
		}
		if d.offset != len(whole) || d.id != last || d.more && d.length+8 <= mtu {
			t.Errorf("fragment at %d behind %d bytes, ID %d behind %d, %d bytes on a path of %d", d.offset, len(whole), d.id, last, d.length, mtu)
		}
		if whole = append(whole, d.data...); !d.more {
			checkUDP(t, d, whole)
			datagrams = append(datagrams, whole[8:])
		}
	}
	return datagrams
}

// The source port is a hash of the inner flow, the same for both directions and for super-packets, over the whole range.
func TestPacketSourcePorts(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		a, b := w.packet(t, 0, Config{})[0], w.packet(t, 1, Config{})[0]
		out, in := packet.NewBatch(4<<20), packet.NewBatch(1<<21)
		const flows, perFlow = 500, 5
		for i := range uint16(flows) {
			client := 1000 + i
			outgoing(t, out, flow{client, 80}.tcp(t, pattern(100)), 0, w.addr(1))
			outgoing(t, out, flow{client, 80}.tcp(t, pattern(3000)), 1000, w.addr(1))
			outgoing(t, out, reverse(flow{client, 80}.tcp(t, pattern(50))), 0, w.addr(1))
		}
		a.Write(out)
		checkSent(t, out)
		byFlow, ports := map[uint16]uint16{}, map[uint16]bool{}
		for _, d := range receive(t, b, in, perFlow*flows) {
			l4 := d.data[8+14+20:]
			client := max(uint16(l4[0])<<8|uint16(l4[1]), uint16(l4[2])<<8|uint16(l4[3]))
			if port, ok := byFlow[client]; ok && port != d.remote.Port() {
				t.Fatalf("flow %d leaves from ports %d and %d", client, port, d.remote.Port())
			}
			byFlow[client] = d.remote.Port()
			ports[d.remote.Port()] = true
		}
		if len(byFlow) != flows || len(ports) < flows*9/10 {
			t.Errorf("%d flows leave from %d ports", len(byFlow), len(ports))
		}
	})
}

// With a fixed source everything leaves from the tunnel's port, as flannel's udp backend sends it.
func TestPacketFixedSource(t *testing.T) {
	w := newWire(t, "IPv4")
	a := w.packet(t, 0, Config{Framing: PlainUDP{}, FixedSource: true})[0]
	b := w.udp(t, 1, Config{Framing: PlainUDP{}, FixedSource: true})
	out, in := packet.NewBatch(4<<20), packet.NewBatch(1<<21)
	for i := range uint16(100) {
		outgoingPlain(t, out, flow{i, 80}.udp(t, pattern(100)), 0, w.addr(1))
		outgoingPlain(t, out, flow{i, 80}.tcp(t, pattern(20000)), 1000, w.addr(1))
		outgoingPlain(t, out, flow{i, 80}.udp(t, pattern(4000)), 0, w.addr(1))
	}
	want := wireOf(out)
	a.Write(out)
	checkSent(t, out)
	got := receive(t, b, in, len(want))
	checkArrived(t, got, want)
	for i, d := range got {
		if d.remote != w.addr(0) {
			t.Fatalf("datagram %d leaves from %v", i, d.remote)
		}
	}
}
