package packet_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// The incremental checksum equals the one made anew, for random headers of either family.
func TestDecrementTTL(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 20000 {
		s := randomStack(r, 20)
		s.ip.TTL = max(s.ip.TTL, 1)
		want := s
		if want.ip.TTL--; s.ip6 != nil {
			s.ip6.HopLimit = max(s.ip6.HopLimit, 1)
			ip6 := *s.ip6
			ip6.HopLimit--
			want.ip6 = &ip6
		}
		f := parsed(t, b, s.bytes(t))
		before := f.TTL()
		f.DecrementTTL()
		if !bytes.Equal(f.Bytes(), want.bytes(t)) || f.TTL() != before-1 {
			t.Fatalf("TTL %d becomes %d:\ngot  %x\nwant %x", before, f.TTL(), f.Bytes(), want.bytes(t))
		}
	}
}

func TestDontFragment(t *testing.T) {
	b := packet.NewBatch(0)
	may, must := plainUDP(nil), plainUDP(nil)
	must.ip.Flags = layers.IPv4DontFragment
	for _, tt := range []struct {
		s    stack
		want bool
	}{{may, false}, {must, true}, {may.overIPv6(), true}} {
		if got := parsed(t, b, tt.s.bytes(t)).DontFragment(); got != tt.want {
			t.Errorf("%+v: %v", tt.s, got)
		}
	}
}

// SegmentLen is the length of the longest segment that gopacket writes.
func TestSegmentLen(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 200 {
		s := randomSuper(r)
		longest := 0
		for _, segment := range s.segments(t) {
			longest = max(longest, len(segment)-packet.EthernetLen)
		}
		if got := s.frame(t, b).SegmentLen(); got != longest {
			t.Fatalf("super-packet: %d, want %d", got, longest)
		}
		whole := s.bytes(t)
		if got := parsed(t, b, whole).SegmentLen(); got != len(whole)-packet.EthernetLen {
			t.Fatalf("whole packet: %d, want %d", got, len(whole)-packet.EthernetLen)
		}
	}
}

func TestMartian(t *testing.T) {
	const (
		never, source, fine = "never", "not as a source", "fine"
	)
	kinds := map[string][]string{
		never: {
			"127.0.0.1", "127.255.255.255", "0.0.0.0", "0.1.2.3", "169.254.1.1",
			"::1", "::", "fe80::1", "febf::1", "::ffff:10.0.0.1", "::10.0.0.1", "::ffff:ffff",
		},
		source: {"224.0.0.1", "239.255.255.255", "255.255.255.255", "ff02::1", "ff0e::1"},
		fine: {
			"10.0.0.1", "1.0.0.1", "126.255.255.255", "128.0.0.1", "169.253.255.255", "169.255.0.1", "223.255.255.255",
			"240.0.0.1", "255.255.255.254", "2001:db8::1", "fd00::1", "fec0::1", "fe7f::1", "64:ff9b::a00:1", "::1:0:0:1",
		},
	}
	b := packet.NewBatch(0)
	for kind, all := range kinds {
		for _, a := range all {
			addr := netip.MustParseAddr(a)
			if got, want := between(t, b, addr, netip.Addr{}).Martian(), kind != fine; got != want {
				t.Errorf("source %s: %v, want %v", a, got, want)
			}
			if got, want := between(t, b, netip.Addr{}, addr).Martian(), kind == never; got != want {
				t.Errorf("destination %s: %v, want %v", a, got, want)
			}
		}
	}
}

// between is a UDP packet with the addresses given, else those of plainUDP.
func between(t *testing.T, b *packet.Batch, src, dst netip.Addr) *packet.Frame {
	s := plainUDP(nil)
	if src.Is6() || dst.Is6() {
		s = s.overIPv6()
	}
	set := func(field4, field6 []byte, a netip.Addr) {
		if a.Is4() {
			copy(field4, a.AsSlice())
		} else if a.Is6() {
			copy(field6, a.AsSlice())
		}
	}
	if s.ip6 != nil {
		set(nil, s.ip6.SrcIP, src)
		set(nil, s.ip6.DstIP, dst)
	} else {
		set(s.ip.SrcIP, nil, src)
		set(s.ip.DstIP, nil, dst)
	}
	return parsed(t, b, s.bytes(t))
}

// icmpBytes is an echo request as gopacket writes it.
func icmpBytes(t testing.TB, s stack, payload []byte) []byte {
	t.Helper()
	eth := layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: layers.EthernetTypeIPv4}
	s.tcp, s.udp, s.ip.Protocol = nil, nil, layers.IPProtocolICMPv4
	all, forChecksum := s.network()
	icmp := []gopacket.SerializableLayer{&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7, Seq: 9}}
	if s.ip6 != nil {
		eth.EthernetType = layers.EthernetTypeIPv6
		icmp6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
		icmp6.SetNetworkLayerForChecksum(forChecksum)
		icmp = []gopacket.SerializableLayer{icmp6, &layers.ICMPv6Echo{Identifier: 7, SeqNumber: 9}}
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	all = append([]gopacket.SerializableLayer{&eth}, append(append(all, icmp...), gopacket.Payload(payload))...)
	if err := gopacket.SerializeLayers(buf, opts, all...); err != nil {
		t.Fatalf("gopacket: serialize: %v", err)
	}
	return buf.Bytes()[:s.l4()+8+len(payload)]
}

func TestCheckL4AcceptsGopacket(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 3000 {
		s := randomStack(r, 300)
		data := s.bytes(t)
		if s.tcp == nil && s.udp == nil {
			s.ip.Flags, s.ip.FragOffset = 0, 0
			data = icmpBytes(t, s, s.payload)
		}
		if v := parsed(t, b, data).CheckL4(); v != packet.None {
			t.Fatalf("%x: %v", data, v)
		}
	}
}

// Every single bit of the addresses and of what is behind the IP header counts.
func TestCheckL4EveryBit(t *testing.T) {
	echo := plainTCP(nil)
	for name, data := range map[string][]byte{
		"TCP": plainTCP([]byte("odd")).bytes(t), "UDP": plainUDP([]byte("odd")).bytes(t), "ICMP": icmpBytes(t, echo, []byte("odd")),
		"TCP over IPv6": plainTCP([]byte("odd")).overIPv6(option(60, 1)).bytes(t), "UDP over IPv6": plainUDP([]byte("odd")).overIPv6().bytes(t),
		"ICMPv6": icmpBytes(t, echo.overIPv6(), []byte("odd")),
	} {
		f := parsed(t, packet.NewBatch(0), data)
		l4, refused := f.L4-f.L2, 0
		for bit := l4 * 8; bit < len(data)*8; bit++ {
			spoiled := bytes.Clone(data)
			spoiled[bit/8] ^= 0x80 >> (bit % 8)
			switch v := parsed(t, packet.NewBatch(0), spoiled).CheckL4(); v {
			case packet.DropL4Checksum, packet.DropFrameTruncated:
				refused++
			default:
				t.Errorf("%s: bit %d of L4 turned over: %v", name, bit-l4*8, v)
			}
		}
		if refused != (len(data)-l4)*8 {
			t.Errorf("%s: %d of %d refused", name, refused, (len(data)-l4)*8)
		}
	}
}

func TestCheckL4Verdicts(t *testing.T) {
	udp, tcp := plainUDP([]byte("payload")), plainTCP([]byte("payload"))
	set := func(s stack, at int, value uint16) []byte {
		data := s.bytes(t)
		binary.BigEndian.PutUint16(data[s.l4()+at:], value)
		return data
	}
	first := plainUDP(make([]byte, 8))
	first.ip.Flags = layers.IPv4MoreFragments
	other := tcp
	other.tcp, other.ip.Protocol = nil, layers.IPProtocolGRE
	alien := icmpBytes(t, tcp, nil)
	alien[23] = packet.ProtoICMPv6 // means nothing in IPv4
	refresh(alien[14:])
	short := stack{ip: tcp.ip, payload: make([]byte, 7)}
	shortICMP := short
	shortICMP.ip.Protocol = layers.IPProtocolICMPv4
	zero := plainUDP([]byte{0, 0}).overIPv6()
	copy(zero.payload, zero.bytes(t)[zero.checksumAt():][:2]) // the sum comes out as 0xffff, with a field of zero too
	trailer := plainUDP([]byte("1234"))
	withTrailer := stack{ip: trailer.ip, payload: append(trailer.bytes(t)[trailer.l4():], "behind it"...)}
	tests := []struct {
		name string
		data []byte
		want packet.Verdict
	}{
		{"UDP without checksum", set(udp, 6, 0), packet.None},
		{"UDP without checksum over IPv6", set(udp.overIPv6(), 6, 0), packet.DropL4Checksum},
		{"UDP length 16 of 15", set(udp, 4, 16), packet.DropFrameTruncated},
		{"UDP length 16 of 15, without checksum", func() []byte { d := set(udp, 4, 16); d[40], d[41] = 0, 0; return d }(), packet.DropFrameTruncated},
		{"UDP length 7", set(udp, 4, 7), packet.DropL4Checksum},
		{"UDP length 7, without checksum", func() []byte { d := set(udp, 4, 7); d[40], d[41] = 0, 0; return d }(), packet.DropL4Checksum},
		{"UDP checksum that is 0 over IPv6", set(zero, 6, 0), packet.DropL4Checksum},
		{"UDP checksum that is 0, sent as ffff", zero.bytes(t), packet.None},
		{"UDP length 0", set(udp, 4, 0), packet.DropL4Checksum},
		{"UDP length 0 over IPv6", set(udp.overIPv6(), 4, 0), packet.DropL4Checksum},
		{"UDP shorter than the IP packet", withTrailer.bytes(t), packet.None},
		{"TCP checksum 0", set(tcp, 16, 0), packet.DropL4Checksum},
		{"TCP data offset 4", set(tcp, 12, 0x4010), packet.DropFrameTruncated},
		{"TCP data offset 15", set(tcp, 12, 0xf010), packet.DropFrameTruncated},
		{"TCP of 7 bytes", short.bytes(t), packet.DropFrameTruncated},
		{"ICMP of 7 bytes", shortICMP.bytes(t), packet.DropFrameTruncated},
		{"fragment", set(first, 6, 0x1234), packet.None},
		{"GRE", other.bytes(t), packet.None},
		{"ICMPv6 over IPv4", alien, packet.None},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parsed(t, packet.NewBatch(0), tt.data).CheckL4(); got != tt.want {
				t.Errorf("verdict %v, want %v: %x", got, tt.want, tt.data)
			}
		})
	}
	super := super{stack: tcp.overIPv6(), gsoSize: 2}.frame(t, packet.NewBatch(0))
	if super.VNet.Flags = 0; super.CheckL4() != packet.None {
		t.Errorf("super-packet: %v", super.CheckL4())
	}
	f := load(packet.NewBatch(0), partial(tcp, tcp.bytes(t)))
	f.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 16}
	if v := f.Parse(); v != packet.None || f.CheckL4() != packet.None {
		t.Errorf("partial checksum: %v, %v", v, f.CheckL4())
	}
	if f.CompleteChecksum(); f.CheckL4() != packet.None {
		t.Errorf("completed checksum: %v", f.CheckL4())
	}
}
