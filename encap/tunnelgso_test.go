package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

const tunnelTAP = "tulle-gso"

// tunnelGSO makes the way for whole super-packets at site 0.
func (w *wireTest) tunnelGSO(t *testing.T) (*TunnelGSO, *tap.Tunnel) {
	t.Helper()
	g := &TunnelGSO{NextHops: new(NextHops)}
	g.NextHops.Publish(w.hops(0))
	var device *tap.Tunnel
	w.in(t, 0, func() {
		var err error
		if device, err = tap.OpenTunnel(tunnelTAP, 1); err != nil {
			t.Skip(err) // Linux before 6.17
		}
		t.Cleanup(func() { device.Close() })
		w.redirect(t)
	})
	g.Queues = device.Files()
	return g, device
}

func (w *wireTest) redirect(t *testing.T) {
	t.Helper()
	if _, err := (control.Tunnel{TAP: tunnelTAP, Link: w.sites[0].name}).Apply(); err != nil {
		t.Fatal(err)
	}
}

// senders opens one underlay of each kind after the other, with whole super-packets.
func (w *wireTest) senders(t *testing.T, g *TunnelGSO, test func(*testing.T, sendingPort)) {
	t.Run("udp", func(t *testing.T) { test(t, w.udp(t, 0, Config{TunnelGSO: g})) })
	t.Run("packet", func(t *testing.T) { test(t, w.packet(t, 0, Config{TunnelGSO: g})[0]) })
}

type sendingPort interface {
	Write(*packet.Batch) error
	SourcePort(*packet.Frame) uint16
	Fallbacks() uint64
	Offloads() []string
}

// randomSuper appends a super-packet as a TAP hands it over, its checksum left to do, of a random kind and with random TCP flags.
func randomSuper(t *testing.T, b *packet.Batch, to netip.AddrPort, flags uint8, total int) *packet.Frame {
	t.Helper()
	v6, udp := rand.IntN(2) == 0, rand.IntN(4) == 0
	data, vnet := superPacket(t, v6, udp, flags, total)
	f := appendFrame(b, data)
	f.VNet = vnet
	if v := f.Parse(); v != packet.None {
		t.Fatalf("Parse: %v", v)
	}
	field := f.L4Bytes()[vnet.CsumOffset:]
	binary.BigEndian.PutUint16(field, pseudoSum(f))
	f.Remote, f.OuterTOS = to, []uint8{0, 2, 0xb8}[rand.IntN(3)]
	if v := codec(t, 1).Encap(f); v != packet.None {
		t.Fatalf("Encap: %v", v)
	}
	return f
}

// pseudoSum is the folded sum of the pseudo-header of the inner packet, by the book.
func pseudoSum(f *packet.Frame) uint16 {
	b := slices.Concat(f.Src.AsSlice(), f.Dst.AsSlice(), []byte{0, f.Proto})
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.L4Bytes())))
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return uint16(sum>>16 + sum&0xffff)
}

func superPacket(t *testing.T, v6, udp bool, flags uint8, total int) ([]byte, packet.VNet) {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	vnet := packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: packet.GSOTCPv4, GSOSize: uint16(500 + rand.IntN(800))}
	var l4 l4Layer = &layers.TCP{
		SrcPort: layers.TCPPort(rand.Uint32()), DstPort: 80, Seq: rand.Uint32(), Ack: rand.Uint32(), Window: uint16(rand.Uint32()),
		ACK: true, FIN: flags&1 != 0, PSH: flags&8 != 0, ECE: flags&0x40 != 0, CWR: flags&0x80 != 0,
		Options: []layers.TCPOption{{OptionType: 8, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}, {OptionType: 1}, {OptionType: 1}},
	}
	proto := layers.IPProtocolTCP
	if udp {
		l4, proto = &layers.UDP{SrcPort: layers.UDPPort(rand.Uint32()), DstPort: 53}, layers.IPProtocolUDP
		vnet.GSOType, vnet.CsumOffset = packet.GSOUDPL4, 6
	}
	var ip gopacket.SerializableLayer
	if v6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		six := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: net.ParseIP("fd00:1::2"), DstIP: net.ParseIP("fd00:2::2")}
		vnet.CsumStart = 54
		if !udp {
			vnet.GSOType = packet.GSOTCPv6
		}
		l4.SetNetworkLayerForChecksum(six)
		ip = six
	} else {
		four := &layers.IPv4{Version: 4, Id: uint16(rand.Uint32()), Flags: layers.IPv4DontFragment, TTL: 64, Protocol: proto, SrcIP: []byte{10, 1, 0, 2}, DstIP: []byte{10, 2, 0, 2}}
		l4.SetNetworkLayerForChecksum(four)
		ip = four
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, eth, ip, l4, gopacket.Payload(pattern(total))); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), vnet
}

// Whoever cuts what left whole, it is on the wire what the underlay would have sent itself, byte by byte behind the outer headers.
func TestTunnelGSOOnTheWire(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		w.setOffloads(t, false)
		w.setFeature(t, 0, "tx-udp_tnl-segmentation", false)
		w.setFeature(t, 0, "tx-udp_tnl-csum-segmentation", false)
		g, _ := w.tunnelGSO(t)
		w.senders(t, g, func(t *testing.T, u sendingPort) {
			fd := w.tap(t)
			out := packet.NewBatch(4 << 20)
			for _, flags := range []uint8{0, 1, 8, 9, 0x40, 0xc8} {
				for range 4 {
					randomSuper(t, out, w.addr(1), flags, 2000+rand.IntN(40000))
				}
				outgoing(t, out, flow{7, 80}.udp(t, pattern(501)), 0, w.addr(1)) // in between, by the socket
			}
			checkTunnelled(t, w, u, out, fd)
			if n := u.Fallbacks(); n != 0 {
				t.Errorf("%d fallbacks", n)
			}
		})
	})
}

// checkTunnelled writes the batch and holds what the wire has seen against what the underlay itself would have cut, flow by flow: in
// order, with the outer headers right.
func checkTunnelled(t *testing.T, w *wireTest, u sendingPort, out *packet.Batch, fd int) {
	t.Helper()
	type datagram struct {
		port uint16
		tos  uint8
		data string
	}
	var want, got []datagram
	for _, f := range out.Frames {
		for _, b := range wire(f) {
			want = append(want, datagram{u.SourcePort(f), f.OuterTOS, string(b)})
		}
	}
	u.Write(out)
	checkSent(t, out)
	for _, frame := range w.tapped(t, fd) {
		d := decode(t, frame)
		if d.src != w.sites[0].addr || d.dst != w.sites[1].addr || d.df || d.fragment || d.ttl != outerTTL {
			t.Fatalf("outer packet %v to %v, DF %v, fragment %v, TTL %d", d.src, d.dst, d.df, d.fragment, d.ttl)
		}
		got = append(got, datagram{uint16(d.udp.SrcPort), d.tos, string(d.data)})
	}
	byPort := func(a, b datagram) int { return int(a.port) - int(b.port) } // sockets may overtake each other, flows keep their order
	slices.SortStableFunc(want, byPort)
	slices.SortStableFunc(got, byPort)
	if len(got) != len(want) {
		t.Fatalf("%d datagrams on the wire, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("datagram %d: port %d, TOS %#x\n%x\nwant port %d, TOS %#x\n%x", i, got[i].port, got[i].tos, got[i].data[:100], want[i].port, want[i].tos, want[i].data[:100])
		}
	}
}

// A peer on the same machine gets the super-packet as it was.
func TestTunnelGSOUncut(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		g, _ := w.tunnelGSO(t)
		receiver := w.udp(t, 1, Config{})
		w.senders(t, g, func(t *testing.T, u sendingPort) {
			for range 20 {
				out, in := packet.NewBatch(1<<20), packet.NewBatch(2<<20)
				f := randomSuper(t, out, w.addr(1), 8, 3000+rand.IntN(60000))
				u.Write(out)
				checkSent(t, out)
				fds := []unix.PollFd{{Fd: int32(receiver.FD()), Events: unix.POLLIN}}
				unix.Poll(fds, 1000)
				if n, err := receiver.Read(in); n != 1 || err != nil {
					t.Fatalf("%d frames: %v", n, err)
				}
				got := in.Frames[0]
				if !bytes.Equal(got.Bytes(), f.Bytes()) || got.OuterTOS != f.OuterTOS {
					t.Fatalf("got %d bytes, TOS %#x:\n%x\nwant %d, TOS %#x:\n%x", got.Len(), got.OuterTOS, got.Bytes()[:100], f.Len(), f.OuterTOS, f.Bytes()[:100])
				}
				checkAdopted(t, got, f)
			}
		})
	})
}

// checkAdopted does what the engine does with what came uncut, and compares the offload metadata.
func checkAdopted(t *testing.T, got, sent *packet.Frame) {
	t.Helper()
	if v := codec(t, 1).Decap(got); v != packet.None {
		t.Fatalf("Decap: %v", v)
	}
	if v := got.Parse(); v != packet.None {
		t.Fatalf("Parse: %v", v)
	}
	if v := got.AdoptOffload(1450, 1450, got.SegmentHint); v != packet.None {
		t.Fatalf("AdoptOffload: %v", v)
	}
	sameCut := got.VNet.GSOSize == sent.VNet.GSOSize || sent.Proto == packet.ProtoTCP // of which any cut will do
	if got.VNet.GSOType != sent.VNet.GSOType || !got.VNet.NeedsCsum() || !sameCut {
		t.Errorf("adopted as %+v, sent as %+v", got.VNet, sent.VNet)
	}
}

// Each datagram has an identification of its own: it may become fragments on its way.
func TestTunnelGSOIdentification(t *testing.T) {
	w := newWire(t, "IPv4")
	w.setOffloads(t, false)
	g, _ := w.tunnelGSO(t)
	u, fd, out := w.udp(t, 0, Config{TunnelGSO: g}), w.tap(t), packet.NewBatch(1<<20)
	for range 3 {
		randomSuper(t, out, w.addr(1), 0, 20000)
	}
	u.Write(out)
	frames := w.tapped(t, fd)
	first := decode(t, frames[0]).id
	for i, frame := range frames {
		if id := decode(t, frame).id; id != uint32(uint16(first+uint32(i))) {
			t.Errorf("datagram %d has the identification %d, the first one %d", i, id, first)
		}
	}
}

// What cannot leave whole leaves in segments, and on the wire it is the same.
func TestTunnelGSOFallback(t *testing.T) {
	w := newWire(t, "IPv4")
	w.setOffloads(t, false)
	g, device := w.tunnelGSO(t)
	u := w.udp(t, 0, Config{TunnelGSO: g})
	fd := w.tap(t)
	send := func(total int, takes bool, fallbacks uint64) {
		t.Helper()
		before := u.Fallbacks()
		out := packet.NewBatch(1 << 20)
		f := randomSuper(t, out, w.addr(1), 0, total)
		u.tunnel.load()
		if _, ok := u.tunnel.takes(f); ok != takes {
			t.Errorf("takes %d bytes: %v, want %v", f.Len(), !takes, takes)
		}
		checkTunnelled(t, w, u, out, fd)
		if n := u.Fallbacks() - before; n != fallbacks {
			t.Errorf("%d fallbacks, want %d", n, fallbacks)
		}
	}
	g.NextHops.Publish(nil)
	send(20000, false, 0) // nobody knows the neighbour yet
	hops := w.hops(0)
	for addr, hop := range hops {
		hop.MTU = 400
		hops[addr] = hop
	}
	g.NextHops.Publish(hops)
	send(20000, false, 0) // its segments do not fit the path: the socket's kernel makes fragments where it must
	g.NextHops.Publish(w.hops(0))
	send(65480, false, 0) // with the outer headers longer than IP can say
	send(20000, true, 0)
	w.in(t, 0, func() {
		link, err := netlink.LinkByName(tunnelTAP)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(link); err != nil {
			t.Fatal(err)
		}
		send(20000, true, 1)
		if restored, err := device.Restore(); !restored || err != nil {
			t.Fatalf("Restore: %v, %v", restored, err)
		}
		w.redirect(t)
	})
	send(20000, true, 0)
	if restored, err := device.Restore(); restored || err != nil {
		t.Errorf("Restore of a TAP that is there: %v, %v", restored, err)
	}
	// A kernel that does not know such headers.
	if err := unix.IoctlSetPointerInt(g.Queues[0], unix.TUNSETVNETHDRSZ, packet.VNetLen); err != nil {
		t.Fatal(err)
	}
	send(20000, true, 1)
	send(20000, false, 0)
	if slices.Contains(u.Offloads(), "udp_tunnel_gso") {
		t.Errorf("offloads %v after the kernel refused one", u.Offloads())
	}
}
