package packet_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

var (
	engine4 = netip.MustParseAddr("10.9.9.9")
	engine6 = netip.MustParseAddr("fd00:9::9")
)

// icmpKinds are type and code in ICMP and ICMPv6, from the tables of RFC 792, RFC 1812 and RFC 4443.
var icmpKinds = map[packet.ICMPKind][2]uint16{
	packet.NoRoute:            {0x0300, 0x0100},
	packet.AddressUnreachable: {0x0301, 0x0103},
	packet.PortUnreachable:    {0x0303, 0x0104},
	packet.AdminProhibited:    {0x030d, 0x0101},
	packet.HopLimitExceeded:   {0x0b00, 0x0300},
	packet.TooBig:             {0x0304, 0x0200},
}

// engineOf is the engine's address in the frame's family.
func engineOf(f *packet.Frame) netip.Addr {
	if f.EtherType == packet.EtherTypeIPv6 {
		return engine6
	}
	return engine4
}

// dirty returns a batch whose arena is full of old bytes.
func dirty() *packet.Batch {
	b := packet.NewBatch(0)
	slot := b.Slot(packet.MaxFrame)
	copy(slot, bytes.Repeat([]byte{0xee}, len(slot)))
	return b
}

// checkError has gopacket read an error about a packet that would have left as wire, IP header first. It returns the
// quote.
func checkError(t *testing.T, f *packet.Frame, to netip.Addr, kind packet.ICMPKind, mtu int, wire []byte) {
	t.Helper()
	data := f.Bytes()
	p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	limit, codes := 576, icmpKinds[kind][0]
	var quote []byte
	if to.Is4() {
		ip, icmp := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if ip.TTL != 64 || ip.TOS != 0xc0 || ip.Id != 0 || ip.Flags != layers.IPv4DontFragment || ip.FragOffset != 0 || ip.IHL != 5 {
			t.Fatalf("IP header %+v", ip)
		}
		quote = icmp.Payload
	} else {
		limit, codes = 1280, icmpKinds[kind][1]
		ip, icmp := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6), p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		if ip.HopLimit != 64 || ip.TrafficClass != 0 || ip.FlowLabel != 0 || ip.NextHeader != layers.IPProtocolICMPv6 {
			t.Fatalf("IP header %+v", ip)
		}
		quote = icmp.Payload[4:]
	}
	headers := len(data) - 14 - len(quote)
	icmp := data[14+headers-8:]
	if got := binary.BigEndian.Uint16(icmp); got != codes || verifies(data[14:]) != nil {
		t.Fatalf("type and code %#x, want %#x; checksums: %v", got, codes, verifies(data[14:]))
	}
	wantMTU := 0
	if kind == packet.TooBig {
		wantMTU = mtu
	}
	if got := binary.BigEndian.Uint32(icmp[4:]); got != uint32(wantMTU) {
		t.Fatalf("MTU field %d, want %d", got, wantMTU)
	}
	if want := min(len(wire), limit-headers); len(quote) != want || !bytes.Equal(quote, wire[:want]) {
		t.Fatalf("%d bytes quoted, want %d:\ngot  %x\nwant %x", len(quote), want, quote, wire[:want])
	}
	if f.Src != engineOf(f) || f.Dst != to || f.CheckL4() != packet.None || f.Segments != 1 || f.VNet != (packet.VNet{}) {
		t.Fatalf("%v -> %v, %v, %+v", f.Src, f.Dst, f.CheckL4(), f.VNet)
	}
	f.SetMACs(packet.MAC(macA), packet.MAC(macB))
	if want := append(append(bytes.Clone(macA), macB...), byte(f.EtherType>>8), byte(f.EtherType)); !bytes.Equal(data[:14], want) {
		t.Fatalf("Ethernet header %x, want %x", data[:14], want)
	}
}

// answerable turns the random addresses of a stack into ones that get errors.
func answerable(s stack) stack {
	for _, ip := range [][]byte{s.ip.SrcIP, s.ip.DstIP} {
		ip[0] = 10
	}
	if s.ip6 != nil {
		s.ip6.SrcIP[0], s.ip6.DstIP[0] = 0xfd, 0xfd
	}
	return s
}

func TestICMPError(t *testing.T) {
	r := newRand(t)
	b, out := packet.NewBatch(0), dirty()
	for range 500 {
		s := answerable(randomStack(r, 2000))
		s.ip.FragOffset = 0
		if s.tcp == nil && s.udp == nil && s.proto() <= packet.ProtoICMP || s.proto() == packet.ProtoICMPv6 {
			s.ip.Protocol = layers.IPProtocolGRE
		}
		data := s.bytes(t)
		for kind := range icmpKinds {
			f := parsed(t, b, data)
			if f.FragmentOffset > 0 {
				break
			}
			to := f.Src
			out.Reset()
			e, ok := packet.ICMPError(out, f, engineOf(f), kind, 1234)
			if !ok || len(out.Frames) != 1 || out.Frames[0] != e || e.Start() != packet.Headroom {
				t.Fatalf("no error about %x", data)
			}
			checkError(t, e, to, kind, 1234, data[14:])
		}
	}
}

// Of a super-packet the error quotes the first segment, of an unfinished packet the finished one.
func TestICMPErrorQuotesTheWire(t *testing.T) {
	r := newRand(t)
	b, out := packet.NewBatch(0), dirty()
	for range 300 {
		s := randomSuper(r)
		s.stack = answerable(s.stack)
		f := s.frame(t, b)
		if r.IntN(2) == 0 {
			f.Prepend(8) // as if the codec had been there
		}
		if r.IntN(2) == 0 {
			ip := bytes.Clone(f.Bytes()[f.L3-f.Start():])
			vnet := f.VNet
			f = bare(b, ip, 3)
			if f.VNet = vnet; f.Parse() != packet.None {
				t.Fatal("bare frame refused")
			}
			f.SetMACs(packet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, packet.MAC{}) // says nothing of how it came
		}
		out.Reset()
		before, start := bytes.Clone(f.Bytes()), f.Start()
		e, ok := packet.ICMPError(out, f, engineOf(f), packet.TooBig, 1400)
		if !ok {
			t.Fatal("no error")
		}
		checkError(t, e, f.Src, packet.TooBig, 1400, s.segments(t)[0][14:])
		if !bytes.Equal(f.Bytes(), before) || f.Start() != start {
			t.Fatal("the super-packet changed")
		}
		s.payload = s.payload[:min(len(s.payload), 1000)]
		g := load(b, partial(s.stack, s.bytes(t)))
		g.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: uint16(s.l4()), CsumOffset: uint16(s.checksumAt() - s.l4())}
		g.Parse()
		if e, ok = packet.ICMPError(out, g, engineOf(g), packet.NoRoute, 0); !ok {
			t.Fatal("no error")
		}
		checkError(t, e, g.Src, packet.NoRoute, 0, s.bytes(t)[14:])
	}
}

func TestICMPErrorRefuses(t *testing.T) {
	addr := netip.MustParseAddr
	icmp := func(v6 bool, kind byte) []byte {
		s := stack{ip: plainTCP(nil).ip, payload: append([]byte{kind}, make([]byte, 40)...)}
		if s.ip.Protocol = layers.IPProtocolICMPv4; v6 {
			s = s.overIPv6()
		}
		return s.finishICMP(t).bytes(t)
	}
	later := plainTCP(make([]byte, 4))
	later.ip.FragOffset = 5
	groupMAC := plainTCP(nil).bytes(t)
	groupMAC[0] |= 1
	b := packet.NewBatch(0)
	for name, data := range map[string][]byte{
		"unreachable": icmp(false, 3), "source quench": icmp(false, 4), "redirect": icmp(false, 5), "time exceeded": icmp(false, 11),
		"parameter problem": icmp(false, 12), "ICMPv6 unreachable": icmp(true, 1), "too big": icmp(true, 2), "ICMPv6 time exceeded": icmp(true, 3),
		"ICMPv6 parameter problem": icmp(true, 4), "unknown ICMPv6 error": icmp(true, 127), "ICMPv6 redirect": icmp(true, 137),
		"later fragment": later.bytes(t), "later IPv6 fragment": plainTCP(make([]byte, 4)).overIPv6(fragmentHeader(64, 0)).bytes(t),
		"link broadcast": groupMAC, "ARP": arpRequestBytes,
	} {
		f := parsed(t, b, data)
		if e, ok := packet.ICMPError(packet.NewBatch(0), f, engineOf(f), packet.NoRoute, 0); ok || e != nil {
			t.Errorf("%s is answered", name)
		}
	}
	for _, a := range []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:10.0.0.1"} {
		f := between(t, b, addr(a), netip.Addr{})
		if _, ok := packet.ICMPError(packet.NewBatch(0), f, engineOf(f), packet.NoRoute, 0); ok {
			t.Errorf("source %s is answered", a)
		}
	}
	for _, a := range []string{"224.0.0.1", "255.255.255.255", "ff02::1"} {
		f := between(t, b, netip.Addr{}, addr(a))
		if _, ok := packet.ICMPError(packet.NewBatch(0), f, engineOf(f), packet.NoRoute, 0); ok {
			t.Errorf("destination %s is answered", a)
		}
	}
	full := packet.NewBatch(0)
	full.Claim(len(full.Slot(packet.MaxFrame)))
	f := parsed(t, b, plainTCP(nil).bytes(t))
	if _, ok := packet.ICMPError(full, f, engine4, packet.NoRoute, 0); ok || len(full.Frames) != 0 {
		t.Error("an error in a full batch")
	}
	for name, from := range map[string]netip.Addr{"other family": engine6, "no address": {}} {
		if _, ok := packet.ICMPError(packet.NewBatch(0), f, from, packet.NoRoute, 0); ok {
			t.Errorf("%s: answered", name)
		}
	}
	if _, ok := packet.ICMPError(packet.NewBatch(0), f, engine4, packet.TooBig+1, 0); ok {
		t.Error("an error of no kind")
	}
}

// ICMP queries get errors, as other packets do.
func TestICMPErrorAboutEcho(t *testing.T) {
	for _, s := range []stack{plainTCP(nil), plainTCP(nil).overIPv6()} {
		data := icmpBytes(t, s, []byte("payload"))
		f, out := parsed(t, packet.NewBatch(0), data), dirty()
		e, ok := packet.ICMPError(out, f, engineOf(f), packet.HopLimitExceeded, 0)
		if !ok {
			t.Fatalf("no error about %x", data)
		}
		checkError(t, e, f.Src, packet.HopLimitExceeded, 0, data[14:])
	}
}

// An MTU that the field of ICMP cannot hold is the largest that it can.
func TestICMPErrorMTU(t *testing.T) {
	f := parsed(t, packet.NewBatch(0), plainTCP(nil).bytes(t))
	for mtu, want := range map[int]int{-1: 0, 0: 0, 65535: 65535, 65536: 65535, 1 << 40: 65535} {
		e, _ := packet.ICMPError(packet.NewBatch(0), f, engine4, packet.TooBig, mtu)
		checkError(t, e, f.Src, packet.TooBig, want, f.Bytes()[14:])
	}
}

// FuzzICMPError: an error about whatever Parse accepts is a sound packet to its sender within the size limits, quotes
// a prefix of its first segment, and is about the same flow.
func FuzzICMPError(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 0))
	for range 10 {
		f.Add(answerable(randomStack(r, 40)).bytes(f), uint8(r.IntN(6)), uint16(0))
		s := randomSuper(r)
		s.payload = s.payload[:min(len(s.payload), 200)]
		f.Add(answerable(s.stack).bytes(f), uint8(r.IntN(6)), uint16(s.gsoSize%50+1))
	}
	b, out := packet.NewBatch(0), dirty()
	f.Fuzz(func(t *testing.T, data []byte, kind uint8, gsoSize uint16) {
		if len(data) < 34 || len(data) > packet.MaxFrame {
			return
		}
		if n := int(data[14]&0xf) * 4; data[12] == 8 && n >= 20 && n <= len(data)-14 {
			refresh(data[14:])
		}
		f := load(b, data)
		if f.VNet.GSOSize = gsoSize; gsoSize > 0 {
			f.VNet.GSOType = (super{stack: stack{}}).gsoType()
			if data[12] == 0x86 {
				f.VNet.GSOType = packet.GSOTCPv6
			}
		}
		if f.Parse() != packet.None || f.EtherType == packet.EtherTypeARP {
			return
		}
		wire := bytes.Clone(f.Bytes()[14:])
		if gsoSize > 0 {
			cut := packet.NewSegmenter(f)
			header := make([]byte, cut.HeaderLen())
			payload, _ := cut.Next(header)
			wire = append(header[14:], payload...)
		}
		out.Reset()
		if e, ok := packet.ICMPError(out, f, engineOf(f), packet.ICMPKind(kind), 1400); ok {
			checkError(t, e, f.Src, packet.ICMPKind(kind), 1400, wire)
			checkQuotesFlow(t, e, f)
		}
	})
}

// checkQuotesFlow holds what Quoted reads from an error against the packet that it is about.
func checkQuotesFlow(t *testing.T, e, f *packet.Frame) {
	t.Helper()
	src, dst, proto, sport, dport, ok := e.Quoted()
	if enough := f.Start()+f.Len()-f.L4 >= 8; ok != enough {
		t.Fatalf("quoted %v of %x", ok, f.Bytes())
	}
	if !ok {
		return
	}
	wantS, wantD := f.Ports()
	if cut := f.Payload == f.L4 && (f.Proto == packet.ProtoTCP || f.Proto == packet.ProtoUDP); cut && !f.Fragment {
		wantS, wantD = sport, dport
	}
	if src != f.Src || dst != f.Dst || proto != f.Proto || sport != wantS || dport != wantD {
		t.Fatalf("quoted %v:%d -> %v:%d protocol %d of %x", src, sport, dst, dport, proto, f.Bytes())
	}
}
