package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

const testMTU = 1450

func TestPartialChecksumIsCompleted(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 3000 {
		s := randomSuper(r)
		s.payload = randomBytes(r, r.IntN(1100))
		want := s.bytes(t)
		data := partial(s.stack, bytes.Clone(want))
		if verifies(data[packet.EthernetLen:]) == nil {
			continue // once in 65,536 there is nothing to complete
		}
		f := parsed(t, b, data)
		if v := f.AdoptOffload(testMTU, testMTU, 0); v != packet.None || !f.VNet.NeedsCsum() || f.VNet.GSOType != packet.GSONone {
			t.Fatalf("a partial checksum: %v, %+v: %x", v, f.VNet, f.Bytes())
		}
		if int(f.VNet.CsumStart) != s.l4() || int(f.VNet.CsumStart+f.VNet.CsumOffset) != s.checksumAt() {
			t.Fatalf("checksum at %d+%d, want %d+%d", f.VNet.CsumStart, f.VNet.CsumOffset, s.l4(), s.checksumAt()-s.l4())
		}
		f.CompleteChecksum()
		if !bytes.Equal(f.Bytes(), want) || f.VNet != (packet.VNet{}) || f.Segments != 1 {
			t.Fatalf("completed:\ngot  %x\nwant %x\n%+v", f.Bytes(), want, f.VNet)
		}
	}
}

// Behind a payload word of every value lies every checksum, the pseudo-header's sum among
// them: a finished checksum must never be taken for a partial one.
func TestCompleteChecksumIsLeftAlone(t *testing.T) {
	for _, s := range []stack{plainTCP([]byte{0, 0}), plainUDP([]byte{0, 0})} {
		b := packet.NewBatch(0)
		data := s.bytes(t)
		pseudo := naivePseudo(data[packet.EthernetLen:], len(data)-packet.EthernetLen)
		zero := binary.BigEndian.Uint16(data[s.checksumAt():])
		lookAlike := 0
		for word := range 1 << 16 {
			binary.BigEndian.PutUint16(data[len(data)-2:], uint16(word))
			sum := ^naiveSum([]byte{byte(^zero >> 8), byte(^zero), byte(word >> 8), byte(word)})
			binary.BigEndian.PutUint16(data[s.checksumAt():], sum)
			if err := verifies(data[packet.EthernetLen:]); err != nil {
				t.Fatal(err)
			}
			if sum == pseudo {
				lookAlike++
			}
			f := parsed(t, b, data)
			if v := f.AdoptOffload(testMTU, testMTU, 0); v != packet.None || f.VNet != (packet.VNet{}) || f.Segments != 1 {
				t.Fatalf("a finished checksum (%#x, pseudo-header %#x): %v, %+v", sum, pseudo, v, f.VNet)
			}
		}
		if lookAlike == 0 {
			t.Error("no payload made the checksum equal the pseudo-header's sum")
		}
	}
}

// checkAdopted holds the segments of an adopted super-packet against what the sender's kernel
// would have cut.
func checkAdopted(t *testing.T, s super, hint int) {
	t.Helper()
	b := packet.NewBatch(0)
	f := parsed(t, b, partial(s.stack, s.bytes(t)))
	v := f.AdoptOffload(testMTU, testMTU, hint)
	if v != packet.None || f.VNet.GSOType == packet.GSONone || !f.VNet.NeedsCsum() || int(f.VNet.GSOSize) != s.gsoSize {
		t.Fatalf("super-packet of %d bytes: %v, %+v, want segments of %d", f.Len(), v, f.VNet, s.gsoSize)
	}
	if int(f.VNet.HdrLen) != f.Payload-f.L2 || int(f.VNet.CsumStart) != s.l4() {
		t.Errorf("metadata %+v", f.VNet)
	}
	checkSegments(t, f, nil, s.segments(t))
}

func TestAdoptSuperPacket(t *testing.T) {
	r := newRand(t)
	for range 100 {
		s := randomSuper(r)
		if s.tcp != nil {
			s.payload = randomBytes(r, testMTU+r.IntN(60000))
			s.gsoSize = testMTU - (s.checksumAt() - 16 - packet.EthernetLen) - tcpHeaderLen(s.tcp)
			checkAdopted(t, s, 0) // TCP is a stream: any size will do
		}
		s.gsoSize = 500 + r.IntN(900)
		s.payload = randomBytes(r, s.gsoSize*(1+r.IntN(40))+r.IntN(s.gsoSize))
		checkAdopted(t, s, s.gsoSize)
	}
}

func tcpHeaderLen(tcp *layers.TCP) int {
	n := 0
	for _, o := range tcp.Options {
		n += int(o.OptionLength)
	}
	return 20 + (n+3)&^3
}

// The sum of a whole super-packet is as arbitrary as any: once in 65,536 it verifies though
// nobody finished it. It was never cut all the same.
func TestAdoptSuperPacketThatVerifies(t *testing.T) {
	tcp := super{stack: plainTCP(make([]byte, 20000)), gsoSize: testMTU - 40}
	udp := super{stack: plainUDP(make([]byte, 20000)), gsoSize: 1000}
	for _, s := range []super{tcp, udp} {
		ip := partial(s.stack, s.bytes(t))[packet.EthernetLen:]
		pseudo := naivePseudo(ip, len(ip))
		rest := naiveSum([]byte{byte(pseudo >> 8), byte(pseudo)}, ip[20:])
		binary.BigEndian.PutUint16(s.payload, ^rest)
		ip = partial(s.stack, s.bytes(t))[packet.EthernetLen:]
		if err := verifies(ip); err != nil {
			t.Fatalf("not the packet that this test is about: %v", err)
		}
		hint := 0
		if s.udp != nil {
			hint = s.gsoSize
		}
		checkAdopted(t, s, hint)
	}
}

func TestAdoptRefusesUDPOfUnknownSize(t *testing.T) {
	s := plainUDP(make([]byte, testMTU))
	f := parsed(t, packet.NewBatch(0), partial(s, s.bytes(t)))
	if v := f.AdoptOffload(testMTU, testMTU, 0); v != packet.DropOffload {
		t.Errorf("UDP of %d bytes without a segment size: %v, want %v", f.Len(), v, packet.DropOffload)
	}
	tcp := plainTCP(make([]byte, testMTU))
	f = parsed(t, packet.NewBatch(0), partial(tcp, tcp.bytes(t)))
	if v := f.AdoptOffload(30, 30, 0); v != packet.DropOffload {
		t.Errorf("an MTU that leaves no payload: %v, want %v", v, packet.DropOffload)
	}
	f = parsed(t, packet.NewBatch(0), partial(tcp, tcp.bytes(t)))
	if v := f.AdoptOffload(testMTU, testMTU, 1<<16+1000); v != packet.DropOffload {
		t.Errorf("segments of 66536 bytes: %v, want %v", v, packet.DropOffload)
	}
}

func TestAdoptLeavesAlone(t *testing.T) {
	noChecksum := plainUDP(make([]byte, 100)).bytes(t)
	noChecksum[40], noChecksum[41] = 0, 0
	first, later := plainTCP(make([]byte, 2004)), plainTCP(make([]byte, 2000))
	first.ip.Flags, later.ip.FragOffset = layers.IPv4MoreFragments, 3
	icmp := plainTCP(make([]byte, 100))
	icmp.tcp, icmp.ip.Protocol = nil, layers.IPProtocolICMPv4
	cut := partial(plainTCP(nil), plainTCP(nil).bytes(t))
	cut[packet.EthernetLen+20+12] = 0xf0 // a TCP header longer than the packet
	for name, data := range map[string][]byte{
		"UDP without checksum": noChecksum,
		"first fragment":       partial(first, first.bytes(t)),
		"later fragment":       partial(later, later.bytes(t)),
		"ICMP":                 icmp.bytes(t),
		"cut TCP header":       cut,
	} {
		f := parsed(t, packet.NewBatch(0), data)
		if v := f.AdoptOffload(testMTU, testMTU, 0); v != packet.None || f.VNet != (packet.VNet{}) || !bytes.Equal(f.Bytes(), data) {
			t.Errorf("%s: %v, %+v", name, v, f.VNet)
		}
	}
}

func TestParseChecksOffload(t *testing.T) {
	const needs = packet.VNetNeedsCsum
	tcp, udp := plainTCP(make([]byte, 3000)), plainUDP(make([]byte, 3000))
	fragment := plainTCP(make([]byte, 3004))
	fragment.ip.Flags = layers.IPv4MoreFragments
	end := uint16(packet.EthernetLen + 20 + 20 + 3000)
	tests := []struct {
		name string
		s    stack
		vnet packet.VNet
		want packet.Verdict
	}{
		{"TSO", tcp, packet.VNet{Flags: needs, GSOType: packet.GSOTCPv4, GSOSize: 1400, CsumStart: 34, CsumOffset: 16}, packet.None},
		{"USO", udp, packet.VNet{Flags: needs, GSOType: packet.GSOUDPL4, GSOSize: 1400, CsumStart: 34, CsumOffset: 6}, packet.None},
		{"TSO of size 0", tcp, packet.VNet{GSOType: packet.GSOTCPv4}, packet.DropOffload},
		{"TSO on UDP", udp, packet.VNet{GSOType: packet.GSOTCPv4, GSOSize: 1400}, packet.DropOffload},
		{"USO on TCP", tcp, packet.VNet{GSOType: packet.GSOUDPL4, GSOSize: 1400}, packet.DropOffload},
		{"TSO for IPv6", tcp, packet.VNet{GSOType: packet.GSOTCPv6, GSOSize: 1400}, packet.DropOffload},
		{"TSO over IPv6", tcp.overIPv6(), packet.VNet{Flags: needs, GSOType: packet.GSOTCPv6, GSOSize: 1400, CsumStart: 54, CsumOffset: 16}, packet.None},
		{"TSO over IPv6 with options", tcp.overIPv6(option(0, 2)), packet.VNet{Flags: needs, GSOType: packet.GSOTCPv6, GSOSize: 1400, CsumStart: 70, CsumOffset: 16}, packet.None},
		{"USO over IPv6", udp.overIPv6(), packet.VNet{Flags: needs, GSOType: packet.GSOUDPL4, GSOSize: 1400, CsumStart: 54, CsumOffset: 6}, packet.None},
		{"TSO for IPv4 over IPv6", tcp.overIPv6(), packet.VNet{GSOType: packet.GSOTCPv4, GSOSize: 1400}, packet.DropOffload},
		{"TSO of an IPv6 fragment", fragment.overIPv6(fragmentHeader(0, 1)), packet.VNet{GSOType: packet.GSOTCPv6, GSOSize: 1400}, packet.DropOffload},
		{"TSO of an atomic fragment", tcp.overIPv6(fragmentHeader(0, 0)), packet.VNet{GSOType: packet.GSOTCPv6, GSOSize: 1400}, packet.None},
		{"partial checksum of a fragment", fragment, packet.VNet{Flags: needs, CsumStart: 34, CsumOffset: 16}, packet.DropOffload},
		{"checksum in an extension header", tcp.overIPv6(option(0, 2)), packet.VNet{Flags: needs, CsumStart: 54, CsumOffset: 6}, packet.DropOffload},
		{"unknown GSO", tcp, packet.VNet{GSOType: 3, GSOSize: 1400}, packet.DropOffload},
		{"TSO of a fragment", fragment, packet.VNet{GSOType: packet.GSOTCPv4, GSOSize: 1400}, packet.DropOffload},
		{"TSO, checksum elsewhere", tcp, packet.VNet{Flags: needs, GSOType: packet.GSOTCPv4, GSOSize: 1400, CsumStart: 36, CsumOffset: 16}, packet.DropOffload},
		{"checksum in the IP header", tcp, packet.VNet{Flags: needs, CsumStart: 33, CsumOffset: 16}, packet.DropOffload},
		{"checksum at the end", tcp, packet.VNet{Flags: needs, CsumStart: end - 2}, packet.None},
		{"checksum across the end", tcp, packet.VNet{Flags: needs, CsumStart: end - 1}, packet.DropOffload},
		{"checksum behind the end", tcp, packet.VNet{Flags: needs, CsumStart: 0xffff, CsumOffset: 0xffff}, packet.DropOffload},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := load(packet.NewBatch(0), tt.s.bytes(t))
			f.VNet = tt.vnet
			if got := f.Parse(); got != tt.want {
				t.Errorf("verdict %v, want %v", got, tt.want)
			}
			if tt.want == packet.None {
				f.CompleteChecksum() // must not leave the frame
			}
		})
	}
}

func TestCompleteChecksumOfUDPZero(t *testing.T) {
	s := plainUDP([]byte{0, 0})
	zero := s.bytes(t)[s.checksumAt():][:2]
	copy(s.payload, zero) // makes the sum 0xffff, its complement 0
	f := parsed(t, packet.NewBatch(0), partial(s, s.bytes(t)))
	f.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 6}
	f.CompleteChecksum()
	if got := f.Bytes()[s.checksumAt():][:2]; !bytes.Equal(got, []byte{0xff, 0xff}) {
		t.Errorf("checksum field %x, want ffff", got)
	}
}
