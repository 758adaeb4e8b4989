package packet_test

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// fragmented returns the stack's L4 bytes from offset on, n of them, as a fragment of either family.
func fragmented(t testing.TB, s stack, v6 bool, offset, n int, more bool) []byte {
	t.Helper()
	whole := s.bytes(t)
	part := stack{ip: s.ip, payload: whole[s.l4()+offset:][:n]}
	part.ip.Protocol = layers.IPProtocol(s.proto())
	bit := byte(0)
	if more {
		part.ip.Flags, bit = layers.IPv4MoreFragments, 1
	}
	if part.ip.FragOffset = uint16(offset / 8); v6 {
		part = part.overIPv6(fragmentHeader(offset, bit))
	}
	return part.bytes(t)
}

// protocols are packets with an L4 header that a first fragment must hold, and its length.
func protocols() map[string]struct {
	s    stack
	need int
} {
	data := bytes.Repeat([]byte{0xab}, 100)
	options := plainTCP(data)
	options.tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindSACK, OptionLength: 18, OptionData: make([]byte, 16)}}
	icmp := plainTCP(append([]byte{8, 0, 0, 0, 0x12, 0x34}, data...))
	icmp.tcp, icmp.ip.Protocol = nil, layers.IPProtocolICMPv4
	icmp6 := icmp
	icmp6.payload = append([]byte{128, 0, 0, 0, 0x12, 0x34}, data...)
	icmp6.ip.Protocol = layers.IPProtocolICMPv6
	gre := icmp
	gre.ip.Protocol = layers.IPProtocolGRE
	return map[string]struct {
		s    stack
		need int
	}{
		"TCP": {plainTCP(data), 20}, "TCP with options": {options, 40}, "UDP": {plainUDP(data), 8},
		"ICMP": {icmp, 8}, "ICMPv6": {icmp6, 8}, "GRE": {gre, 0},
	}
}

func TestTinyFragments(t *testing.T) {
	b := packet.NewBatch(0)
	for name, p := range protocols() {
		for _, v6 := range []bool{false, true} {
			need := p.need
			if name == "ICMPv6" && !v6 {
				need = 0 // the other family's means nothing; overIPv6 makes ICMPv6 of ICMP
			}
			for n := 0; n <= 64; n += 8 {
				want := packet.None
				if n < need {
					want = packet.DropFragmentTiny
				}
				if got := load(b, fragmented(t, p.s, v6, 0, n, true)).Parse(); got != want {
					t.Errorf("%s, IPv6 %v: first fragment of %d bytes: %v, want %v", name, v6, n, got, want)
				}
				if n == 0 {
					continue
				}
				want = packet.None
				if name[0] == 'T' && n < 20 {
					want = packet.DropFragmentTiny
				}
				if got := load(b, fragmented(t, p.s, v6, n, 16, true)).Parse(); got != want {
					t.Errorf("%s, IPv6 %v: fragment at %d: %v, want %v", name, v6, n, got, want)
				}
			}
		}
	}
}

// Fragments say where they lie, only the first has ports, and all meet on one worker, those that do not
// know their protocol (behind destination options) too.
func TestFragmentFields(t *testing.T) {
	b := packet.NewBatch(0)
	for name, p := range protocols() {
		for _, v6 := range []bool{false, true} {
			p.s.ip.Id = 0x1234
			whole := p.s.bytes(t)[p.s.l4():]
			first := parsed(t, b, fragmented(t, p.s, v6, 0, 48, true))
			sport, dport := first.Ports()
			hash := first.Hash
			checkFragmentFields(t, first, v6, 0, true, whole[:48])
			if want := wantPorts(name, v6); sport != want[0] || dport != want[1] {
				t.Errorf("%s, IPv6 %v: ports of the first fragment %d, %d, want %v", name, v6, sport, dport, want)
			}
			later := parsed(t, b, append(fragmented(t, p.s, v6, 48, len(whole)-48, false), 1, 2, 3)) // padding
			checkFragmentFields(t, later, v6, 48, false, whole[48:])
			if sport, dport := later.Ports(); sport != 0 || dport != 0 || later.Hash != hash {
				t.Errorf("%s, IPv6 %v: later fragment: ports %d, %d, hash %#x, of the first %#x", name, v6, sport, dport, later.Hash, hash)
			}
		}
	}
	options := option(60, 1)
	first := parsed(t, b, plainTCP(make([]byte, 4)).overIPv6(fragmentHeader(0, 1), options).bytes(t))
	if len(first.FragmentData()) != 8+20+4 || first.Proto != packet.ProtoTCP {
		t.Errorf("%d bytes of data, protocol %d", len(first.FragmentData()), first.Proto)
	}
	hash := first.Hash
	later := plainTCP(nil)
	later.tcp, later.ip.Protocol, later.payload = nil, 60, []byte("the rest of it")
	if g := parsed(t, b, later.overIPv6(fragmentHeader(32, 0)).bytes(t)); g.Proto != 60 || g.Hash != hash {
		t.Errorf("later fragment: protocol %d, hash %#x, of the first %#x", g.Proto, g.Hash, hash)
	}
}

func wantPorts(name string, v6 bool) [2]uint16 {
	switch {
	case name == "GRE" || name == "ICMP" && v6 || name == "ICMPv6" && !v6:
		return [2]uint16{}
	case name[0] == 'I':
		return [2]uint16{0x1234, 0x1234}
	}
	return [2]uint16{1000, 2000}
}

func checkFragmentFields(t *testing.T, f *packet.Frame, v6 bool, offset int, more bool, data []byte) {
	t.Helper()
	id := uint32(0x1234)
	if v6 {
		id = 0x01020304
	}
	if !f.Fragment || f.FragmentID != id || f.FragmentOffset != offset || f.MoreFragments != more {
		t.Errorf("fragment %v, %#x at %d, more %v; want %#x at %d, more %v", f.Fragment, f.FragmentID, f.FragmentOffset, f.MoreFragments, id, offset, more)
	}
	if !bytes.Equal(f.FragmentData(), data) || f.Payload != f.L4 {
		t.Errorf("data %x, want %x; payload %d behind L4", f.FragmentData(), data, f.Payload-f.L4)
	}
}

func TestImpossibleFragments(t *testing.T) {
	b := packet.NewBatch(0)
	for _, tt := range []struct {
		offset, n int
		more      bool
		want      packet.Verdict
	}{
		{800, 7, true, packet.DropIPHeader}, {800, 7, false, packet.None}, {800, 8, true, packet.None},
		{65512, 3, false, packet.None}, {65512, 4, false, packet.DropIPHeader}, // 20 bytes of header
	} {
		part := stack{ip: plainUDP(nil).ip, payload: make([]byte, tt.n)}
		if part.ip.FragOffset = uint16(tt.offset / 8); tt.more {
			part.ip.Flags = layers.IPv4MoreFragments
		}
		if got := load(b, part.bytes(t)).Parse(); got != tt.want {
			t.Errorf("%d bytes at %d, more %v: %v, want %v", tt.n, tt.offset, tt.more, got, tt.want)
		}
	}
}
