package packet_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func TestParseAgreesWithGopacket(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 5000 {
		data := randomStack(r, 200).bytes(t)
		data = append(data, randomBytes(r, r.IntN(20))...) // Ethernet padding
		f := parsed(t, b, data)
		checkAgainstOracle(t, b, f, data)
	}
}

func TestParseTruncated(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(0)
	for range 50 {
		data := randomStack(r, 60).bytes(t)
		for n := range data {
			if v := load(b, data[:n]).Parse(); v != packet.DropFrameTruncated {
				t.Fatalf("first %d bytes of %x: %v, want %v", n, data, v, packet.DropFrameTruncated)
			}
		}
	}
}

// refresh makes the IPv4 header checksum right again.
func refresh(ip []byte) {
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^naiveSum(ip[:int(ip[0]&0xf)*4]))
}

func TestParseVerdicts(t *testing.T) {
	const l3 = packet.EthernetLen
	tests := []struct {
		name  string
		spoil func(data []byte) []byte
		want  packet.Verdict
	}{
		{"as it is", func(d []byte) []byte { return d }, packet.None},
		{"version 5", func(d []byte) []byte { d[l3] = 0x55; refresh(d[l3:]); return d }, packet.DropIPHeader},
		{"version 6", func(d []byte) []byte { d[l3] = 0x65; refresh(d[l3:]); return d }, packet.DropIPHeader},
		{"IHL 4", func(d []byte) []byte { d[l3] = 0x44; refresh(d[l3:]); return d }, packet.DropIPHeader},
		{"IHL 0", func(d []byte) []byte { d[l3] = 0x40; return d }, packet.DropIPHeader},
		{"IHL beyond total length", func(d []byte) []byte { d[l3] = 0x4f; d[l3+3] = 56; return d }, packet.DropIPHeader},
		{"total length 0", func(d []byte) []byte { d[l3+2], d[l3+3] = 0, 0; refresh(d[l3:]); return d }, packet.DropIPHeader},
		{"total length 19", func(d []byte) []byte { d[l3+2], d[l3+3] = 0, 19; refresh(d[l3:]); return d }, packet.DropIPHeader},
		{"total length too large", func(d []byte) []byte { d[l3+3]++; refresh(d[l3:]); return d }, packet.DropFrameTruncated},
		{"total length smaller", func(d []byte) []byte { d[l3+3]--; refresh(d[l3:]); return d }, packet.None},
		{"header checksum", func(d []byte) []byte { d[l3+11] ^= 1; return d }, packet.DropIPChecksum},
		{"header bit", func(d []byte) []byte { d[l3+8] ^= 0x10; return d }, packet.DropIPChecksum},
		{"IPv6", func(d []byte) []byte { d[12], d[13] = 0x86, 0xdd; return d }, packet.DropIPHeader},
		{"VLAN", func(d []byte) []byte { d[12], d[13] = 0x81, 0x00; return d }, packet.DropEtherType},
		{"ARP", func(d []byte) []byte { d[12], d[13] = 0x08, 0x06; return d }, packet.None},
		{"empty", func(d []byte) []byte { return nil }, packet.DropFrameTruncated},
	}
	b := packet.NewBatch(0)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := tt.spoil(plainTCP([]byte("0123456789abcdefghijklmnopqrstuvwxyz")).bytes(t))
			if got := load(b, data).Parse(); got != tt.want {
				t.Errorf("verdict %v, want %v", got, tt.want)
			}
		})
	}
}

// Every single bit of the IPv4 header is covered by its checksum or by a check before it.
func TestParseEveryHeaderBit(t *testing.T) {
	b := packet.NewBatch(0)
	data := plainTCP([]byte("payload")).bytes(t)
	for bit := range 20 * 8 {
		spoiled := append([]byte(nil), data...)
		spoiled[packet.EthernetLen+bit/8] ^= 0x80 >> (bit % 8)
		switch v := load(b, spoiled).Parse(); v {
		case packet.DropIPHeader, packet.DropIPChecksum, packet.DropFrameTruncated:
		default:
			t.Errorf("bit %d turned over: %v", bit, v)
		}
	}
}

// plainTCP is a TCP packet without options from 10.0.0.1:1000 to 10.0.1.1:2000.
func plainTCP(payload []byte) stack {
	return stack{
		ip: layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP,
			SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 1, 1},
		},
		tcp:     &layers.TCP{SrcPort: 1000, DstPort: 2000, ACK: true, Window: 500},
		payload: payload,
	}
}

func plainUDP(payload []byte) stack {
	s := plainTCP(payload)
	s.tcp, s.udp = nil, &layers.UDP{SrcPort: 1000, DstPort: 2000}
	s.ip.Protocol = layers.IPProtocolUDP
	return s
}

// overIPv6 is the stack between fd00::1 and fd00::2, with a chain of extension headers.
func (s stack) overIPv6(ext ...extension) stack {
	src, dst := make([]byte, 16), make([]byte, 16)
	src[0], src[15], dst[0], dst[15] = 0xfd, 1, 0xfd, 2
	s.ip6 = &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: src, DstIP: dst}
	s.ext = ext
	return s
}

// parseResult is everything that Parse writes.
type parseResult struct {
	Verdict             packet.Verdict
	L2, L3, L4, Payload int
	EtherType           uint16
	Proto               uint8
	Fragment            bool
	Src, Dst            netip.Addr
	Hash                uint32
	Segments, Len       int
	FragmentID          uint32
	FragmentOffset      int
	MoreFragments       bool
}

func parse(f *packet.Frame) parseResult {
	v := f.Parse()
	return parseResult{v, f.L2, f.L3, f.L4, f.Payload, f.EtherType, f.Proto, f.Fragment, f.Src, f.Dst, f.Hash, f.Segments, f.Len(), f.FragmentID, f.FragmentOffset, f.MoreFragments}
}

// A frame whose slot held another packet before must read like one in a fresh slot.
func TestParseLeavesNothingStale(t *testing.T) {
	r := newRand(t)
	fresh, reused := packet.NewBatch(0), packet.NewBatch(0)
	for range 5000 {
		f := load(reused, randomStack(r, 100).bytes(t))
		f.VNet = packet.VNet{GSOType: packet.GSOTCPv4, GSOSize: 10}
		f.Parse()
		f.VNet = packet.VNet{}
		second := spoilRandomly(r, randomStack(r, 100).bytes(t), f.Len())
		copy(f.Bytes(), second)
		g := load(fresh, second)
		if diff := cmp.Diff(parse(g), parse(f), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatalf("%x: a fresh frame (-) and a reused one (+) differ:\n%s", second, diff)
		}
	}
}
