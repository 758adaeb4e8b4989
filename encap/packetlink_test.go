package encap

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Several workers share the flows, each flow at one of them, fragments too; nothing comes twice.
func TestPacketWorkers(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		a, group := w.packet(t, 0, Config{})[0], w.packet(t, 1, Config{Workers: 3})
		out, in := packet.NewBatch(4<<20), packet.NewBatch(1<<21)
		for i := range uint16(300) {
			outgoing(t, out, flow{i, 80}.udp(t, pattern(100)), 0, w.addr(1))
			outgoing(t, out, flow{i, 80}.tcp(t, pattern(3000)), 1000, w.addr(1))
		}
		outgoing(t, out, flow{1, 80}.udp(t, pattern(5000)), 0, w.addr(1))
		want := len(wireOf(out))
		a.Write(out)
		checkSent(t, out)
		owner, total := map[uint16]int{}, 0
		for i, u := range group {
			n := 0
			for pending, _, _ := u.QueueDepth(); pending > 0; pending, _, _ = u.QueueDepth() {
				in.Reset()
				u.Read(in)
				for _, f := range in.Frames {
					n++
					if f.Len() > 4000 {
						continue // it was in fragments
					}
					if other, ok := owner[f.Remote.Port()]; ok && other != i {
						t.Errorf("datagrams from port %d arrive at workers %d and %d", f.Remote.Port(), other, i)
					}
					owner[f.Remote.Port()] = i
				}
			}
			if total += n; n < want/6 {
				t.Errorf("worker %d got %d of %d datagrams", i, n, want)
			}
		}
		if total != want {
			t.Errorf("%d datagrams arrived, want %d", total, want)
		}
	})
}

// A kernel that refuses GSO gets segments, and is not asked again.
func TestPacketFallback(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		a, b := w.packet(t, 0, Config{})[0], w.packet(t, 1, Config{})[0]
		a.gsoType = 0x55 // one that the kernel does not know, as UDP_L4 before Linux 6.2
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		write := func() {
			out.Reset()
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(10)), 0, w.addr(1))
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(60000)), 1390, w.addr(1)).OuterTOS = 1
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(20000)), 100, w.addr(1)) // four messages
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(11)), 0, w.addr(1))
			want := wireOf(out)
			a.Write(out)
			checkSent(t, out)
			checkArrived(t, receive(t, b, in, len(want)), want)
		}
		write()
		if n := a.Fallbacks(); n != 5 {
			t.Errorf("%d fallbacks, want one for each of 5 messages", n)
		}
		if slices.Contains(a.Offloads(), "udp_l4_gso") {
			t.Errorf("offloads %v after a refusal", a.Offloads())
		}
		write()
		if n := a.Fallbacks(); n != 5 {
			t.Errorf("%d fallbacks: GSO is tried again", n)
		}
	})
}

// Without a next hop nothing is sent, and the frame says why.
func TestPacketNextHop(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		a, b := w.packet(t, 0, Config{})[0], w.packet(t, 1, Config{})[0]
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		unknown := netip.AddrPortFrom(w.sites[1].addr.Next(), wirePort)
		other := wireSites["IPv4"][1]
		if w.sites[0].addr.Is4() {
			other = wireSites["IPv6"][1]
		}
		for _, to := range []netip.AddrPort{w.addr(1), unknown, netip.AddrPortFrom(other, wirePort), netip.AddrPortFrom(w.sites[1].addr, 0), {}, w.addr(1)} {
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(5000)), 1000, to)
		}
		want := append(wire(out.Frames[0]), wire(out.Frames[5])...)
		a.Write(out)
		checkRefused(t, out.Frames[1:5])
		for i, v := range []packet.Verdict{0, packet.DropNextHop, 0, 0, 0, 0} {
			if out.Frames[i].RefusedAs != v {
				t.Errorf("frame %d is refused as %v, want %v", i, out.Frames[i].RefusedAs, v)
			}
		}
		checkArrived(t, receive(t, b, in, len(want)), want)
		a.nextHops.Publish(nil)
		a.Write(out)
		checkRefused(t, out.Frames)
	})
}

// A link that goes down and up, or is removed and made again, takes nothing with it but the packets of that time.
func TestPacketLink(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		a, b := w.packet(t, 0, Config{Workers: 2})[0], w.packet(t, 1, Config{})[0]
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		outgoing(t, out, flow{1, 2}.tcp(t, pattern(5000)), 1000, w.addr(1))
		want := wireOf(out)
		send := func() {
			t.Helper()
			a.Write(out)
			checkSent(t, out)
			checkArrived(t, receive(t, b, in, len(want)), want)
		}
		refused := func() {
			t.Helper()
			a.Write(out)
			checkRefused(t, out.Frames)
			for _, u := range []*PacketUnderlay{a, b} {
				for range 3 {
					in.Reset()
					if n, err := u.Read(in); n != 0 || err != nil {
						t.Fatalf("Read without a link: %d, %v", n, err)
					}
				}
			}
		}
		send()
		w.in(t, 0, func() { netlink.LinkSetDown(w.link(t, 0)) })
		refused()
		w.in(t, 0, func() { netlink.LinkSetUp(w.link(t, 0)) })
		send()
		w.in(t, 0, func() { netlink.LinkDel(w.link(t, 0)) })
		refused()
		w.remake(t)
		refused() // not before Rebind
		for i, u := range []*PacketUnderlay{a, b} {
			w.in(t, i, func() {
				if err := u.Rebind(w.link(t, i).Attrs().Index); err != nil {
					t.Fatal(err)
				}
			})
		}
		send()
		w.in(t, 0, func() {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Rebind(lo.Attrs().Index); err == nil {
				t.Error("a link that is no Ethernet is taken")
			}
		})
	})
}

// remake makes the veth again, with the MACs that it had, and up.
func (w *wireTest) remake(t *testing.T) {
	t.Helper()
	w.in(t, 0, func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: w.sites[0].name, HardwareAddr: w.macs[0][:]},
			PeerName: w.sites[1].name, PeerHardwareAddr: w.macs[1][:], PeerNamespace: netlink.NsFd(w.spaces[1])}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
	})
	for _, i := range []int{1, 0} {
		w.in(t, i, func() { addLocal(t, w.link(t, i), w.sites[i].addr) })
	}
}

// Nobody else gets the port, and what comes to it is answered by nobody.
func TestPacketGuard(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		before := descriptors(t)
		c := PacketConfig{Config: Config{Local: w.addr(1), Framing: codec(t, 1), Workers: 2}, NextHops: new(NextHops)}
		w.in(t, 1, func() {
			c.Link = w.link(t, 1).Attrs().Index
			all, err := OpenPacket(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := OpenPacket(c); err == nil {
				t.Error("a second group on the port")
			}
			for _, u := range all {
				u.Close()
			}
			c.Link = 1 // lo
			if _, err := OpenPacket(c); err == nil {
				t.Error("lo is taken for an Ethernet")
			}
			c.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), 1)
			if _, err := OpenPacket(c); err == nil {
				t.Error("no address is taken")
			}
		})
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
		u, tap := w.packet(t, 1, Config{})[0], w.tapBack(t)
		for range 5 {
			w.inject(t, w.outerFrame(t, vxlanUDP(t, 10)))
		}
		receive(t, u, packet.NewBatch(1<<21), 5)
		if n := countICMP(t, tap); n != 0 {
			t.Errorf("%d ICMP errors in return", n)
		}
		u.Close()
		u.fd, u.guard = -1, -1
		w.inject(t, w.outerFrame(t, vxlanUDP(t, 10)))
		if n := countICMP(t, tap); n != 1 {
			t.Errorf("without the guard %d ICMP errors: not what this test is about", n)
		}
	})
}

// tapBack sees what comes back to site 0.
func (w *wireTest) tapBack(t *testing.T) (fd int) {
	w.in(t, 0, func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL))); err != nil {
			t.Fatal(err)
		}
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		t.Cleanup(func() { unix.Close(fd) })
	})
	return fd
}

func countICMP(t *testing.T, fd int) (n int) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		length, err := unix.Read(fd, buf)
		if err != nil {
			return n
		}
		p := gopacket.NewPacket(buf[:length], layers.LayerTypeEthernet, gopacket.Default)
		icmp4, _ := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		icmp6, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		if icmp4 != nil && icmp4.TypeCode.Type() == 3 || icmp6 != nil && icmp6.TypeCode.Type() == 1 {
			n++
		}
	}
}

// A kernel peer on the same machine hands its super-packets over whole, as to a UDP socket.
func TestPacketUncutKernelSuperPackets(t *testing.T) {
	inners := map[string][2]netip.Addr{
		"IPv4": {netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")},
		"IPv6": {netip.MustParseAddr("fd01::1"), netip.MustParseAddr("fd01::2")},
	}
	for outer := range wireSites {
		for name, inner := range inners {
			t.Run(fmt.Sprintf("%s in %s", name, outer), func(t *testing.T) {
				w := newWire(t, outer)
				u := w.packet(t, 1, Config{})[0]
				w.in(t, 0, func() { kernelVXLAN(t, w.sites[0].addr, w.sites[1].addr, inner[0], inner[1]) })
				const total, size = 20500, 1000
				again := func() { w.in(t, 0, func() { sendSegments(t, inner[0], inner[1], total, size) }) }
				checkUncut(t, u, w.sites[0].addr, total, size, again)
			})
		}
	}
}

// With a full buffer Write waits a little, then refuses, and every segment is in exactly one of Sent and Refused.
func TestPacketFullSendBuffer(t *testing.T) {
	w := newWire(t, "IPv4")
	a, b := w.packet(t, 0, Config{})[0], w.packet(t, 1, Config{})[0]
	w.in(t, 0, func() {
		tbf := &netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: w.link(t, 0).Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       10 << 20, Buffer: 1 << 17, Limit: 1 << 24,
		}
		if err := netlink.QdiscAdd(tbf); err != nil {
			t.Fatal(err)
		}
	})
	if err := unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<16); err != nil {
		t.Fatal(err)
	}
	out, in := packet.NewBatch(8<<20), packet.NewBatch(1<<21)
	for i := range 300 {
		outgoing(t, out, flow{1, 2}.tcp(t, pattern(20000)), 1000, w.addr(1))
		outgoing(t, out, flow{1, 2}.udp(t, pattern(1000+3000*(i%2))), 0, w.addr(1))
	}
	if err := a.Write(out); err != nil {
		t.Fatal(err)
	}
	sent, refused := 0, 0
	for i, f := range out.Frames {
		if f.Sent+f.Refused != f.Segments || (f.Sent == 0) != (f.SentBytes == 0) {
			t.Fatalf("frame %d: %d sent (%d bytes) and %d refused of %d", i, f.Sent, f.SentBytes, f.Refused, f.Segments)
		}
		sent += f.Sent
		refused += f.Refused
	}
	if sent == 0 || refused == 0 {
		t.Errorf("%d sent, %d refused: not what this test is about", sent, refused)
	}
	receive(t, b, in, sent)
}

func TestPacketAllocates(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		a, b := w.packet(t, 0, Config{})[0], w.packet(t, 1, Config{})[0]
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		for i := range uint16(10) {
			outgoing(t, out, flow{i, 2}.tcp(t, pattern(30000)), 1390, w.addr(1)).OuterTOS = 2
			outgoing(t, out, flow{i, 2}.udp(t, pattern(100)), 0, w.addr(1))
			outgoing(t, out, flow{i, 2}.udp(t, pattern(9000)), 0, w.addr(1)) // fragments
		}
		want := len(wireOf(out))
		once := func() {
			a.Write(out)
			for got := 0; got < want; {
				in.Reset()
				n, _ := b.Read(in)
				got += n
			}
		}
		once()
		if n := testing.AllocsPerRun(20, once); n != 0 {
			t.Errorf("%v allocations for writing and reading %d segments", n, want)
		}
	})
}

// Datagrams that arrive one by one are joined by the kernel's GRO because of the guard's UDP_GRO, as on a real wire, and cut
// again here: right ones come through, wrong ones don't hide among them.
func TestPacketGRO(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		w.setOffloads(t, false)
		w.setFeature(t, 1, "rx-gro", true)
		a, b := w.packet(t, 0, Config{})[0], w.packet(t, 1, Config{})[0]
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		for i := range uint16(5) {
			outgoing(t, out, flow{i, 2}.tcp(t, pattern(60001)), 1390, w.addr(1)).OuterTOS = 2
			outgoing(t, out, flow{i, 2}.udp(t, pattern(300)), 0, w.addr(1))
		}
		joined := 0
		for range 5 {
			want := wireOf(out)
			a.Write(out)
			checkSent(t, out)
			var got []datagram
			for len(got) < len(want) {
				wait(t, b.FD(), len(got), len(want))
				in.Reset()
				if _, err := b.Read(in); err != nil {
					t.Fatal(err)
				}
				joined = max(joined, int(b.recv.msgs[0].len))
				for _, f := range in.Frames {
					got = append(got, datagram{data: slices.Clone(f.Bytes())})
				}
			}
			checkArrivedInAnyOrder(t, got, want)
		}
		if joined < 3000 || len(b.OuterDrops()) != 0 {
			t.Errorf("the longest frame that came has %d bytes; dropped: %v", joined, b.OuterDrops())
		}
		payload := vxlanUDP(t, 500)
		wrong := w.outerFrame(t, payload)
		wrong[len(wrong)-1] ^= 1
		w.inject(t, w.outerFrame(t, payload), wrong, w.outerFrame(t, payload), w.outerFrame(t, payload))
		for i, d := range receive(t, b, in, 3) {
			if !slices.Equal(d.data, payload) {
				t.Errorf("datagram %d is wrong", i)
			}
		}
		if n := b.OuterDrops()[packet.DropL4Checksum]; n != 1 {
			t.Errorf("dropped: %v", b.OuterDrops())
		}
	})
}
