package dataplane

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

var (
	oraclePcap   = flag.String("pcap", "", "file with Ethernet packets to node a, for TestOracle to take in place of its own")
	oracleFrames = flag.Int("oracle", 20_000, "packets that TestOracle makes up")
)

// kernelsOwn are the verdicts that a kernel VXLAN device has too: what tulle drops with them, it drops.
var kernelsOwn = map[packet.Verdict]bool{packet.DropVNI: true, packet.DropVXLANFlags: true, packet.DropVXLANTruncated: true, packet.DropECN: true, packet.DropOwnMAC: true}

// tullesOwn are those which explain that the kernel's device takes what tulle drops: it knows no peers, looks at no inner header, and leaves
// fragments, ARP and ND to others.
var tullesOwn = map[packet.Verdict]bool{
	packet.DropUnknownPeer: true, packet.DropInnerSource: true, packet.DropInnerDestination: true, packet.DropMartian: true, packet.DropMulticast: true, packet.DropNested: true,
	packet.DropOtherMAC: true, packet.DropEtherType: true, packet.DropARP: true, packet.DropND: true, packet.DropFrameTruncated: true, packet.DropIPHeader: true, packet.DropIPChecksum: true,
	packet.DropExtension: true, packet.DropL4Checksum: true, packet.DropFragmentTiny: true, packet.DropFragmentOverlap: true, packet.DropFragmentOrphan: true, packet.DropFragmentMemory: true, packet.DropTTL: true,
	packet.DropUnrelated: true, packet.DropEngine: true, packet.EchoAnswered: true,
}

// TestOracle gives the same packets, read from one file, to the engine and to a kernel VXLAN device, and compares what comes out, packet by
// packet. A difference that no verdict explains is a fault. What is delivered must be the same to the byte behind the MAC addresses.
func TestOracle(t *testing.T) {
	file := *oraclePcap
	k := newKernelVXLAN(t)
	if file == "" {
		file = filepath.Join(t.TempDir(), "oracle.pcap")
		k.writePcap(t, file)
	}
	r := newRig(t, func(c *Config) { c.Join = packet.Joining{} })
	same, explained, before := 0, map[packet.Verdict]int{}, r.w.snapshot().Verdicts
	for i, outer := range readPcap(t, file) {
		m, ok := datagramOf(outer)
		if !ok {
			continue
		}
		r.send(underlayOf(m), m)
		r.underlay().taken()
		r.underlay6().taken()
		var engine []byte
		for _, f := range r.tap().taken() {
			engine = f.data
		}
		after := r.w.snapshot().Verdicts
		verdict := packet.None // a fragment that waits
		for v := range after {
			if v := packet.Verdict(v); after[v] != before[v] && v != packet.Encapsulated { // that is an answer
				verdict = v
			}
		}
		before = after
		r.now.Add(int64(time.Millisecond))
		kernel := k.receive(t, outer)
		switch {
		case engine != nil && kernel != nil && bytes.Equal(engine[12:], withoutPadding(kernel)[12:]):
			same++
		case engine == nil && kernel == nil && (kernelsOwn[verdict] || tullesOwn[verdict]):
			explained[verdict]++
		case engine == nil && kernel != nil && (tullesOwn[verdict] || verdict == packet.None && isFragment(kernel)):
			explained[verdict]++
		case verdict == packet.Delivered && isFragment(kernel): // the first one came later, and others with it
			same++
		default:
			t.Errorf("packet %d: %s\n  sent   %x\n  engine %x\n  kernel %x", i, verdict, outer, engine, kernel)
			if t.Failed() && i > 0 {
				return
			}
		}
	}
	r.now.Add(int64(time.Minute))
	r.w.begin() // fragments that still wait
	t.Logf("%d the same, %d not delivered and explained: %v", same, len(explained), explained)
	if same < 100 && *oraclePcap == "" {
		t.Errorf("only %d packets were delivered", same)
	}
}

// withoutPadding is a frame up to the end of its IP packet: what lies behind means nothing, and the engine leaves it out.
func withoutPadding(frame []byte) []byte {
	length := len(frame)
	switch p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{}); ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		length = 14 + int(ip.Length)
	case *layers.IPv6:
		length = 14 + 40 + int(ip.Length)
	}
	return frame[:min(length, len(frame))]
}

func isFragment(frame []byte) bool {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{})
	if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
		return ip.FragOffset > 0 || ip.Flags&layers.IPv4MoreFragments != 0
	}
	return p.Layer(layers.LayerTypeIPv6Fragment) != nil
}

// datagramOf is what a node's UDP socket would have of a packet of the wire.
func datagramOf(outer []byte) (memFrame, bool) {
	p := gopacket.NewPacket(outer, layers.LayerTypeEthernet, gopacket.DecodeOptions{})
	udp, ok := p.TransportLayer().(*layers.UDP)
	if !ok || udp.DstPort != 8472 {
		return memFrame{}, false
	}
	m := memFrame{data: append([]byte(nil), udp.Payload...)}
	from, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
	m.remote = netip.AddrPortFrom(from, uint16(udp.SrcPort))
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		m.tos = ip.TOS
	case *layers.IPv6:
		m.tos = ip.TrafficClass
	}
	return m, true
}

// kernelVXLAN is node a with VXLAN devices of the kernel, in a network namespace of the test's own: wire is the far end of its link.
type kernelVXLAN struct {
	mac      net.HardwareAddr // of the link
	wire     int              // packet socket
	devices  map[bool]int     // packet sockets, of IPv4 and of IPv6
	sentinel map[bool][]byte  // a packet that comes through for sure
	buf      []byte
}

func newKernelVXLAN(t *testing.T) *kernelVXLAN {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("a network namespace: %v: run the test as root", err)
	}
	k := &kernelVXLAN{devices: map[bool]int{}, sentinel: map[bool][]byte{}, buf: make([]byte, 1<<17)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tulle-u", MTU: 9000}, PeerName: "tulle-w"}))
	link, err := netlink.LinkByName("tulle-u")
	must(err)
	far, err := netlink.LinkByName("tulle-w")
	must(err)
	k.mac = link.Attrs().HardwareAddr
	for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		address, err := netlink.ParseAddr(a)
		must(err)
		address.Flags = unix.IFA_F_NODAD
		must(netlink.AddrAdd(link, address))
	}
	must(errors.Join(netlink.LinkSetUp(link), netlink.LinkSetUp(far), os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0o644),
		os.WriteFile("/proc/sys/net/ipv4/conf/tulle-u/rp_filter", []byte("0"), 0o644)))
	k.wire = k.socket(t, far.Attrs().Index)
	for v6, local := range map[bool]string{false: "192.0.2.1", true: "2001:db8::1"} {
		name := map[bool]string{false: "tulle-v4", true: "tulle-v6"}[v6]
		peer := net.IP(map[bool]netip.AddrPort{false: nodeB, true: nodeB6}[v6].Addr().AsSlice())
		must(netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: peer, HardwareAddr: far.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT}))
		must(netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: macA[:], MTU: 8000}, VxlanId: 1, SrcAddr: net.ParseIP(local), Group: peer, VtepDevIndex: link.Attrs().Index, Port: 8472}))
		device, err := netlink.LinkByName(name)
		must(err)
		e, err := ethtool.NewEthtool()
		must(err)
		must(e.Change(name, map[string]bool{"rx-gro": false})) // it would join packets
		e.Close()
		must(netlink.LinkSetUp(device))
		k.devices[v6] = k.socket(t, device.Attrs().Index)
		inner := udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 20)
		copy(inner[len(inner)-8:], "sentinel")
		k.sentinel[v6] = k.wrap(t, vxlan(inner), map[bool]netip.AddrPort{false: nodeB, true: nodeB6}[v6], 0)
	}
	return k
}

// socket is one for whole frames of a link, without those that go out.
func (k *kernelVXLAN) socket(t *testing.T, index int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: index}))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// receive gives node a packet and returns the one that its VXLAN device has of it, nil for none.
func (k *kernelVXLAN) receive(t *testing.T, outer []byte) (inner []byte) {
	t.Helper()
	v6 := outer[12] == 0x86
	for _, b := range [][]byte{outer, k.sentinel[v6]} {
		if _, err := unix.Write(k.wire, b); err != nil {
			t.Fatal(err)
		}
	}
	for {
		n, err := unix.Read(k.devices[v6], k.buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatalf("the VXLAN device: %v", err)
		case bytes.HasSuffix(k.buf[:n], []byte("sentinel")):
			return inner
		default:
			inner = bytes.Clone(k.buf[:n])
		}
	}
}

// wrap is a datagram to node a as it is on the wire.
func (k *kernelVXLAN) wrap(t *testing.T, payload []byte, from netip.AddrPort, tos uint8) []byte {
	to := "192.0.2.1"
	if from.Addr().Is6() {
		to = "2001:db8::1"
	}
	eth, ip := ipLayers(macB, packet.MAC(k.mac), from.Addr().String(), to, layers.IPProtocolUDP)
	switch ip := ip.(type) {
	case *layers.IPv4:
		ip.TOS = tos
	case *layers.IPv6:
		ip.TrafficClass = tos
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: 8472}
	udp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	return build(t, eth, ip, udp, gopacket.Payload(payload))
}

// writePcap makes up packets: well-formed ones, whole or in fragments, with some bytes changed or missing, of peers and strangers, with every
// congestion mark.
func (k *kernelVXLAN) writePcap(t *testing.T, path string) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 4))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	var seeds [][]byte
	for _, m := range wellFormed(t) {
		seeds = append(seeds, m.data)
	}
	for _, part := range fragments(udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64), 7, 32, 48) {
		seeds = append(seeds, vxlan(part))
	}
	seeds = append(seeds, vxlan(arpRequest(t, "10.0.2.9", "10.0.1.9")), vxlan(solicitation(t, macB, macA, podB6, podA6)))
	from := []netip.AddrPort{nodeB, nodeC, nodeB6, nodeC6, netip.MustParseAddrPort("192.0.2.77:8472"), netip.MustParseAddrPort("[2001:db8::77]:9")}
	for i := range *oracleFrames {
		b := bytes.Clone(seeds[rng.IntN(len(seeds))])
		b[8+14+1] = byte(rng.IntN(256)) // TOS, or some other field
		if b[8+12] == 8 && len(b) > 8+34 && b[8+13] == 0 {
			fixIPChecksum(b[8:])
		}
		sender := from[min(rng.IntN(12), 5)]
		if rng.IntN(2) == 0 {
			sender = map[bool]netip.AddrPort{false: nodeB, true: nodeB6}[b[8+12] == 0x86]
		}
		if rng.IntN(3) == 0 {
			for range 1 + rng.IntN(3) {
				b[rng.IntN(min(len(b), 70))] = byte(rng.Uint32())
			}
		}
		if rng.IntN(10) == 0 {
			b = b[:rng.IntN(len(b))]
		}
		outer := k.wrap(t, b, sender, byte(rng.IntN(256)))
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(0, int64(i)), CaptureLength: len(outer), Length: len(outer)}, outer); err != nil {
			t.Fatal(err)
		}
	}
}

func readPcap(t *testing.T, path string) (packets [][]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		b, _, err := r.ReadPacketData()
		if err != nil {
			return packets
		}
		packets = append(packets, b)
	}
}
