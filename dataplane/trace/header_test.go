package trace

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func newRand(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func randomAddr(r *rand.Rand, v6 bool) net.IP {
	a := make(net.IP, 4)
	if v6 {
		a = make(net.IP, 16)
	}
	for i := range a {
		a[i] = byte(r.Uint32())
	}
	return a
}

// randomPacket returns the bytes of a packet behind the link, and what Decode is to find in them.
func randomPacket(t testing.TB, r *rand.Rand, link Link) (b []byte, want Header) {
	v6 := r.IntN(2) == 0
	src, dst := randomAddr(r, v6), randomAddr(r, v6)
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	payload := gopacket.Payload(make([]byte, r.IntN(100)))
	want = Header{Src: from, Dst: to, TTL: uint8(r.Uint32()), EtherType: packet.EtherTypeIPv4}
	var network interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	}
	if v6 {
		want.EtherType = packet.EtherTypeIPv6
		network = &layers.IPv6{Version: 6, HopLimit: want.TTL, SrcIP: src, DstIP: dst}
	} else {
		want.ID = uint32(uint16(r.Uint32()))
		network = &layers.IPv4{Version: 4, TTL: want.TTL, Id: uint16(want.ID), SrcIP: src, DstIP: dst}
	}
	l4, proto := randomL4(r, network, &want, len(payload))
	if ip, ok := network.(*layers.IPv4); ok {
		ip.Protocol = proto
	} else {
		network.(*layers.IPv6).NextHeader = proto
	}
	want.Proto = uint8(proto)
	var all []gopacket.SerializableLayer
	if link == VXLAN {
		want.VNI, want.VXLANFlags = r.Uint32N(1<<24), 8
		all = append(all, &layers.VXLAN{ValidIDFlag: true, VNI: want.VNI})
	}
	if link != BareIP {
		for i := range want.DstMAC {
			want.DstMAC[i], want.SrcMAC[i] = byte(r.Uint32()), byte(r.Uint32())
		}
		all = append(all, &layers.Ethernet{SrcMAC: want.SrcMAC[:], DstMAC: want.DstMAC[:], EthernetType: layers.EthernetType(want.EtherType)})
	}
	buf := gopacket.NewSerializeBuffer()
	all = append(append(append(all, network), l4...), payload)
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(buf.Bytes())
	decoded := gopacket.NewPacket(b, map[Link]gopacket.Decoder{Ethernet: layers.LayerTypeEthernet, VXLAN: layers.LayerTypeVXLAN, BareIP: network.LayerType()}[link], gopacket.Default)
	want.Len = len(decoded.NetworkLayer().LayerContents()) + len(decoded.NetworkLayer().LayerPayload())
	want.Sum = checksumOf(decoded)
	return b, want
}

// randomL4 returns the layers behind IP, and puts what is in them into want.
func randomL4(r *rand.Rand, network gopacket.NetworkLayer, want *Header, payload int) ([]gopacket.SerializableLayer, layers.IPProtocol) {
	want.SrcPort, want.DstPort = 1+uint16(r.Uint32N(65535)), 1+uint16(r.Uint32N(65535))
	switch r.IntN(3) {
	case 0:
		want.Seq, want.TCPFlags, want.Payload = r.Uint32(), 0x12, payload
		tcp := &layers.TCP{SrcPort: layers.TCPPort(want.SrcPort), DstPort: layers.TCPPort(want.DstPort), Seq: want.Seq, SYN: true, ACK: true,
			Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}}}}
		tcp.SetNetworkLayerForChecksum(network)
		return []gopacket.SerializableLayer{tcp}, layers.IPProtocolTCP
	case 1:
		udp := &layers.UDP{SrcPort: layers.UDPPort(want.SrcPort), DstPort: layers.UDPPort(want.DstPort)}
		udp.SetNetworkLayerForChecksum(network)
		return []gopacket.SerializableLayer{udp}, layers.IPProtocolUDP
	}
	want.Seq, want.DstPort = uint32(uint16(r.Uint32())), want.SrcPort
	if _, ok := network.(*layers.IPv4); ok {
		want.ICMPType = layers.ICMPv4TypeEchoRequest
		return []gopacket.SerializableLayer{&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: want.SrcPort, Seq: uint16(want.Seq)}}, layers.IPProtocolICMPv4
	}
	want.ICMPType = layers.ICMPv6TypeEchoReply
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(129, 0)}
	icmp.SetNetworkLayerForChecksum(network)
	return []gopacket.SerializableLayer{icmp, &layers.ICMPv6Echo{Identifier: want.SrcPort, SeqNumber: uint16(want.Seq)}}, layers.IPProtocolICMPv6
}

func checksumOf(p gopacket.Packet) uint16 {
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.TCP:
			return l.Checksum
		case *layers.UDP:
			return l.Checksum
		case *layers.ICMPv4:
			return l.Checksum
		case *layers.ICMPv6:
			return l.Checksum
		}
	}
	return 0
}

// TestDecode holds Decode against gopacket: what that wrote is found.
func TestDecode(t *testing.T) {
	r := newRand(t)
	for range 5000 {
		link := Link(r.IntN(3))
		b, want := randomPacket(t, r, link)
		if diff := cmp.Diff(want, Decode(b, link), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Fatalf("link %d, %x:\n%s", link, b, diff)
		}
	}
}

// FuzzDecode demands that the same IP packet reads the same behind each link, however broken it is.
func FuzzDecode(f *testing.F) {
	r := newRand(f)
	for range 20 {
		b, _ := randomPacket(f, r, BareIP)
		f.Add(b)
		f.Add(b[:r.IntN(len(b))])
	}
	f.Add([]byte{0x60, 0, 0, 0, 0, 24, 44, 64, 40: 60, 48: 17, 64: 1})
	f.Fuzz(func(t *testing.T, ip []byte) {
		if len(ip) == 0 || map4or6(ip[0]>>4) == 0 {
			return
		}
		bare := Decode(ip, BareIP)
		frame := append(append(make([]byte, 12), byte(bare.EtherType>>8), byte(bare.EtherType)), ip...)
		if got := Decode(frame, Ethernet); got != bare {
			t.Errorf("behind Ethernet %+v, bare %+v", got, bare)
		}
		if got := Decode(append(make([]byte, 8), frame...), VXLAN); got != bare {
			t.Errorf("behind VXLAN %+v, bare %+v", got, bare)
		}
		if bare.Payload > bare.Len || bare.Offset%8 != 0 {
			t.Errorf("%+v", bare)
		}
	})
}
