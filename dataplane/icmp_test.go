package dataplane

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// An icmpAnswer is what gopacket reads out of an ICMP or ICMPv6 message.
type icmpAnswer struct {
	from, to   string
	kind, code uint8
	mtu        uint32
	quoted     []byte
}

// decodeICMP lets gopacket decode an Ethernet frame with an ICMP error, and holds its checksum against one computed anew.
func decodeICMP(t *testing.T, frame []byte) icmpAnswer {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if p.ErrorLayer() != nil {
		t.Fatal(p.ErrorLayer().Error())
	}
	src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
	a := icmpAnswer{from: src.String(), to: dst.String()}
	message := p.NetworkLayer().LayerPayload()
	sum := packet.Sum(0)
	if l, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		a.kind, a.code = l.TypeCode.Type(), l.TypeCode.Code()
	} else {
		l := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		a.kind, a.code = l.TypeCode.Type(), l.TypeCode.Code()
		sum = sum.Add(src.Raw()).Add(dst.Raw()).AddUint16(uint16(len(message))).AddUint16(packet.ProtoICMPv6)
	}
	if sum.Add(message).Fold() != 0xffff {
		t.Error("the ICMP checksum is wrong")
	}
	a.mtu = uint32(message[4])<<24 | uint32(message[5])<<16 | uint32(message[6])<<8 | uint32(message[7])
	a.quoted = message[8:]
	return a
}

// TestComplaints demands the ICMP error for each reason, from the engine's address, with the packet quoted as it was.
func TestComplaints(t *testing.T) {
	big := func(from, to string) []byte { return udpFrame(t, macA, gateA, from, to, 1380) }
	for _, c := range []struct {
		name       string
		frame      []byte
		hop        bool
		kind, code uint8
		mtu        uint32
	}{
		{"no route", outTo("198.51.100.1")(t).data, false, 3, 0, 0},
		{"nobody's subnet", outTo("10.0.9.9")(t).data, false, 3, 0, 0},
		{"TTL", lowTTL(1)(t).data, true, 11, 0, 0},
		{"too big", big("10.0.1.9", "10.0.3.9"), false, 3, 4, narrowMTU},
		{"IPv6 no route", out6("2001:db8:99::1")(t).data, false, 1, 0, 0},
		{"IPv6 nobody's subnet", out6("fd00:9::9")(t).data, false, 1, 0, 0},
		{"IPv6 too big", big(podA6, "fd00:3::9"), false, 2, 0, narrowMTU},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.engine.DecrementTTL = c.hop
			r.send(TAP, memFrame{data: c.frame})
			out := r.tap().taken()
			if len(out) != 1 {
				t.Fatalf("%d frames, want the ICMP error", len(out))
			}
			if !bytes.Equal(out[0].data[:6], macA[:]) || !bytes.Equal(out[0].data[6:12], gateA[:]) {
				t.Errorf("from %x to %x, want from the engine to the node", out[0].data[6:12], out[0].data[:6])
			}
			a := decodeICMP(t, out[0].data)
			want := icmpAnswer{from: "10.0.1.254", to: "10.0.1.9", kind: c.kind, code: c.code, mtu: c.mtu}
			if c.frame[12] == 0x86 {
				want.from, want.to = engineA6, podA6
			}
			if quoted := a.quoted; !bytes.Equal(quoted, c.frame[14:14+len(quoted)]) || len(quoted) < 28 {
				t.Errorf("quotes %x", quoted)
			}
			if a.quoted = nil; a.from != want.from || a.to != want.to || a.kind != want.kind || a.code != want.code || a.mtu != want.mtu {
				t.Errorf("got %+v, want %+v", a, want)
			}
		})
	}
}

// TestComplaintToPeer is a packet whose TTL ends behind the tunnel: its sender, on the other node, is told.
func TestComplaintToPeer(t *testing.T) {
	r := newRig(t, plainUDP)
	inner := udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64)
	inner[14+8] = 1
	fixIPChecksum(inner)
	r.send(Underlay, memFrame{data: inner[14:], remote: nodeB})
	out := r.underlay().taken()
	if len(out) != 1 || out[0].remote != nodeB {
		t.Fatalf("sent %+v, want one datagram to %s", out, nodeB)
	}
	a := decodeICMP(t, append(bytes.Clone(inner[:14]), out[0].data...))
	if a.from != "10.0.1.254" || a.to != "10.0.2.9" || a.kind != 11 {
		t.Errorf("%+v, want time exceeded from the engine", a)
	}
}

// TestTooBigSegment is a TCP super-packet whose segments are larger than the path: the error quotes a segment and not the whole.
func TestTooBigSegment(t *testing.T) {
	for _, from := range []string{"10.0.1.9", podA6} {
		to, ip := "10.0.3.9", 20
		if from == podA6 {
			to, ip = "fd00:3::9", 40
		}
		r := newRig(t)
		r.send(TAP, tcpSuper(t, from, to, 20000, 1400))
		out := r.tap().taken()
		if len(out) != 1 {
			t.Fatalf("%d frames, want the ICMP error", len(out))
		}
		a := decodeICMP(t, out[0].data)
		length := int(a.quoted[2])<<8 + int(a.quoted[3])
		if from == podA6 {
			length = 40 + int(a.quoted[4])<<8 + int(a.quoted[5])
		}
		if a.mtu != narrowMTU || length != ip+20+1400 {
			t.Errorf("from %s: MTU %d, quoted packet of %d bytes, want %d and %d", from, a.mtu, length, narrowMTU, ip+20+1400)
		}
	}
}

// TestICMPLimit provokes errors faster than they may be made: the first come, then as many as the rate allows, and one greedy
// flow takes nothing from another.
func TestICMPLimit(t *testing.T) {
	r := newRig(t)
	greedy, modest := udpFrame(t, macA, gateA, "10.0.1.9", "10.0.9.9", 64), udpFrame(t, macA, gateA, "10.0.1.7", "10.0.9.8", 64)
	provoke := func(frame []byte, n int) int {
		for range n {
			r.send(TAP, memFrame{data: frame})
		}
		return len(r.tap().taken())
	}
	if n := provoke(greedy, 1000); n != flowBurst {
		t.Errorf("%d errors for 1000 packets at once, want %d", n, flowBurst)
	}
	if n := provoke(modest, 1); n != 1 {
		t.Error("no error for another flow's packet")
	}
	r.now.Add(int64(time.Second / 2))
	if n := provoke(greedy, 1000); n != flowRate/2 {
		t.Errorf("%d errors after half a second, want %d", n, flowRate/2)
	}
	if c := r.w.snapshot(); c.ICMPLimited != 2000-flowBurst-flowRate/2 {
		t.Errorf("%d errors counted as not made", c.ICMPLimited)
	}
}

// TestICMPLimitOfAll does the same with many flows.
func TestICMPLimitOfAll(t *testing.T) {
	var l icmpLimiter
	made := 0
	for i := range uint32(10000) {
		if l.allow(i, i%2 == 0, time.Hour) {
			made++
		}
	}
	if made != allBurst {
		t.Errorf("%d errors at once, want %d", made, allBurst)
	}
	made = 0
	for ms := range uint32(1000) {
		for i := range uint32(10) {
			if l.allow(ms*10+i, true, time.Hour+time.Duration(ms+1)*time.Millisecond) {
				made++
			}
		}
	}
	if made != allRate {
		t.Errorf("%d errors in a second, want %d", made, allRate)
	}
}

// TestEchoReply holds the engine's answers to pings, from this node and from a peer, against gopacket's decoder.
func TestEchoReply(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		side     Side
		frame    []byte
		from, to string
	}{
		{TAP, echoFrame(t, macA, gateA, "10.0.1.9", "10.0.1.254", false), "10.0.1.254", "10.0.1.9"},
		{TAP, echoFrame(t, macA, gateA, podA6, engineA6, false), engineA6, podA6},
		{Underlay, echoFrame(t, macB, macA, "10.0.2.0", "10.0.1.254", false), "10.0.1.254", "10.0.2.0"},
		{Underlay6, echoFrame(t, macB, macA, "fd00:2::", engineA6, false), engineA6, "fd00:2::"},
	} {
		m := memFrame{data: c.frame}
		if c.side != TAP {
			m = wrapB(c.frame)
		}
		r.send(c.side, m)
		out := r.ports[c.side].taken()
		if len(out) != 1 {
			t.Fatalf("%d frames on %s, want the reply", len(out), c.side)
		}
		frame := out[0].data
		if c.side != TAP {
			frame = frame[vx:]
		}
		a := decodeICMP(t, frame)
		reply := uint8(0)
		if addr(c.from).Is6() {
			reply = 129
		}
		if a.from != c.from || a.to != c.to || a.kind != reply || a.mtu != 7<<16|1 || len(a.quoted) != 56 {
			t.Errorf("%+v, want the reply from %s to %s", a, c.from, c.to)
		}
	}
}

// TestProbeAnswers demands that the answers to this node's probes are told to whoever sent them, with the peer that they came from.
func TestProbeAnswers(t *testing.T) {
	r := newRig(t)
	r.send(Underlay, echoFromB("10.0.2.0", "10.0.1.254", true)(t))
	r.send(Underlay6, echoFromB("fd00:2::", engineA6, true)(t))
	want := []probeAnswer{{nodeB.Addr(), 7, 1, 84}, {nodeB6.Addr(), 7, 1, 104}}
	if len(r.probes) != 2 || r.probes[0] != want[0] || r.probes[1] != want[1] {
		t.Errorf("told of %+v, want %+v", r.probes, want)
	}
}

// TestNDReply holds the engine's advertisement against gopacket's decoder.
func TestNDReply(t *testing.T) {
	r := newRig(t)
	r.send(TAP, memFrame{data: solicitation(t, macA, gateA, "fd00:1::", engineA6)})
	out := r.tap().taken()
	if len(out) != 1 {
		t.Fatalf("%d frames, want the advertisement", len(out))
	}
	a := decodeICMP(t, out[0].data)
	p := gopacket.NewPacket(out[0].data, layers.LayerTypeEthernet, gopacket.Default)
	na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !ok || a.from != engineA6 || a.to != "fd00:1::" || !bytes.Equal(na.TargetAddress, addr(engineA6).AsSlice()) || !na.Solicited() || len(na.Options) != 1 ||
		na.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(na.Options[0].Data, gateA[:]) {
		t.Errorf("answer %+v, advertisement %+v", a, na)
	}
}

// TestProbeAnswerInFragments is the answer of a kernel that believes its way to be narrow: it counts once, and nothing of it is dropped.
func TestProbeAnswerInFragments(t *testing.T) {
	r := newRig(t)
	for _, f := range fragments(echoFrame(t, macB, macA, "10.0.2.0", "10.0.1.254", true), 9, 24, 48) {
		r.send(Underlay, wrapB(f))
	}
	if want := (probeAnswer{nodeB.Addr(), 7, 1, 44}); len(r.probes) != 1 || r.probes[0] != want {
		t.Errorf("told of %+v, want %+v", r.probes, want)
	}
	if n := r.w.count.Verdicts[packet.ProbeAnswered]; n != 3 {
		t.Errorf("%d fragments counted as the answer, want 3", n)
	}
}
