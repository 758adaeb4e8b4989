package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// outerFrame is a whole frame from site 0 to the tunnel at site 1 as a foreign machine would send it, built by gopacket. Options
// are of IPv4.
func (w *wireTest) outerFrame(t testing.TB, payload []byte, options ...layers.IPv4Option) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: w.macs[0][:], DstMAC: w.macs[1][:], EthernetType: layers.EthernetTypeIPv4}
	udp := &layers.UDP{SrcPort: 50000, DstPort: wirePort}
	var ip gopacket.SerializableLayer
	if src, dst := w.sites[0].addr.AsSlice(), w.sites[1].addr.AsSlice(); len(src) == 4 {
		v4 := &layers.IPv4{Version: 4, TTL: 64, TOS: 2, Protocol: layers.IPProtocolUDP, SrcIP: src, DstIP: dst, Options: options}
		udp.SetNetworkLayerForChecksum(v4)
		ip = v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, TrafficClass: 2, NextHeader: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
		eth.EthernetType = layers.EthernetTypeIPv6
		udp.SetNetworkLayerForChecksum(v6)
		ip = v6
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(buf.Bytes())
}

// A refusal is a frame that must not become a datagram. The verdict is None when it must not even be counted.
type refusal struct {
	name    string
	spoil   func(w *wireTest, frame []byte) []byte
	verdict packet.Verdict
	family  string // "" for both
}

func set(at int, values ...byte) func(*wireTest, []byte) []byte {
	return func(_ *wireTest, f []byte) []byte { copy(f[at:], values); return f }
}

// atUDP writes behind the IP header.
func atUDP(at int, values ...byte) func(*wireTest, []byte) []byte {
	return func(w *wireTest, f []byte) []byte {
		copy(f[packet.EthernetLen+familyOf(w.sites[0].addr).ipLen+at:], values)
		return f
	}
}

// fixed makes the IPv4 header's checksum right again.
func fixed(change func(*wireTest, []byte) []byte) func(*wireTest, []byte) []byte {
	return func(w *wireTest, f []byte) []byte {
		f = change(w, f)
		f[24], f[25] = 0, 0
		binary.BigEndian.PutUint16(f[24:], packet.Sum(0).Add(f[14:34]).Checksum())
		return f
	}
}

var refusals = []refusal{
	{"another UDP port", atUDP(2, 0, 53), packet.None, ""},
	{"another host's MAC", set(0, 2, 0, 0, 0, 0, 0x55), packet.None, ""},
	{"broadcast MAC", set(0, 255, 255, 255, 255, 255, 255), packet.None, ""},
	{"a VLAN without a link", vlan(7), packet.None, ""},
	{"wrong UDP checksum", atUDP(6, 0x12, 0x34), packet.DropL4Checksum, ""},
	{"a bit of the data wrong", atUDP(30, 0xff), packet.DropL4Checksum, ""},
	{"no UDP checksum", atUDP(6, 0, 0), packet.DropL4Checksum, "IPv6"},
	{"UDP longer than IP", atUDP(4, 0xff, 0), packet.DropFrameTruncated, ""},
	{"UDP shorter than its header", atUDP(4, 0, 7), packet.DropFrameTruncated, ""},
	{"cut behind IP", cut(3), packet.None, ""}, // the filter finds no port
	{"cut behind the ports", cut(4), packet.DropFrameTruncated, ""},
	{"cut in the data", cut(50), packet.DropFrameTruncated, ""},
	{"TCP", fixed(set(23, 6)), packet.None, "IPv4"},
	{"wrong IP checksum", set(24, 0x12, 0x34), packet.DropIPChecksum, "IPv4"},
	{"IP version 5", set(14, 0x55), packet.DropIPHeader, "IPv4"},
	{"IP header length 4", set(14, 0x41), packet.None, "IPv4"}, // the filter looks for the port elsewhere
	{"another address", fixed(set(33, 9)), packet.None, "IPv4"},
	{"another IPv6 address", set(53, 9), packet.None, "IPv6"},
	{"another next header", set(20, 6), packet.None, "IPv6"},
	{"IPv6 longer than the frame", set(18, 0xff), packet.DropFrameTruncated, "IPv6"},
}

func cut(n int) func(*wireTest, []byte) []byte {
	return func(w *wireTest, f []byte) []byte { return f[:packet.EthernetLen+familyOf(w.sites[0].addr).ipLen+n] }
}

func vlan(id byte) func(*wireTest, []byte) []byte {
	return func(_ *wireTest, f []byte) []byte {
		return slices.Concat(f[:12], []byte{0x81, 0, 0, id}, f[12:])
	}
}

// What the kernel's UDP would not hand over does not come through here either, and is counted by what is wrong with it
// where the filter lets it through. Between them right frames go on.
func TestPacketRefuses(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		u, in := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21)
		payload := vxlanUDP(t, 100)
		for _, c := range refusals {
			if c.family != "" && c.family != t.Name()[len("TestPacketRefuses/"):] {
				continue
			}
			before := u.OuterDrops()
			w.inject(t, c.spoil(w, w.outerFrame(t, payload)), w.outerFrame(t, payload))
			got := receive(t, u, in, 1)
			if !bytes.Equal(got[0].data, payload) || got[0].remote != netip.AddrPortFrom(w.sites[0].addr, 50000) || got[0].tos != 2 {
				t.Fatalf("%s: the next datagram is another: %+v", c.name, got[0])
			}
			for v, n := range u.OuterDrops() {
				if n -= before[v]; n != 0 && v != c.verdict || n != 1 && v == c.verdict {
					t.Errorf("%s: %v counted %d times", c.name, v, n)
				}
			}
			if c.verdict != packet.None && u.OuterDrops()[c.verdict] == before[c.verdict] {
				t.Errorf("%s: %v is not counted", c.name, c.verdict)
			}
		}
	})
}

// These are unusual and right.
func TestPacketAccepts(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		u, in, payload := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21), vxlanUDP(t, 101)
		frames := map[string][]byte{
			"priority tag":                  vlan(0)(w, w.outerFrame(t, payload)),
			"padding behind the IP packet":  append(w.outerFrame(t, payload), make([]byte, 9)...),
			"an odd length, nothing behind": w.outerFrame(t, payload),
		}
		if w.sites[0].addr.Is4() {
			frames["no checksum"] = atUDP(6, 0, 0)(w, w.outerFrame(t, payload))
			frames["IP options"] = w.outerFrame(t, payload, layers.IPv4Option{OptionType: 0x9e, OptionLength: 40, OptionData: make([]byte, 38)})
		}
		for name, frame := range frames {
			w.inject(t, frame)
			if got := receive(t, u, in, 1); !bytes.Equal(got[0].data, payload) {
				t.Errorf("%s: %d bytes, want %d", name, len(got[0].data), len(payload))
			}
		}
		if len(u.OuterDrops()) != 0 {
			t.Errorf("dropped: %v", u.OuterDrops())
		}
		w.inject(t, w.outerFrame(t, nil))
		if got := receive(t, u, in, 1); len(got[0].data) != 0 {
			t.Errorf("an empty datagram has %d bytes", len(got[0].data))
		}
	})
}

// Fragments of several datagrams in any order become what was sent; with one lost, repeated or laid over another the rest does not
// suffer.
func TestPacketReassembles(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		u, in := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21)
		s := fragmentSource{w.sites[0].addr, w.sites[1].addr}
		for round := range uint32(30) {
			var frames, want [][]byte
			for i := range uint32(1 + random.IntN(8)) {
				data := s.udpData(wirePort, 100+random.IntN(65000))
				whole, step := random.IntN(5) > 0, 8*(64+random.IntN(110))
				lost := random.IntN(len(data))
				for from := 0; from < len(data); from += step {
					to := min(from+step, len(data))
					if !whole && from <= lost && lost < to || from == 0 && to == len(data) {
						continue
					}
					frame := s.frame(round<<8|i, 2, data, from, to, to < len(data))
					copy(frame, w.macs[1][:])
					copy(frame[6:], w.macs[0][:])
					frames = append(frames, frame)
				}
				if whole && step < len(data) {
					want = append(want, data[outerUDPLen:])
				}
			}
			random.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
			w.inject(t, frames...)
			w.now += time.Second / 2
			got := receive(t, u, in, len(want))
			checkArrivedInAnyOrder(t, got, want)
		}
		for v := range u.OuterDrops() {
			if v != packet.DropFragmentOrphan {
				t.Errorf("dropped: %v", u.OuterDrops())
			}
		}
	})
}

// A datagram whose fragments were mixed up has a wrong checksum.
func TestPacketReassembledChecksum(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		u, in := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21)
		s := fragmentSource{w.sites[0].addr, w.sites[1].addr}
		data := s.udpData(wirePort, 1000)
		other := slices.Clone(data)
		other[900] ^= 1
		a, b := s.frame(1, 0, data, 0, 800, true), s.frame(1, 0, other, 800, 1000, false)
		copy(a, w.macs[1][:])
		copy(b, w.macs[1][:])
		w.inject(t, a, b, w.outerFrame(t, vxlanUDP(t, 10)))
		receive(t, u, in, 1)
		if n := u.OuterDrops()[packet.DropL4Checksum]; n != 1 {
			t.Errorf("dropped: %v", u.OuterDrops())
		}
	})
}

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
