package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/attach"
	"github.com/tulle-net/tulle/control/pin"
	"github.com/tulle-net/tulle/scripts/lab"
)

// forgedMark is in every forged packet that has a payload.
var forgedMark = []byte("tulle forged this packet")

// A forgery is a frame that a pod must not send. The kernel itself drops it before anything is counted if it has no reason.
type forgery struct {
	what   string
	reason pin.Reason
	frame  []byte
}

// A forger makes frames of a pod's.
type forger struct {
	t    *testing.T
	mac  net.HardwareAddr
	all  []forgery
	from func(v6 bool) netip.Addr // an address of the pod
}

func (f *forger) add(what string, reason pin.Reason, parts ...gopacket.SerializableLayer) {
	f.t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, parts...); err != nil {
		f.t.Fatal(err)
	}
	f.all = append(f.all, forgery{what, reason, slices.Clone(b.Bytes())})
}

func (f *forger) ethernet(src net.HardwareAddr, kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src, DstMAC: attach.LinkMAC, EthernetType: kind}
}

// network returns the link and IP headers of a packet.
func (f *forger) network(mac net.HardwareAddr, src, dst netip.Addr, protocol layers.IPProtocol) (link, ip gopacket.SerializableLayer) {
	if dst.Is4() {
		return f.ethernet(mac, layers.EthernetTypeIPv4), &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return f.ethernet(mac, layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func (f *forger) udp(what string, reason pin.Reason, mac net.HardwareAddr, src, dst netip.Addr, port layers.UDPPort) {
	f.t.Helper()
	link, ip := f.network(mac, src, dst, layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: port, DstPort: 9}
	if err := udp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer)); err != nil {
		f.t.Fatal(err)
	}
	f.add(fmt.Sprintf("%s to %s", what, dst), reason, link, ip, udp, gopacket.Payload(forgedMark))
}

func (f *forger) arp(what string, operation uint16, mac net.HardwareAddr, of netip.Addr) {
	f.t.Helper()
	f.add("ARP: "+what, pin.ARP, f.ethernet(f.mac, layers.EthernetTypeARP), &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4,
		HwAddressSize: 6, ProtAddressSize: 4, Operation: operation, SourceHwAddress: mac, SourceProtAddress: of.AsSlice(),
		DstHwAddress: attach.LinkMAC, DstProtAddress: attach.Gateway4.AsSlice()})
}

// nd adds a message of neighbour discovery to the node about an address, with the pod's MAC.
func (f *forger) nd(what string, reason pin.Reason, kind uint8, src, about netip.Addr) {
	f.t.Helper()
	link, ip := f.network(f.mac, src, attach.Gateway6, layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer)); err != nil {
		f.t.Fatal(err)
	}
	option := append([]byte{2, 1}, f.mac...)
	body := map[uint8][]byte{
		layers.ICMPv6TypeNeighborAdvertisement: slices.Concat([]byte{0x60, 0, 0, 0}, about.AsSlice(), option),
		layers.ICMPv6TypeNeighborSolicitation:  slices.Concat(make([]byte, 4), about.AsSlice(), append([]byte{1}, option[1:]...)),
		layers.ICMPv6TypeRouterAdvertisement:   {64, 0, 0x07, 0x08, 12: 0},
		layers.ICMPv6TypeRedirect:              slices.Concat(make([]byte, 4), src.AsSlice(), about.AsSlice(), option),
	}[kind]
	f.add("ND: "+what, reason, link, ip, icmp, gopacket.Payload(body))
}

// forgeries are all that a pod may try, towards a pod of its node, one of another node, and its node.
func (f *forger) forgeries(near, far []netip.Addr, node, foreign []netip.Addr) []forgery {
	for i := range 2 {
		v6 := i == 1
		own := f.from(v6)
		others := map[bool][]string{false: {"8.8.8.8", "127.0.0.1", "169.254.7.7", "169.254.1.1", "0.0.0.0"}, true: {"2001:db8::1", "fe80::77", "fe80::1", "::ffff:10.244.1.9"}}[v6]
		sources := []netip.Addr{near[i], far[i], node[i], foreign[i]}
		for _, o := range others {
			sources = append(sources, netip.MustParseAddr(o))
		}
		for _, dst := range []netip.Addr{near[i], far[i], node[i]} {
			f.udp("foreign MAC", pin.MAC, net.HardwareAddr{2, 0, 0, 0, 0, 66}, own, dst, 1000)
			for _, src := range sources {
				if src != dst {
					f.udp("source "+src.String(), pin.Source, f.mac, src, dst, 1000)
				}
			}
			f.udp("DHCP server", pin.DHCP, f.mac, own, dst, map[bool]layers.UDPPort{false: 67, true: 547}[v6])
		}
	}
	f.udp("source ::1", "", f.mac, netip.IPv6Loopback(), near[1], 1000)
	for _, operation := range []uint16{layers.ARPRequest, layers.ARPReply} {
		for _, of := range []netip.Addr{near[0], far[0], node[0], attach.Gateway4} {
			f.arp("another's address", operation, f.mac, of)
		}
		f.arp("another's MAC", operation, net.HardwareAddr{2, 0, 0, 0, 0, 66}, f.from(false))
	}
	own := f.from(true)
	f.nd("router advertisement", pin.ND, layers.ICMPv6TypeRouterAdvertisement, linkLocal(f.mac), own)
	f.nd("redirect", pin.ND, layers.ICMPv6TypeRedirect, linkLocal(f.mac), far[1])
	for _, about := range []netip.Addr{near[1], far[1], attach.Gateway6} {
		f.nd("another's address advertised", pin.ND, layers.ICMPv6TypeNeighborAdvertisement, own, about)
		if about != attach.Gateway6 {
			f.nd("solicitation from another's", pin.Source, layers.ICMPv6TypeNeighborSolicitation, about, attach.Gateway6)
		}
	}
	f.nd("solicitation from an invented address", pin.Source, layers.ICMPv6TypeNeighborSolicitation, netip.MustParseAddr("fe80::77"), attach.Gateway6)
	return f.all
}

// linkLocal is the address that Linux gives a link (RFC 4291 appendix A).
func linkLocal(m net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// TestCNIForged has a pod with raw sockets forge MACs, sources, ARP, ND and DHCP, a hundred thousand times: nothing arrives, the node
// learns nothing, each is counted by its reason, and what the pods rightly send in the meantime passes.
func TestCNIForged(t *testing.T) {
	t.Run("veth", func(t *testing.T) { testForged(t, newRuntime, 2000) })
	t.Run("tap", func(t *testing.T) { testForged(t, newTAPRuntime, 200) })
}

func testForged(t *testing.T, runtimeOf func(testing.TB, lab.Node, string) *cniRuntime, rounds int) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0, Family: lab.FamilyDual})
	home, away := l.Nodes()[0], l.Nodes()[1]
	r, abroad := runtimeOf(t, home, "1.1.0"), runtimeOf(t, away, "1.1.0")
	evil, near, far := newSandbox(t, "evil"), newSandbox(t, "near"), newSandbox(t, "far")
	result, nearAddrs, farAddrs := r.add(evil), addrsOf(r.add(near)), addrsOf(abroad.add(far))
	mac, err := net.ParseMAC(result.Interfaces[len(result.Interfaces)-1].Mac)
	if err != nil {
		t.Fatal(err)
	}
	own := addrsOf(result)
	f := &forger{t: t, mac: mac, from: func(v6 bool) netip.Addr { return own[map[bool]int{true: 1}[v6]] }}
	tunnel := func(n int) []netip.Addr {
		s := status(t, l, n).Node
		return []netip.Addr{netip.MustParseAddr(s.TunnelAddr), netip.MustParseAddr(s.IPv6TunnelAddr)}
	}
	all := f.forgeries(nearAddrs, farAddrs, tunnel(1), tunnel(2))
	for _, to := range append(nearAddrs, farAddrs...) {
		reach(t, evil.run, to)
		reach(t, inNode(home), to) // the kernel has the engine for a neighbour from now on
	}
	dropped := func() map[pin.Reason]uint64 { return status(t, l, 1).PodDrops }
	if len(result.Interfaces) == 1 { // the engine does it, and the kernel does nothing before it
		dropped = func() map[pin.Reason]uint64 {
			r, all := status(t, l, 1), map[pin.Reason]uint64{}
			for _, reason := range pin.Reasons {
				all[reason] = r.Verdicts[string(reason)]
			}
			return all
		}
		for i := range all {
			all[i].reason = cmp.Or(all[i].reason, pin.Source)
		}
	}
	before, learned := dropped(), whatNodeKnows(t, home)

	var watchers []*wireTap
	for _, s := range []*sandbox{near, far} {
		watchers = append(watchers, watch(t, s.run, "eth0"))
	}
	watchers = append(watchers, watch(t, inNode(home), tapName))
	var rightful sync.WaitGroup
	rightful.Go(func() {
		for _, to := range slices.Concat(nearAddrs, farAddrs, nearAddrs, farAddrs) {
			reach(t, evil.run, to)
		}
	})
	want := maps.Clone(before)
	if err := evil.run(func() error { return forge(all, rounds, want) }); err != nil {
		t.Fatal(err)
	}
	rightful.Wait()
	if got := dropped(); !maps.Equal(got, want) {
		t.Errorf("dropped %v, before %v, want %v", got, before, want)
	}
	for _, w := range watchers {
		if n := w.marked(t); n > 0 {
			t.Errorf("%d forged packets arrived", n)
		}
	}
	if now := whatNodeKnows(t, home); now != learned {
		t.Errorf("the node knew\n%s\nand now\n%s", learned, now)
	}
	t.Logf("%d forgeries of %d kinds: %v", rounds*len(all), len(all), want)
	if len(result.Interfaces) == 1 {
		return
	}
	_, text := fetch(t, home, "/metrics")
	if line := fmt.Sprintf("tulle_pod_drops_total{reason=%q} %d\n", pin.ARP, want[pin.ARP]); !strings.Contains(text, line) {
		t.Errorf("no line %q", line)
	}
}

// forge sends each forgery some times, from the namespace it is called in, and adds up what has to be counted.
func forge(all []forgery, rounds int, counted map[pin.Reason]uint64) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: link.Index}
	for range rounds {
		time.Sleep(100 * time.Microsecond) // a TAP's queue is bounded
		for _, f := range all {
			if err := unix.Sendto(fd, f.frame, 0, to); err != nil {
				return fmt.Errorf("%s: %w", f.what, err)
			}
			if f.reason != "" {
				counted[f.reason]++
			}
		}
	}
	return nil
}

// watch opens a packet socket on a link.
func watch(t *testing.T, run func(func() error) error, link string) *wireTap {
	t.Helper()
	w := &wireTap{}
	if err := run(func() error { return w.open(link) }); err != nil {
		t.Fatal(err)
	}
	return w
}

// marked counts the forged packets that wait in the socket, and closes it.
func (w *wireTap) marked(t *testing.T) (n int) {
	t.Helper()
	w.drain(t, func(b []byte) {
		if bytes.Contains(b, forgedMark) {
			n++
		}
	})
	return n
}

// whatNodeKnows lists the node's neighbours on the TAP and on pods' links, and its main routes.
func whatNodeKnows(t *testing.T, n lab.Node) string {
	t.Helper()
	var lines []string
	in(t, n, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			name := l.Attrs().Name
			if _, ofPod := l.(*netlink.Veth); name != tapName && !(ofPod && len(name) == 15) {
				continue
			}
			neighbours, err := netlink.NeighList(l.Attrs().Index, unix.AF_UNSPEC)
			if err != nil {
				return err
			}
			for _, x := range neighbours {
				lines = append(lines, fmt.Sprint(name, " ", x.IP, " ", x.HardwareAddr))
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		for _, x := range routes {
			lines = append(lines, x.String())
		}
		return err
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
