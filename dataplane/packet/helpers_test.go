package packet_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

// newRand returns a generator whose seed a failing test prints.
func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("random test: repeat with -seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// load empties the batch and puts data into it as its only frame.
func load(b *packet.Batch, data []byte) *packet.Frame {
	b.Reset()
	return appendFrame(b, data)
}

func appendFrame(b *packet.Batch, data []byte) *packet.Frame {
	end := packet.Headroom + len(data)
	slot := b.Slot(len(data))
	copy(slot[packet.Headroom:], data)
	b.Claim(end)
	return b.Append(slot, packet.Headroom, end)
}

// parsed loads a frame that Parse must accept.
func parsed(t testing.TB, b *packet.Batch, data []byte) *packet.Frame {
	t.Helper()
	f := load(b, data)
	if v := f.Parse(); v != packet.None {
		t.Fatalf("Parse(%x) = %v, want none", data, v)
	}
	return f
}

// naiveSum is the Internet checksum's sum by the book: one 16-bit word after the other,
// the carry folded in at once, an odd last byte padded with zero.
func naiveSum(parts ...[]byte) uint16 {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	sum := uint32(0)
	for i := 0; i < len(all); i += 2 {
		word := uint32(all[i]) << 8
		if i+1 < len(all) {
			word |= uint32(all[i+1])
		}
		sum += word
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// naiveIP returns what a checksum needs of a sound IP packet: its address bytes, its L4 protocol and where that starts.
func naiveIP(ip []byte) (addresses []byte, proto uint8, l4 int) {
	if ip[0]>>4 == 4 {
		return ip[12:20], ip[9], int(ip[0]&0xf) * 4
	}
	proto, l4 = ip[6], 40
	for proto == 0 || proto == 43 || proto == 44 || proto == 60 {
		next, length := ip[l4], 8*(int(ip[l4+1])+1)
		if proto == 44 {
			length = 8
		}
		proto, l4 = next, l4+length
	}
	return ip[8:40], proto, l4
}

// naivePseudo is the sum of the pseudo-header of an IP packet of n bytes.
func naivePseudo(ip []byte, n int) uint16 {
	addresses, proto, l4 := naiveIP(ip)
	return naiveSum(addresses, []byte{0, proto, byte((n - l4) >> 8), byte(n - l4)})
}

// verifies reports what is wrong with the checksums of an IP packet without trailer.
func verifies(ip []byte) error {
	_, proto, l4 := naiveIP(ip)
	if got := naiveSum(ip[:l4]); ip[0]>>4 == 4 && got != 0xffff {
		return fmt.Errorf("IPv4 header sums up to %#x", got)
	}
	pseudo := naivePseudo(ip, len(ip))
	if proto == packet.ProtoICMP {
		pseudo = 0
	}
	if got := naiveSum([]byte{byte(pseudo >> 8), byte(pseudo)}, ip[l4:]); got != 0xffff {
		return fmt.Errorf("protocol %d: sums up to %#x", proto, got)
	}
	return nil
}

// stack is one packet as layers, to be changed and serialized by gopacket.
type stack struct {
	ip      layers.IPv4
	ip6     *layers.IPv6 // instead of ip, if not nil
	ext     []extension  // valid iff IPv6
	tcp     *layers.TCP  // nil or
	udp     *layers.UDP  // nil, or neither: ip.Protocol says what is in payload
	payload []byte
}

// extension is an IPv6 extension header whose first byte is yet to be set.
type extension struct {
	proto uint8
	data  []byte
}

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// proto is the number of the L4 protocol.
func (s stack) proto() uint8 {
	switch {
	case s.tcp != nil:
		return packet.ProtoTCP
	case s.udp != nil:
		return packet.ProtoUDP
	case s.ip6 != nil && s.ip.Protocol == layers.IPProtocolICMPv4:
		return packet.ProtoICMPv6
	}
	return uint8(s.ip.Protocol)
}

// extensions serializes the chain; next is the number for the fixed header.
func (s stack) extensions() (chain []byte, next uint8) {
	next = s.proto()
	for i := len(s.ext) - 1; i >= 0; i-- {
		e := append([]byte{next}, s.ext[i].data[1:]...)
		chain, next = append(e, chain...), s.ext[i].proto
	}
	return chain, next
}

// network returns the IP layers and the one that L4 checksums need.
func (s stack) network() ([]gopacket.SerializableLayer, gopacket.NetworkLayer) {
	if s.ip6 == nil {
		return []gopacket.SerializableLayer{&s.ip}, &s.ip
	}
	ip6 := *s.ip6
	chain, next := s.extensions()
	ip6.NextHeader = layers.IPProtocol(next)
	return []gopacket.SerializableLayer{&ip6, gopacket.Payload(chain)}, &ip6
}

// bytes serializes the stack behind an Ethernet header, with all lengths and checksums right.
func (s stack) bytes(t testing.TB) []byte {
	t.Helper()
	eth := layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: layers.EthernetTypeIPv4}
	if s.ip6 != nil {
		eth.EthernetType = layers.EthernetTypeIPv6
	}
	all, forChecksum := s.network()
	switch {
	case s.tcp != nil:
		tcp := *s.tcp
		tcp.SetNetworkLayerForChecksum(forChecksum)
		all = append(all, &tcp)
	case s.udp != nil:
		udp := *s.udp
		udp.SetNetworkLayerForChecksum(forChecksum)
		all = append(all, &udp)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	all = append([]gopacket.SerializableLayer{&eth}, append(all, gopacket.Payload(s.payload))...)
	if err := gopacket.SerializeLayers(buf, opts, all...); err != nil {
		t.Fatalf("gopacket: serialize: %v", err)
	}
	data := buf.Bytes()[:s.l4()+s.l4Len()] // without the padding to 60 bytes
	return s.fixUDPZero(data)
}

// fixUDPZero writes a UDP checksum that came out as zero as 0xffff (RFC 768), which
// gopacket omits.
func (s stack) fixUDPZero(data []byte) []byte {
	if field := s.l4() + 6; s.udp != nil && data[field] == 0 && data[field+1] == 0 {
		data[field], data[field+1] = 0xff, 0xff
	}
	return data
}

// l4 is the offset of the L4 header in a serialized frame.
func (s stack) l4() int {
	if s.ip6 != nil {
		chain, _ := s.extensions()
		return packet.EthernetLen + 40 + len(chain)
	}
	n := 0
	for _, o := range s.ip.Options {
		n += int(max(o.OptionLength, 1))
	}
	return packet.EthernetLen + 20 + (n+3)&^3
}

// l4Len is the length of L4 header and payload.
func (s stack) l4Len() int {
	switch {
	case s.tcp != nil:
		return tcpHeaderLen(s.tcp) + len(s.payload)
	case s.udp != nil:
		return 8 + len(s.payload)
	}
	return len(s.payload)
}

// checksumAt is the offset of the L4 checksum in a serialized frame. Valid iff TCP, UDP or ICMP.
func (s stack) checksumAt() int {
	switch {
	case s.tcp != nil:
		return s.l4() + 16
	case s.udp != nil:
		return s.l4() + 6
	}
	return s.l4() + 2
}

// finishICMP writes the checksum of an ICMP or ICMPv6 message into its payload.
func (s stack) finishICMP(t testing.TB) stack {
	s.payload[2], s.payload[3] = 0, 0
	ip := s.bytes(t)[packet.EthernetLen:]
	pseudo := uint16(0)
	if s.ip6 != nil {
		pseudo = naivePseudo(ip, len(ip))
	}
	sum := naiveSum([]byte{byte(pseudo >> 8), byte(pseudo)}, s.payload)
	binary.BigEndian.PutUint16(s.payload[2:], ^sum)
	return s
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
