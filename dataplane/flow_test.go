package dataplane

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// flowsOf lists the rig's flow table.
func (r *rig) flowsOf() []conntrack.Flow {
	return slices.Collect(r.engine.Flows.Flows(time.Duration(r.now.Load())))
}

// TestFlows demands one flow for what goes out and comes back, in the direction of the first packet, and none for what was dropped.
func TestFlows(t *testing.T) {
	r := newRig(t)
	r.send(TAP, outTo("10.0.9.9")(t)) // nobody's
	r.send(TAP, memFrame{data: udpFrame(t, macA, gateA, "10.0.1.9", "10.0.3.9", narrowMTU)})
	if flows := r.flowsOf(); len(flows) != 0 {
		t.Fatalf("flows of a packet that was dropped: %+v", flows)
	}
	r.send(TAP, outTo("10.0.2.9")(t), out6(podB6)(t))
	back := udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64)
	copy(back[34:], []byte{5000 >> 8, 5000 & 0xff, 4000 >> 8, 4000 & 0xff})
	r.send(Underlay, wrapB(back)) // ports exchanged: the checksum stays right
	flows := r.flowsOf()
	if len(flows) != 2 {
		t.Fatalf("%d flows, want one for each family: %+v", len(flows), flows)
	}
	for _, f := range flows {
		if f.Tuple.SrcPort != 4000 || f.Tuple.DstPort != 5000 || f.Tuple.Proto != packet.ProtoUDP {
			t.Errorf("flow %+v", f.Tuple)
		}
		if v4 := f.Tuple.Src == addr("10.0.1.9"); f.Replied != v4 {
			t.Errorf("flow %+v: replied %t", f.Tuple, f.Replied)
		}
	}
}

// TestTouchesItsFlow demands that what is touched for a packet is its flow: from each side and by each encapsulation, in a table that is
// large enough.
func TestTouchesItsFlow(t *testing.T) {
	for _, c := range []struct {
		name   string
		frame  func(testing.TB) memFrame
		side   Side
		option func(*Config)
	}{
		{"from the TAP", outTo("10.0.2.9"), TAP, func(*Config) {}},
		{"from the TAP, IPv6", out6(podB6), TAP, func(*Config) {}},
		{"from a peer", inFrom("10.0.2.9", "10.0.1.9"), Underlay, func(*Config) {}},
		{"from a peer, IPv6", inFrom(podB6, podA6), Underlay6, func(*Config) {}},
		{"to a peer, plain", outTo("10.0.2.9"), TAP, plainUDP},
		{"from a peer, plain", func(t testing.TB) memFrame {
			return memFrame{data: udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64)[packet.EthernetLen:], remote: nodeB}
		}, Underlay, plainUDP},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, withFlows(t, 1<<15, 1<<15), c.option)
			for i := range 1 << 14 {
				p := conntrack.Packet{Tuple: conntrack.Tuple{Src: addr("10.9.0.1"), Dst: addr("10.9.0.2"), SrcPort: uint16(i), DstPort: 1, Proto: packet.ProtoUDP}}
				if _, result := r.engine.Flows.Insert(&p, conntrack.NAT{}, time.Duration(r.now.Load())); result != conntrack.Inserted {
					t.Fatal(result)
				}
			}
			if !r.engine.Flows.Large() {
				t.Fatal("the table is not large")
			}
			r.ports[c.side].put(c.frame(t))
			r.w.prepare(c.side)
			if n, err := r.w.ports[c.side].Read(r.w.rx); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			var p packet.Peek
			if f := r.w.rx.Frames[0]; !f.Peek(r.w.innerAt(c.side, f), &p) {
				t.Fatal("no flow is seen")
			}
			if err := r.w.work(c.side); err != nil {
				t.Fatal(err)
			}
			want := conntrack.Tuple{Src: p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort, Proto: p.Proto}
			if _, ok := r.engine.Flows.Find(want, time.Duration(r.now.Load())); !ok {
				t.Errorf("%+v is not a flow", want)
			}
		})
	}
}

// TestRelated demands that an ICMP error passes iff it quotes a flow of its receiver's.
func TestRelated(t *testing.T) {
	for _, c := range []struct{ from, to, other string }{{"10.0.1.9", "10.0.2.9", "10.0.1.7"}, {podA6, podB6, "fd00:1::7"}} {
		r := newRig(t)
		sent := udpFrame(t, macA, gateA, c.from, c.to, 64)
		r.send(TAP, memFrame{data: sent})
		r.send(underlayOf(wrapB(sent)), wrapB(portUnreachable(t, macB, macA, sent)))
		if len(r.tap().taken()) != 1 {
			t.Errorf("%s: the error about a live flow is not delivered", c.from)
		}
		expectDrop(t, r, wrapB(portUnreachable(t, macB, macA, udpFrame(t, macA, gateA, c.other, c.to, 64))), packet.DropUnrelated)
		astray := portUnreachable(t, macB, macA, sent) // about a live flow, but not to its sender
		readdress(astray, addr(c.other))
		expectDrop(t, r, wrapB(astray), packet.DropUnrelated)
		r.now.Add(int64(time.Hour))
		expectDrop(t, r, wrapB(portUnreachable(t, macB, macA, sent)), packet.DropUnrelated)
	}
}

// readdress changes the destination of an Ethernet frame with ICMP or ICMPv6.
func readdress(frame []byte, to netip.Addr) {
	if to.Is4() {
		copy(frame[30:], to.AsSlice())
		fixIPChecksum(frame)
		return
	}
	copy(frame[38:], to.AsSlice())
	frame[56], frame[57] = 0, 0
	message := frame[54:]
	sum := packet.Sum(0).Add(frame[22:54]).AddUint16(uint16(len(message))).AddUint16(packet.ProtoICMPv6).Add(message).Checksum()
	frame[56], frame[57] = byte(sum>>8), byte(sum)
}

// TestFragmentsForEver sends more datagrams back to front than the tracker could hold at once: what was released makes room.
func TestFragmentsForEver(t *testing.T) {
	r := newRig(t)
	r.underlay().discard = true
	whole := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 1000)
	for id := range uint16(5000) {
		f := fragments(whole, id, 504)
		r.send(TAP, memFrame{data: f[1]}, memFrame{data: f[0]})
		r.now.Add(int64(time.Millisecond))
	}
	if n := r.w.count.Verdicts[packet.Encapsulated]; n != 10000 {
		t.Errorf("%v, want all 10,000 sent", verdictText(r.w.count.Verdicts))
	}
}

// TestFragmentsFollow sends a datagram's fragments in every order, out and in: all arrive, the first one's verdict is that of all,
// and they make one flow.
func TestFragmentsFollow(t *testing.T) {
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	for _, order := range orders {
		r := newRig(t)
		out := fragments(udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64), 5, 24, 48)
		in := fragments(udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64), 5, 24, 48)
		lost := fragments(udpFrame(t, macA, gateA, "10.0.1.9", "10.0.9.9", 64), 6, 24, 48)
		for _, i := range order {
			r.send(TAP, memFrame{data: out[i]}, memFrame{data: lost[i]})
			r.send(Underlay, wrapB(in[i]))
		}
		if n := r.w.count.Verdicts[packet.DropReject]; n != 3 {
			t.Errorf("order %v: %d fragments dropped like their first one, want 3", order, n)
		}
		sent := r.underlay().taken()
		if len(sent) != 3 || !bytes.Equal(sent[0].data[vip:], out[0][14:]) && order[0] == 0 {
			t.Errorf("order %v: %d fragments sent, want 3", order, len(sent))
		}
		for _, frag := range out {
			if !slices.ContainsFunc(sent, func(m memFrame) bool { return bytes.Equal(m.data[vip:], frag[14:]) }) {
				t.Errorf("order %v: a fragment was changed or lost", order)
			}
		}
		delivered := 0
		for _, m := range r.tap().taken() {
			if bytes.Equal(m.data[26:30], []byte{10, 0, 2, 9}) {
				delivered++
			}
		}
		if delivered != 3 {
			t.Errorf("order %v: %d fragments delivered, want 3", order, delivered)
		}
		if n := len(r.flowsOf()); n != 2 {
			t.Errorf("order %v: %d flows, want one for each datagram that passed", order, n)
		}
	}
}

// TestPlainUDP holds what flannel's udp backend sees: the bare packet with its TTL one less, and an Ethernet header for the kernel on
// the way in.
func TestPlainUDP(t *testing.T) {
	r := newRig(t, plainUDP)
	sent := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64)
	r.send(TAP, memFrame{data: sent})
	want := bytes.Clone(sent)
	want[14+8]--
	fixIPChecksum(want)
	if out := r.underlay().taken(); len(out) != 1 || !bytes.Equal(out[0].data, want[14:]) {
		t.Errorf("sent %+v, want %x", out, want[14:])
	}
	back := udpFrame(t, macA, gateA, "10.0.2.9", "10.0.1.9", 64)
	copy(back[34:], []byte{5000 >> 8, 5000 & 0xff, 4000 >> 8, 4000 & 0xff})
	r.send(Underlay, memFrame{data: back[14:], remote: nodeB})
	back[14+8]--
	fixIPChecksum(back)
	copy(back, macA[:])
	copy(back[6:], gateA[:])
	if in := r.tap().taken(); len(in) != 1 || !bytes.Equal(in[0].data, back) {
		t.Errorf("delivered %+v, want %x", in, back)
	}
	if flows := r.flowsOf(); len(flows) != 1 || !flows[0].Replied {
		t.Errorf("flows %+v, want one with a reply", flows)
	}
}

// TestUncutTCP demands that a super-packet which a kernel peer never cut is cut to what this node's pods take, which is less than
// the link does where there is IPv6 too.
func TestUncutTCP(t *testing.T) {
	r := newRig(t)
	r.send(Underlay, kernelSuper(t))
	in := r.tap().taken()
	if len(in) != 1 || int(in[0].vnet.GSOSize) != testMTU-40 {
		t.Errorf("delivered %d frames with segments of %d bytes, want one of %d", len(in), in[0].vnet.GSOSize, testMTU-40)
	}
}

// TestOuterTOS demands the inner ECN field outside, and the DSCP only when it is asked for.
func TestOuterTOS(t *testing.T) {
	const ef, ect0 = 46 << 2, packet.ECNECT0
	for _, copyDSCP := range []bool{false, true} {
		r := newRig(t, func(c *Config) { c.CopyDSCP = copyDSCP })
		v4, v6 := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64), udpFrame(t, macA, gateA, podA6, podB6, 64)
		v4[15] = ef | ect0
		fixIPChecksum(v4)
		v6[14], v6[15] = 0x60|(ef|ect0)>>4, (ef|ect0)<<4&0xff
		r.send(TAP, memFrame{data: v4}, memFrame{data: v6})
		want := uint8(ect0)
		if copyDSCP {
			want |= ef
		}
		for _, out := range [][]memFrame{r.underlay().taken(), r.underlay6().taken()} {
			if len(out) != 1 || out[0].tos != want {
				t.Errorf("copy DSCP %t: outer TOS %v, want %#x", copyDSCP, out, want)
			}
		}
	}
}

// TestOptionsUntouched demands that a TCP handshake passes the engine byte for byte, MSS and all, whatever the path's MTU.
func TestOptionsUntouched(t *testing.T) {
	for _, to := range []string{"10.0.2.9", "10.0.3.9", podB6, "fd00:3::9"} {
		from, side := "10.0.1.9", Underlay
		if addr(to).Is6() {
			from, side = podA6, Underlay6
		}
		eth, ip := ipLayers(macA, gateA, from, to, layers.IPProtocolTCP)
		tcp := &layers.TCP{SrcPort: 4000, DstPort: 5000, SYN: true, Window: 1000, Options: []layers.TCPOption{
			{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{8960 >> 8, 8960 & 0xff}},
			{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}},
		}}
		tcp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
		syn := build(t, eth, ip, tcp)
		r := newRig(t)
		r.send(TAP, memFrame{data: syn})
		if out := r.ports[side].taken(); len(out) != 1 || !bytes.Equal(out[0].data[vip:], syn[14:]) {
			t.Errorf("to %s: sent %+v, want %x", to, out, syn[14:])
		}
	}
}

// TestJoined demands that datagrams of one flow behind each other reach the TAP as one super-packet, that each of them is counted,
// and that the next flow's begins another.
func TestJoined(t *testing.T) {
	for _, c := range []struct{ from, other, to string }{{"10.0.2.9", "10.0.2.8", "10.0.1.9"}, {podB6, "fd00:2::8", podA6}} {
		r := newRig(t)
		one, other := fromB(t, c.from, c.to), fromB(t, c.other, c.to)
		r.send(underlayOf(one), one, one, one, other, one)
		in := r.tap().taken()
		if len(in) != 3 || in[0].vnet.GSOType != packet.GSOUDPL4 || in[0].vnet.GSOSize != 64 || in[1].vnet.GSOType != packet.GSONone {
			t.Fatalf("%d frames delivered, want 3 of which the first is of three datagrams: %+v", len(in), in)
		}
		if got := r.w.count.Ports[underlayOf(one)]; got.FramesIn != 5 || got.SegmentsIn != 5 || got.BytesIn != uint64(5*len(one.data)) {
			t.Errorf("counted %+v", got)
		}
		if r.w.count.Verdicts[packet.Delivered] != 5 {
			t.Errorf("verdicts %v", verdictText(r.w.count.Verdicts))
		}
		if flows := r.flowsOf(); len(flows) != 2 {
			t.Errorf("%d flows, want 2", len(flows))
		}
	}
}

// TestSameIDAgain sends one fragmented datagram after the other under one ID, as a sender with many sockets happens to do: none is lost.
func TestSameIDAgain(t *testing.T) {
	r := newRig(t)
	pieces := fragments(udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64), 5, 24, 48)
	for range 3 {
		for _, f := range pieces {
			r.send(Underlay, wrapB(f))
		}
	}
	if n := len(r.tap().taken()); n != 9 {
		t.Errorf("%d fragments delivered of 9: %v", n, verdictText(r.w.count.Verdicts))
	}
}
