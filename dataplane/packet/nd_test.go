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
	ndAsker  = netip.MustParseAddr("fd00::1")
	ndTarget = netip.MustParseAddr("fd00::2:3:4")
	ndMAC    = packet.MAC{2, 1, 2, 3, 4, 5}
)

// solicitation is a neighbour solicitation to be changed; ndSolicitation is one as Linux sends it.
type solicitation struct {
	src, dst, target netip.Addr
	hopLimit         uint8
	kind, code       uint8
	options          []byte
	ext              []extension
}

func ndSolicitation() solicitation {
	return solicitation{
		src: ndAsker, dst: netip.MustParseAddr("ff02::1:ff03:4"), target: ndTarget, hopLimit: 255, kind: 135,
		options: []byte{1, 1, 2, 0xaa, 0xbb, 0xcc, 0xdd, 1},
	}
}

func (n solicitation) bytes(t testing.TB) []byte {
	s := stack{ip: layers.IPv4{Protocol: layers.IPProtocolICMPv4}, ext: n.ext}
	s.ip6 = &layers.IPv6{Version: 6, HopLimit: n.hopLimit, SrcIP: n.src.AsSlice(), DstIP: n.dst.AsSlice()}
	s.payload = append([]byte{n.kind, n.code, 7: 0}, n.target.AsSlice()...)
	s.payload = append(s.payload, n.options...)
	return s.finishICMP(t).bytes(t)
}

func TestAnswerND(t *testing.T) {
	linkFirst := append([]byte{1, 1, 2, 0xaa, 0xbb, 0xcc, 0xdd, 1}, 14, 1, 1, 2, 3, 4, 5, 6)
	linkLast := append([]byte{14, 2, 15: 0}, 1, 1, 2, 0xaa, 0xbb, 0xcc, 0xdd, 1)
	twice := append([]byte{1, 1, 2, 0xaa, 0xbb, 0xcc, 0xdd, 1}, 1, 1, 2, 0xaa, 0xbb, 0xcc, 0xdd, 2)
	for name, tt := range map[string]struct {
		options []byte
		asker   string
	}{
		"two options":   {twice, "02:aa:bb:cc:dd:01"},
		"as Linux asks": {ndSolicitation().options, "02:aa:bb:cc:dd:01"},
		"no option":     {nil, macA.String()}, "a nonce (RFC 3971)": {[]byte{14, 1, 1, 2, 3, 4, 5, 6}, macA.String()},
		"a nonce behind": {linkFirst, "02:aa:bb:cc:dd:01"}, "a nonce before": {linkLast, "02:aa:bb:cc:dd:01"},
	} {
		t.Run(name, func(t *testing.T) {
			n := ndSolicitation()
			n.options = tt.options
			f := parsed(t, packet.NewBatch(0), append(n.bytes(t), make([]byte, 4)...))
			f.VNet = packet.VNet{Flags: 2}
			target, source, ok := f.NDTarget()
			if !ok || target != ndTarget || source != ndAsker || !f.IsND() {
				t.Fatalf("NDTarget = %v, %v, %v", target, source, ok)
			}
			if !f.AnswerND(ndMAC) {
				t.Fatal("not answered")
			}
			checkAdvertisement(t, f, tt.asker)
			if _, _, ok := f.NDTarget(); ok || !f.IsND() {
				t.Error("the answer is taken for a solicitation")
			}
		})
	}
}

// checkAdvertisement has gopacket read the answer to ndAsker, whose checksum is made anew.
func checkAdvertisement(t *testing.T, f *packet.Frame, asker string) {
	t.Helper()
	p := gopacket.NewPacket(f.Bytes(), layers.LayerTypeEthernet, gopacket.Default)
	eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	icmp, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	na, _ := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if eth == nil || ip == nil || icmp == nil || na == nil || p.ErrorLayer() != nil {
		t.Fatalf("gopacket finds no advertisement in %x: %v", f.Bytes(), p.ErrorLayer())
	}
	if eth.SrcMAC.String() != ndMAC.String() || eth.DstMAC.String() != asker {
		t.Errorf("Ethernet header %v -> %v, want -> %s", eth.SrcMAC, eth.DstMAC, asker)
	}
	if ip.SrcIP.String() != ndTarget.String() || ip.DstIP.String() != ndAsker.String() || ip.HopLimit != 255 || ip.Length != 32 || ip.TrafficClass != 0 {
		t.Errorf("IP header %+v", ip)
	}
	if icmp.TypeCode != layers.CreateICMPv6TypeCode(136, 0) || verifies(f.Bytes()[14:]) != nil {
		t.Errorf("type %v, checksum: %v", icmp.TypeCode, verifies(f.Bytes()[14:]))
	}
	if !na.Router() || !na.Solicited() || !na.Override() || na.TargetAddress.String() != ndTarget.String() {
		t.Errorf("advertisement %+v", na)
	}
	if len(na.Options) != 1 || na.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(na.Options[0].Data, ndMAC[:]) {
		t.Errorf("options %+v", na.Options)
	}
	if f.Len() != 14+72 || f.VNet != (packet.VNet{}) || f.Src != ndTarget || f.Dst != ndAsker || f.L3 != f.Start()+14 {
		t.Errorf("frame of %d bytes, %v -> %v, %+v", f.Len(), f.Src, f.Dst, f.VNet)
	}
}

func TestNDTargetRefuses(t *testing.T) {
	unspecified := netip.IPv6Unspecified()
	tests := map[string]func(*solicitation){
		"hop limit 254":              func(n *solicitation) { n.hopLimit = 254 },
		"advertisement":              func(n *solicitation) { n.kind = 136 },
		"router solicitation":        func(n *solicitation) { n.kind = 133 },
		"redirect":                   func(n *solicitation) { n.kind = 137 },
		"code 1":                     func(n *solicitation) { n.code = 1 },
		"multicast target":           func(n *solicitation) { n.target = netip.MustParseAddr("ff02::1") },
		"multicast source":           func(n *solicitation) { n.src = netip.MustParseAddr("ff02::1") },
		"option of length 0":         func(n *solicitation) { n.options = []byte{1, 0, 7: 0} },
		"option over the end":        func(n *solicitation) { n.options[1] = 2 },
		"option cut":                 func(n *solicitation) { n.options = append(n.options, 1) },
		"second option of length 0":  func(n *solicitation) { n.options = append(n.options, 14, 0, 0, 0, 0, 0, 0, 0) },
		"probe with a source option": func(n *solicitation) { n.src = unspecified },
		"probe to one host":          func(n *solicitation) { n.src, n.options, n.dst = unspecified, nil, ndTarget },
		"probe to all nodes":         func(n *solicitation) { n.src, n.options, n.dst = unspecified, nil, netip.MustParseAddr("ff02::1") },
		"probe to ff02::2:ff03:4": func(n *solicitation) {
			n.src, n.options, n.dst = unspecified, nil, netip.MustParseAddr("ff02::2:ff03:4")
		},
		"fragment header (RFC 6980)":    func(n *solicitation) { n.ext = []extension{fragmentHeader(0, 0)} },
		"first fragment (RFC 6980)":     func(n *solicitation) { n.ext = []extension{fragmentHeader(0, 1)} },
		"behind a hop-by-hop header":    func(n *solicitation) { n.ext = []extension{option(0, 1)} },
		"behind destination options":    func(n *solicitation) { n.ext = []extension{option(60, 1)} },
		"echo request, same length":     func(n *solicitation) { n.kind = 128 },
		"below Neighbour Discovery":     func(n *solicitation) { n.kind = 132 },
		"above Neighbour Discovery":     func(n *solicitation) { n.kind = 138 },
		"multicast listener discovery":  func(n *solicitation) { n.kind = 130 },
		"multicast listener, version 2": func(n *solicitation) { n.kind = 143 },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			n := ndSolicitation()
			spoil(&n)
			f := parsed(t, packet.NewBatch(0), n.bytes(t))
			if target, source, ok := f.NDTarget(); ok || target.IsValid() || source.IsValid() {
				t.Errorf("NDTarget = %v, %v, %v", target, source, ok)
			}
			if f.IsND() != (n.kind >= 133 && n.kind <= 137) {
				t.Errorf("type %d: IsND is %v", n.kind, f.IsND())
			}
		})
	}
}

// Every bit of a solicitation behind the IP header is covered by its checksum; every cut is refused.
func TestNDTargetBitsAndCuts(t *testing.T) {
	b := packet.NewBatch(0)
	data := ndSolicitation().bytes(t)
	for bit := 8 * 54; bit < 8*len(data); bit++ {
		spoiled := bytes.Clone(data)
		spoiled[bit/8] ^= 0x80 >> (bit % 8)
		if _, _, ok := parsed(t, b, spoiled).NDTarget(); ok {
			t.Errorf("bit %d turned over: still a solicitation", bit)
		}
	}
	for n := 1; n < 32; n++ { // with the checksum right for the shorter one, but where options end
		s := stack{ip: layers.IPv4{Protocol: layers.IPProtocolICMPv4}, payload: bytes.Clone(data[54 : 54+n])}
		s.ip6 = &layers.IPv6{Version: 6, HopLimit: 255, SrcIP: data[22:38], DstIP: data[38:54]}
		if n >= 4 {
			s = s.finishICMP(t)
		}
		if _, _, ok := parsed(t, b, s.bytes(t)).NDTarget(); ok != (n == 24) {
			t.Errorf("cut to %d bytes: %v", n, ok)
		}
	}
}

// A checksum that is left to a device cannot be verified, and no kernel leaves that of a solicitation.
func TestNDPartialChecksum(t *testing.T) {
	f := load(packet.NewBatch(0), ndSolicitation().bytes(t))
	f.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: 54, CsumOffset: 2}
	if v := f.Parse(); v != packet.None {
		t.Fatal(v)
	}
	if _, _, ok := f.NDTarget(); ok {
		t.Error("taken for sound")
	}
}

// The data of a later fragment is no ICMPv6 header.
func TestNDLaterFragment(t *testing.T) {
	s := stack{ip: layers.IPv4{Protocol: layers.IPProtocolICMPv4}, payload: []byte{135, 0, 0, 0, 0, 0, 0, 0}}
	if f := parsed(t, packet.NewBatch(0), s.overIPv6(fragmentHeader(64, 0)).bytes(t)); f.IsND() {
		t.Error("taken for Neighbour Discovery")
	}
}

func TestNDProbe(t *testing.T) {
	n := ndSolicitation()
	n.src, n.options = netip.IPv6Unspecified(), []byte{14, 1, 1, 2, 3, 4, 5, 6} // a nonce (RFC 7527)
	if target, source, ok := parsed(t, packet.NewBatch(0), n.bytes(t)).NDTarget(); !ok || target != ndTarget || source != n.src {
		t.Errorf("probe (RFC 4862): target %v, source %v, %v", target, source, ok)
	}
}

// A unicast probe of a neighbour (RFC 4861 section 7.3) may come without option, and then the answer grows into the
// headroom, not over the frame behind.
func TestAnswerNDGrows(t *testing.T) {
	n := ndSolicitation()
	n.dst, n.options = ndTarget, nil
	data := n.bytes(t)
	b := packet.NewBatch(0)
	slot := b.Slot(200)
	for room, want := range map[int]bool{8: true, 7: false, 0: false} {
		copy(slot, bytes.Repeat([]byte{0xee}, len(slot)))
		copy(slot[room:], data)
		f := b.Append(slot, room, room+len(data))
		if v := f.Parse(); v != packet.None {
			t.Fatal(v)
		}
		if _, _, ok := f.NDTarget(); !ok || f.AnswerND(ndMAC) != want {
			t.Fatalf("%d bytes of headroom: sound %v, answered %v", room, ok, !want)
		}
		if want {
			checkAdvertisement(t, f, macA.String())
		}
		if behind := slot[room+len(data):]; bytes.Count(behind, []byte{0xee}) != len(behind) {
			t.Error("bytes behind the frame changed")
		}
	}
}

// FuzzND: what NDTarget takes, gopacket reads as the solicitation, and the answer as the advertisement.
func FuzzND(f *testing.F) {
	r := rand.New(rand.NewPCG(4, 0))
	f.Add(ndSolicitation().bytes(f), true)
	for range 20 {
		n := ndSolicitation()
		n.options = append(n.options, randomBytes(r, 8*r.IntN(3))...)
		n.src = [2]netip.Addr{ndAsker, netip.IPv6Unspecified()}[r.IntN(2)]
		f.Add(n.bytes(f), true)
	}
	b := packet.NewBatch(0)
	f.Fuzz(func(t *testing.T, data []byte, fix bool) {
		if len(data) < 58 || len(data) > 2000 || data[14]>>4 != 6 {
			return
		}
		if data[12], data[13] = 0x86, 0xdd; fix {
			fixICMPv6(data)
		}
		frame := load(b, data)
		if frame.Parse() != packet.None {
			return
		}
		target, source, ok := frame.NDTarget()
		if want := soundSolicitation(frame.Bytes()); ok != want {
			t.Fatalf("%x: NDTarget %v, gopacket %v", data, ok, want)
		}
		if !ok || source.IsUnspecified() {
			return
		}
		if !frame.AnswerND(ndMAC) || frame.Dst != source || frame.Src != target || verifies(frame.Bytes()[14:]) != nil {
			t.Fatalf("%x: answer %x: %v", data, frame.Bytes(), verifies(frame.Bytes()[14:]))
		}
	})
}

// fixICMPv6 makes the length and the checksum of an ICMPv6 message without extension headers right.
func fixICMPv6(data []byte) {
	ip := data[14:]
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
	ip[6], ip[42], ip[43] = packet.ProtoICMPv6, 0, 0
	pseudo := naivePseudo(ip, len(ip))
	binary.BigEndian.PutUint16(ip[42:], ^naiveSum([]byte{byte(pseudo >> 8), byte(pseudo)}, ip[40:]))
}

// soundSolicitation is the list of RFC 4861 section 7.1.1 for what gopacket reads.
func soundSolicitation(data []byte) (sound bool) {
	defer func() {
		if recover() != nil {
			sound = false
		}
	}()
	var o oracle
	var ip layers.IPv6
	var icmp layers.ICMPv6
	var ns layers.ICMPv6NeighborSolicitation
	if ip.DecodeFromBytes(data[14:], &o) != nil || ip.NextHeader != layers.IPProtocolICMPv6 || verifies(data[14:]) != nil {
		return false
	}
	if icmp.DecodeFromBytes(ip.Payload, &o) != nil || icmp.TypeCode != layers.CreateICMPv6TypeCode(135, 0) || ip.HopLimit != 255 {
		return false
	}
	if len(icmp.Payload) < 20 || ns.DecodeFromBytes(icmp.Payload, &o) != nil || ns.TargetAddress.IsMulticast() || ip.SrcIP.IsMulticast() {
		return false
	}
	if !ip.SrcIP.IsUnspecified() {
		return true
	}
	for _, option := range ns.Options {
		if option.Type == layers.ICMPv6OptSourceAddress {
			return false
		}
	}
	dst, _ := netip.AddrFromSlice(ip.DstIP)
	return netip.MustParsePrefix("ff02::1:ff00:0/104").Contains(dst)
}
