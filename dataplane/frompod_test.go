package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// Two pods of the node have ports of their own.
const (
	pod1, pod1v6 = "10.0.1.21", "fd00:1::21"
	pod2, pod2v6 = "10.0.1.22", "fd00:1::22"
	gateway      = "169.254.1.1"
	gateway6     = "fe80::1"
)

var (
	macP1  = packet.MAC{0x0a, 0x58, 10, 0, 1, 21}
	macP2  = packet.MAC{0x0a, 0x58, 10, 0, 1, 22}
	gateP  = packet.MAC{2, 't', 'u', 'l', 'l', 'e'}
	localP = linkLocal(macP1).String()
)

func testPods() []*tables.Pod {
	return []*tables.Pod{
		{Port: 1, MAC: macP1, Gateway: gateP, Addr4: addr(pod1), Addr6: addr(pod1v6), Gateway4: addr(gateway), Gateway6: addr(gateway6)},
		{Port: 2, MAC: macP2, Gateway: gateP, Addr4: addr(pod2), Addr6: addr(pod2v6), Gateway4: addr(gateway), Gateway6: addr(gateway6)},
	}
}

// checkPods holds the engine's counters of all ports of pods against what these counted themselves.
func checkPods(t testing.TB, got PortCounters, pods []*memPort) {
	t.Helper()
	want := PortCounters{SegmentsIn: got.SegmentsIn}
	for _, p := range pods {
		want.FramesIn += p.counted.FramesIn
		want.BytesIn += p.counted.BytesIn
		want.FramesOut += p.counted.FramesOut
		want.SegmentsOut += p.counted.SegmentsOut
		want.BytesOut += p.counted.BytesOut
	}
	if got != want {
		t.Errorf("pods: counted %+v, the ports themselves %+v", got, want)
	}
}

// ofPod is a UDP packet that pod 1 sends.
func ofPod(from, to string) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte { return udpFrame(t, macP1, gateP, from, to, 64) })
}

func podARPFrame(op uint16, mac packet.MAC, sender, target string) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte {
		eth := &layers.Ethernet{SrcMAC: macP1[:], DstMAC: []byte{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP}
		return build(t, eth, &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
			SourceHwAddress: mac[:], SourceProtAddress: addr(sender).AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: addr(target).AsSlice(),
		})
	})
}

// ndOfPod is an ND message with a target in its body, as advertisements, redirects and solicitations have.
func ndOfPod(from string, kind uint8, target string) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte {
		eth, ip := ipLayers(macP1, gateP, from, "ff02::1", layers.IPProtocolICMPv6)
		ip.(*layers.IPv6).HopLimit = 255
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
		icmp.SetNetworkLayerForChecksum(ip.(*layers.IPv6))
		return build(t, eth, ip, icmp, gopacket.Payload(append(make([]byte, 4), net.IP(addr(target).AsSlice())...)))
	})
}

func fromPort(from, to string, port uint16) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte {
		eth, ip := ipLayers(macP1, gateP, from, to, layers.IPProtocolUDP)
		udp := &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: 68}
		udp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
		return build(t, eth, ip, udp, gopacket.Payload("offer"))
	})
}

func podTTL(to string, ttl byte) func(testing.TB) memFrame {
	return plain(func(t testing.TB) []byte {
		f := udpFrame(t, macP1, gateP, pod1, to, 64)
		f[14+8] = ttl
		fixIPChecksum(f)
		return f
	})
}

func podSuper(t testing.TB) memFrame {
	m := tcpSuper(t, pod1, pod2, 5000, 1400)
	copy(m.data, gateP[:])
	copy(m.data[6:], macP1[:])
	return m
}

// podCases are those of a pod's port, and of what goes to one.
var podCases = []verdictCase{
	{"pod to a peer", Pod, ofPod(pod1, "10.0.2.9"), packet.Encapsulated, 1, nil},
	{"pod to a peer, IPv6", Pod, ofPod(pod1v6, podB6), packet.Encapsulated, 1, nil},
	{"pod to a pod with a port", Pod, ofPod(pod1, pod2), packet.Delivered, 1, nil},
	{"pod to a pod with a port, IPv6", Pod, ofPod(pod1v6, pod2v6), packet.Delivered, 1, nil},
	{"pod's super-packet to a pod", Pod, podSuper, packet.Delivered, 4, nil},
	{"pod to a pod behind a link", Pod, ofPod(pod1, "10.0.1.7"), packet.Delivered, 1, nil},
	{"pod to the node", Pod, ofPod(pod1, "10.0.1.0"), packet.Delivered, 1, nil},
	{"pod to the outside", Pod, ofPod(pod1, "198.51.100.1"), packet.Delivered, 1, nil},
	{"pod to a link-local service", Pod, ofPod(pod1, "169.254.169.254"), packet.Delivered, 1, nil},
	{"node to a pod's port", TAP, outTo(pod1), packet.Delivered, 1, nil},
	{"peer to a pod's port", Underlay, inFrom("10.0.2.9", pod1), packet.Delivered, 1, nil},
	{"peer to a pod's port, IPv6", Underlay6, inFrom(podB6, pod1v6), packet.Delivered, 1, nil},
	{"pod to nobody's subnet", Pod, ofPod(pod1, "10.0.9.9"), packet.DropReject, 1, nil},
	{"pod's last hop to a peer", Pod, podTTL("10.0.2.9", 1), packet.DropTTL, 1, nil},
	{"pod's last hop to a pod", Pod, podTTL(pod2, 1), packet.DropTTL, 1, nil},
	{"pod's last hop to the node", Pod, podTTL("10.0.1.0", 1), packet.Delivered, 1, nil},
	{"pod's echo to its gateway", Pod, plain(func(t testing.TB) []byte { return echoFrame(t, macP1, gateP, pod1, gateway, false) }), packet.EchoAnswered, 1, nil},
	{"pod's echo to its IPv6 gateway", Pod, plain(func(t testing.TB) []byte { return echoFrame(t, macP1, gateP, localP, gateway6, false) }), packet.EchoAnswered, 1, nil},
	{"pod's echo to the engine", Pod, plain(func(t testing.TB) []byte { return echoFrame(t, macP1, gateP, pod1, "10.0.1.254", false) }), packet.EchoAnswered, 1, nil},
	{"pod's UDP to its gateway", Pod, ofPod(pod1, gateway), packet.DropEngine, 1, nil},
	{"pod asks for its gateway", Pod, podARPFrame(layers.ARPRequest, macP1, pod1, gateway), packet.ARPAnswered, 1, nil},
	{"pod asks for another", Pod, podARPFrame(layers.ARPRequest, macP1, pod1, pod2), packet.DropARP, 1, nil},
	{"pod's probe for its own address", Pod, podARPFrame(layers.ARPRequest, macP1, "0.0.0.0", pod1), packet.DropARP, 1, nil},
	{"pod asks as another", Pod, podARPFrame(layers.ARPRequest, macP1, pod2, gateway), packet.DropPodARP, 1, nil},
	{"pod asks with another's MAC", Pod, podARPFrame(layers.ARPRequest, macP2, pod1, gateway), packet.DropPodARP, 1, nil},
	{"pod answers as another", Pod, podARPFrame(layers.ARPReply, macP1, gateway, pod2), packet.DropPodARP, 1, nil},
	{"pod solicits its gateway", Pod, plain(func(t testing.TB) []byte { return solicitation(t, macP1, gateP, localP, gateway6) }), packet.NDAnswered, 1, nil},
	{"pod solicits another", Pod, plain(func(t testing.TB) []byte { return solicitation(t, macP1, gateP, pod1v6, pod2v6) }), packet.DropND, 1, nil},
	{"pod's duplicate address check", Pod, plain(func(t testing.TB) []byte { return solicitation(t, macP1, gateP, "::", pod1v6) }), packet.DropND, 1, nil},
	{"pod's router solicitation", Pod, ndOfPod(localP, 133, "::"), packet.DropND, 1, nil},
	{"pod advertises itself", Pod, ndOfPod(pod1v6, 136, pod1v6), packet.DropND, 1, nil},
	{"pod advertises its gateway", Pod, ndOfPod(localP, 136, gateway6), packet.DropPodND, 1, nil},
	{"pod's router advertisement", Pod, ndOfPod(localP, 134, "::"), packet.DropPodND, 1, nil},
	{"pod's redirect", Pod, ndOfPod(localP, 137, pod2v6), packet.DropPodND, 1, nil},
	{"pod's multicast", Pod, ofPod(pod1, "224.0.0.251"), packet.DropMulticast, 1, nil},
	{"pod's MLD", Pod, ofPod("::", "ff02::16"), packet.DropMulticast, 1, nil},
	{"pod's broadcast", Pod, ofPod(pod1, "255.255.255.255"), packet.DropMulticast, 1, nil},
	{"pod's link-local source to the outside", Pod, ofPod(localP, "2001:db8:5::1"), packet.DropMartian, 1, nil},
	{"pod to another's link-local address", Pod, ofPod(localP, linkLocal(macP2).String()), packet.DropMartian, 1, nil},
	{"pod to loopback", Pod, ofPod(pod1, "127.0.0.1"), packet.DropMartian, 1, nil},
	{"pod with another MAC", Pod, plain(func(t testing.TB) []byte { return udpFrame(t, macP2, gateP, pod1, "10.0.2.9", 64) }), packet.DropPodMAC, 1, nil},
	{"pod with another pod's source", Pod, ofPod(pod2, "10.0.2.9"), packet.DropPodSource, 1, nil},
	{"pod with another pod's IPv6 source", Pod, ofPod(pod2v6, podB6), packet.DropPodSource, 1, nil},
	{"pod with another's link-local source", Pod, ofPod(linkLocal(macP2).String(), gateway6), packet.DropPodSource, 1, nil},
	{"pod without source to one", Pod, ofPod("::", podB6), packet.DropPodSource, 1, nil},
	{"pod without IPv4 source", Pod, ofPod("0.0.0.0", "255.255.255.255"), packet.DropPodSource, 1, nil},
	{"pod as node", Pod, ofPod("10.0.1.0", "10.0.2.9"), packet.DropPodSource, 1, nil},
	{"pod as outside", Pod, ofPod("198.51.100.1", "10.0.2.9"), packet.DropPodSource, 1, nil},
	{"pod as loopback", Pod, ofPod("127.0.0.1", "10.0.2.9"), packet.DropPodSource, 1, nil},
	{"pod as DHCP server", Pod, fromPort(pod1, "10.0.2.9", 67), packet.DropPodDHCP, 1, nil},
	{"pod as DHCPv6 server", Pod, fromPort(pod1v6, podB6, 547), packet.DropPodDHCP, 1, nil},
	{"pod's port refuses", Underlay, inFrom("10.0.2.9", pod1), packet.DropPodWrite, 1, func(r *rig) { r.pods[0].refuse = 1 }},
	{"pod's port has gone", Underlay, inFrom("10.0.2.9", pod1), packet.DropPodWrite, 1, func(r *rig) { r.w.detach(1) }},
}

func init() { verdictCases = append(verdictCases, podCases...) }

// TestPodPorts holds where packets to pods come out, and their Ethernet headers, against what they have to be.
func TestPodPorts(t *testing.T) {
	r := newRig(t)
	whole := podSuper(t)
	for _, c := range []struct {
		name     string
		from     Side
		frame    memFrame
		to       *memPort
		dst, src packet.MAC
		ttl      byte
	}{
		{"pod to pod", Pod, ofPod(pod1, pod2)(t), r.pods[1], macP2, gateP, 63},
		{"super-packet, pod to pod", Pod, whole, r.pods[1], macP2, gateP, 63},
		{"pod to node", Pod, ofPod(pod1, "10.0.1.0")(t), r.tap(), macA, gateA, 64},
		{"pod to outside", Pod, ofPod(pod1, "198.51.100.1")(t), r.tap(), macA, gateA, 64},
		{"pod to a pod behind a link", Pod, ofPod(pod1, "10.0.1.7")(t), r.tap(), macA, gateA, 64},
		{"node to pod", TAP, outTo(pod1)(t), r.pods[0], macP1, gateP, 64},
		{"peer to pod", Underlay, inFrom("10.0.2.9", pod2)(t), r.pods[1], macP2, gateP, 64},
		{"ICMP error", Pod, ofPod(pod1, "10.0.9.9")(t), r.pods[0], macP1, gateP, 64},
		{"echo of the gateway", Pod, memFrame{data: echoFrame(t, macP1, gateP, pod1, gateway, false)}, r.pods[0], macP1, gateP, 64},
		{"ARP", Pod, podARPFrame(layers.ARPRequest, macP1, pod1, gateway)(t), r.pods[0], macP1, gateP, 0},
	} {
		r.send(c.from, c.frame)
		out := c.to.taken()
		if len(out) != 1 {
			t.Fatalf("%s: %d frames, want 1", c.name, len(out))
		}
		got := out[0].data
		if dst, src := packet.MAC(got[:6]), packet.MAC(got[6:12]); dst != c.dst || src != c.src {
			t.Errorf("%s: to %s from %s, want to %s from %s", c.name, dst, src, c.dst, c.src)
		}
		if c.ttl != 0 && got[14+8] != c.ttl {
			t.Errorf("%s: TTL %d, want %d", c.name, got[14+8], c.ttl)
		}
		if c.name == "super-packet, pod to pod" && (len(got) != len(whole.data) || !bytes.Equal(got[34:], whole.data[34:]) || out[0].vnet.GSOSize != 1400) {
			t.Error("the super-packet did not stay whole")
		}
	}
}

// TestPodFlows demands that both ways of a pod's flow to the outside are one flow, whose ICMP errors come in.
func TestPodFlows(t *testing.T) {
	r := newRig(t)
	out := udpFrame(t, macP1, gateP, pod1, "198.51.100.1", 64)
	r.send(Pod, memFrame{data: out})
	r.send(TAP, memFrame{data: portUnreachable(t, macA, gateA, out)})
	if got := r.pods[0].taken(); len(got) != 1 || r.engine.Flows.Stats().Inserted != 1 {
		t.Errorf("%d frames for the pod and %d flows, want the error and one flow", len(got), r.engine.Flows.Stats().Inserted)
	}
}

// TestPodFragments demands that fragments to and from pods share the way of the first one, whichever comes first.
func TestPodFragments(t *testing.T) {
	r := newRig(t)
	for i, to := range []string{pod2, "10.0.2.9", "198.51.100.1"} {
		for _, f := range permute(fragments(udpFrame(t, macP1, gateP, pod1, to, 64), uint16(i), 24, 48)) {
			r.send(Pod, memFrame{data: f})
		}
		port := []*memPort{r.pods[1], r.underlay(), r.tap()}[i]
		if got := port.taken(); len(got) != 3 {
			t.Errorf("%d fragments to %s, want 3", len(got), to)
		}
	}
	for _, f := range permute(fragments(udpFrame(t, macB, macA, "10.0.2.9", pod1, 64), 9, 24, 48)) {
		r.send(Underlay, wrapB(f))
	}
	got := r.pods[0].taken()
	for _, f := range got {
		if packet.MAC(f.data[:6]) != macP1 {
			t.Errorf("a fragment to %x, want to the pod", f.data[:6])
		}
	}
	if len(got) != 3 {
		t.Errorf("%d fragments from a peer, want 3", len(got))
	}
}

// permute puts the first one last.
func permute(frames [][]byte) [][]byte { return append(frames[1:len(frames):len(frames)], frames[0]) }

// TestRunPods attaches and detaches ports while the engine runs, and breaks one: the others go on.
func TestRunPods(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.engine.Run(ctx) }()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	pods := testPods()
	for i := range 100 {
		number := uint32(3 + rng.IntN(100))
		p := &tables.Pod{Port: number, MAC: packet.MAC{2, 9, byte(number)}, Gateway: gateP, Addr4: addr(fmt.Sprintf("10.0.1.%d", 100+number))}
		port := newMemPort(t)
		if err := r.engine.Attach(ctx, PodPort{p, []Port{port}}); err != nil {
			t.Fatal(err)
		}
		r.engine.Publish(testTablesWith(t, append(pods[:2:2], p)))
		port.put(memFrame{data: udpFrame(t, p.MAC, gateP, p.Addr4.String(), pod1, 64)})
		r.pods[0].put(memFrame{data: udpFrame(t, macP1, gateP, pod1, p.Addr4.String(), 64)})
		waitFor(t, func() bool { return i%10 == 0 || len(port.taken()) == 1 })
		waitFor(t, func() bool { return len(r.pods[0].taken()) == 1 })
		if i%10 == 0 {
			port.mu.Lock()
			port.gone = errors.New("device removed")
			port.signal(true)
			port.mu.Unlock()
		}
		r.engine.Publish(testTablesWith(t, pods))
		if err := r.engine.Detach(ctx, number); err != nil {
			t.Fatal(err)
		}
		r.pods = append(r.pods, port)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDetached demands that a port which was detached wakes its worker no more, though somebody else keeps it open, nor does one that is gone.
func TestDetached(t *testing.T) {
	r := newRig(t)
	r.pods[0].put(ofPod(pod1, pod2)(t))
	if ready, err := r.w.poller.wait(0); err != nil || ready.pods != 1 || r.w.poller.pods[0] != 1 {
		t.Fatalf("ready %+v, %v, want the port 1", ready, err)
	}
	r.w.detach(1)
	if ready, err := r.w.poller.wait(0); err != nil || ready.pods != 0 {
		t.Errorf("ready %+v, %v, want nothing", ready, err)
	}
	r.pods[1].gone = errors.New("device removed")
	r.pods[1].signal(true)
	if _, err := r.w.serve(2); err != nil {
		t.Errorf("a pod's port that is gone ends its worker: %v", err)
	}
	if ready, err := r.w.poller.wait(0); err != nil || ready.pods != 0 {
		t.Errorf("ready %+v, %v, want nothing of the port that is gone", ready, err)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen in 10 s")
		}
	}
}

// TestPodZeroAllocs demands that no packet of a pod costs an allocation.
func TestPodZeroAllocs(t *testing.T) {
	r := newRig(t)
	for _, p := range append(r.pods, r.tap(), r.underlay()) {
		p.discard = true
	}
	out := []memFrame{podSuper(t), ofPod(pod1, "10.0.2.9")(t), ofPod(pod1, "198.51.100.1")(t), ofPod(pod2, "10.0.2.9")(t),
		podARPFrame(layers.ARPRequest, macP1, pod1, gateway)(t), ndOfPod(localP, 134, "::")(t)}
	in := []memFrame{fromB(t, "10.0.2.9", pod1), fromB(t, "10.0.2.9", pod2)}
	round := func() {
		r.pods[0].put(out...)
		r.underlay().put(in...)
		r.turn(Pod)
		r.turn(Underlay)
	}
	round()
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations per round of %d packets, want 0", n, len(out)+len(in))
	}
}
