package packet_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// checkEcho has gopacket read an echo message of the type and returns its identifier, number and payload.
func checkEcho(t *testing.T, f *packet.Frame, reply bool) (id, seq uint16, payload []byte) {
	t.Helper()
	data := f.Bytes()
	p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
	if err := verifies(data[14:]); err != nil || p.ErrorLayer() != nil {
		t.Fatalf("%x: %v, %v", data, err, p.ErrorLayer())
	}
	src, dst := netip.Addr{}, netip.Addr{}
	want4, want6 := uint8(8), uint8(128)
	if reply {
		want4, want6 = 0, 129
	}
	if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
		icmp := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if ip.TTL != 64 || icmp.TypeCode != layers.CreateICMPv4TypeCode(want4, 0) {
			t.Fatalf("TTL %d, type %v", ip.TTL, icmp.TypeCode)
		}
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		id, seq, payload = icmp.Id, icmp.Seq, icmp.Payload
	} else {
		ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
		icmp, echo := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6), p.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo)
		if ip.HopLimit != 64 || icmp.TypeCode != layers.CreateICMPv6TypeCode(want6, 0) {
			t.Fatalf("hop limit %d, type %v", ip.HopLimit, icmp.TypeCode)
		}
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		id, seq, payload = echo.Identifier, echo.SeqNumber, icmp.Payload[4:]
	}
	if src != f.Src || dst != f.Dst || f.VNet != (packet.VNet{}) || f.CheckL4() != packet.None {
		t.Fatalf("%v -> %v, frame %v -> %v", src, dst, f.Src, f.Dst)
	}
	return id, seq, payload
}

func TestAnswerEcho(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 1000 {
		s := stack{ip: randomIPv4(r)}
		s.ip.Options, s.ip.Flags, s.ip.FragOffset = nil, s.ip.Flags&layers.IPv4DontFragment, 0
		if r.IntN(2) == 0 {
			s = s.randomIPv6(r, false)
			s.ext = nil
		}
		s = answerable(s)
		data := randomBytes(r, r.IntN(1000))
		f := parsed(t, b, icmpBytes(t, s, data))
		src, dst := f.Src, f.Dst
		if _, _, ok := f.EchoReply(); ok {
			t.Fatal("a request is taken for a reply")
		}
		if !f.AnswerEcho() || f.Src != dst || f.Dst != src {
			t.Fatalf("%v -> %v is answered by %v -> %v", src, dst, f.Src, f.Dst)
		}
		id, seq, payload := checkEcho(t, f, true)
		if id != 7 || seq != 9 || !bytes.Equal(payload, data) {
			t.Fatalf("identifier %d, number %d, payload %x, want %x", id, seq, payload, data)
		}
		if id, seq, ok := f.EchoReply(); id != 7 || seq != 9 || !ok {
			t.Fatalf("EchoReply = %d, %d, %v", id, seq, ok)
		}
		if f.AnswerEcho() {
			t.Fatal("a reply is answered")
		}
	}
}

func TestAnswerEchoRefuses(t *testing.T) {
	v4, v6 := plainTCP(nil), plainTCP(nil).overIPv6()
	set := func(data []byte, at int, value byte) []byte { data[at] = value; return data }
	options := v4
	options.ip.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: make([]byte, 5)}}
	fragmented := v4
	fragmented.ip.Flags = layers.IPv4MoreFragments
	from, to := v4, v4
	from.ip.SrcIP, to.ip.DstIP = []byte{224, 0, 0, 1}, []byte{255, 255, 255, 255}
	from6, to6 := plainTCP(nil).overIPv6(), plainTCP(nil).overIPv6()
	from6.ip6.SrcIP, to6.ip6.DstIP = netip.IPv6Unspecified().AsSlice(), netip.IPv6LinkLocalAllNodes().AsSlice()
	code := stack{ip: v4.ip, payload: []byte{8, 1, 0, 0, 0, 1, 0, 1}}
	code.ip.Protocol = layers.IPProtocolICMPv4
	for name, data := range map[string][]byte{
		"wrong checksum": set(icmpBytes(t, v4, nil), 36, 1), "wrong ICMPv6 checksum": set(icmpBytes(t, v6, nil), 56, 1),
		"code 1": code.finishICMP(t).bytes(t), "IP options": icmpBytes(t, options, nil), "fragment": icmpBytes(t, fragmented, nil),
		"extension header": icmpBytes(t, plainTCP(nil).overIPv6(option(60, 1)), nil), "multicast source": icmpBytes(t, from, nil),
		"broadcast destination": icmpBytes(t, to, nil), "unspecified source": icmpBytes(t, from6, nil),
		"multicast destination": icmpBytes(t, to6, nil), "TCP": v4.bytes(t),
	} {
		f := parsed(t, packet.NewBatch(0), data)
		before := bytes.Clone(f.Bytes())
		if f.AnswerEcho() || !bytes.Equal(f.Bytes(), before) {
			t.Errorf("%s: answered or changed", name)
		}
	}
}

func TestEchoRequest(t *testing.T) {
	out := dirty()
	for _, pair := range [][2]netip.Addr{{engine4, netip.MustParseAddr("10.0.0.1")}, {engine6, netip.MustParseAddr("fd00::1")}} {
		least := 28
		if pair[0].Is6() {
			least = 48
		}
		for _, size := range []int{least, least + 1, 1280, 1450, 65535} {
			out.Reset()
			f, ok := packet.EchoRequest(out, pair[0], pair[1], 0xabcd, 0x1234, size)
			if !ok || f.Len() != size+14 || f.Start() != packet.Headroom || len(out.Frames) != 1 || !f.DontFragment() {
				t.Fatalf("%d bytes to %v: %v", size, pair[1], ok)
			}
			id, seq, payload := checkEcho(t, f, false)
			if id != 0xabcd || seq != 0x1234 || bytes.Count(payload, []byte{0}) != size-least || f.Src != pair[0] || f.Dst != pair[1] {
				t.Fatalf("identifier %#x, number %#x, payload %x", id, seq, payload)
			}
			if sport, dport := f.Ports(); sport != 0xabcd || dport != 0xabcd {
				t.Errorf("ports %#x, %#x", sport, dport)
			}
			hash := f.Hash
			if !f.AnswerEcho() || f.Hash != hash {
				t.Errorf("request and reply hash to %#x and %#x", hash, f.Hash)
			}
		}
		for _, size := range []int{-1, 0, least - 1, 65536} {
			out.Reset()
			if _, ok := packet.EchoRequest(out, pair[0], pair[1], 1, 1, size); ok {
				t.Errorf("a request of %d bytes", size)
			}
		}
	}
	for _, to := range [][2]netip.Addr{{engine4, engine6}, {engine4, {}}, {{}, {}}} {
		if _, ok := packet.EchoRequest(packet.NewBatch(0), to[0], to[1], 1, 1, 100); ok {
			t.Errorf("a request from %v to %v", to[0], to[1])
		}
	}
}

// What the engine makes lies apart in the batch.
func TestMadeFramesKeepApart(t *testing.T) {
	out := dirty()
	for i := range 10 {
		f, ok := packet.EchoRequest(out, engine4, netip.MustParseAddr("10.0.0.1"), 1, uint16(i), 1400)
		offending := parsed(t, packet.NewBatch(0), plainTCP(f.Bytes()).bytes(t))
		if _, made := packet.ICMPError(out, offending, engine4, packet.NoRoute, 0); !ok || !made {
			t.Fatal("the batch is full")
		}
	}
	for i, f := range out.Frames {
		if err := verifies(f.Bytes()[14:]); err != nil || f.Bytes()[14+20] != [2]byte{8, 3}[i%2] {
			t.Errorf("frame %d: %v: %x", i, err, f.Bytes())
		}
		f.AnswerEcho()
		if _, seq, _ := f.EchoReply(); i%2 == 0 && int(seq) != i/2 {
			t.Errorf("frame %d: number %d", i, seq)
		}
	}
}

// A checksum that is left to a device says nothing of the message.
func TestEchoPartialChecksum(t *testing.T) {
	f := load(packet.NewBatch(0), icmpBytes(t, plainTCP(nil), nil))
	f.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 2}
	if v := f.Parse(); v != packet.None || f.AnswerEcho() {
		t.Errorf("%v, or answered", v)
	}
}

// Every bit of a reply behind the IP header counts.
func TestEchoReplyEveryBit(t *testing.T) {
	for _, to := range [][2]netip.Addr{{engine4, netip.MustParseAddr("10.0.0.1")}, {engine6, netip.MustParseAddr("fd00::1")}} {
		f, _ := packet.EchoRequest(packet.NewBatch(0), to[0], to[1], 1, 2, 60)
		f.AnswerEcho()
		data := bytes.Clone(f.Bytes())
		for bit := 8 * (f.L4 - f.L2); bit < 8*len(data); bit++ {
			spoiled := bytes.Clone(data)
			spoiled[bit/8] ^= 0x80 >> (bit % 8)
			if _, _, ok := parsed(t, packet.NewBatch(0), spoiled).EchoReply(); ok {
				t.Errorf("bit %d turned over: still a reply", bit)
			}
		}
	}
}
