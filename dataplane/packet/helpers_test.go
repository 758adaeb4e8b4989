package packet_test

import (
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

// naivePseudo is the sum of the pseudo-header of an IPv4 packet of n bytes with its header
// length in the IHL field.
func naivePseudo(ip []byte, n int) uint16 {
	l4 := n - int(ip[0]&0xf)*4
	return naiveSum(ip[12:20], []byte{0, ip[9], byte(l4 >> 8), byte(l4)})
}

// verifies reports what is wrong with the checksums of an IPv4 packet without trailer.
func verifies(ip []byte) error {
	headerLen := int(ip[0]&0xf) * 4
	if got := naiveSum(ip[:headerLen]); got != 0xffff {
		return fmt.Errorf("IPv4 header sums up to %#x", got)
	}
	pseudo := naivePseudo(ip, len(ip))
	if got := naiveSum([]byte{byte(pseudo >> 8), byte(pseudo)}, ip[headerLen:]); got != 0xffff {
		return fmt.Errorf("protocol %d: sums up to %#x", ip[9], got)
	}
	return nil
}

// stack is one packet as layers, to be changed and serialized by gopacket.
type stack struct {
	ip      layers.IPv4
	tcp     *layers.TCP // nil or
	udp     *layers.UDP // nil, or neither
	payload []byte
}

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// bytes serializes the stack behind an Ethernet header, with all lengths and checksums right.
func (s stack) bytes(t testing.TB) []byte {
	t.Helper()
	eth := layers.Ethernet{SrcMAC: macA, DstMAC: macB, EthernetType: layers.EthernetTypeIPv4}
	all := []gopacket.SerializableLayer{&eth, &s.ip}
	switch {
	case s.tcp != nil:
		tcp := *s.tcp
		tcp.SetNetworkLayerForChecksum(&s.ip)
		all = append(all, &tcp)
	case s.udp != nil:
		udp := *s.udp
		udp.SetNetworkLayerForChecksum(&s.ip)
		all = append(all, &udp)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, append(all, gopacket.Payload(s.payload))...); err != nil {
		t.Fatalf("gopacket: serialize: %v", err)
	}
	data := buf.Bytes()[:packet.EthernetLen+int(s.ip.Length)] // without the padding to 60 bytes
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
	n := 0
	for _, o := range s.ip.Options {
		n += int(max(o.OptionLength, 1))
	}
	return packet.EthernetLen + 20 + (n+3)&^3
}

// checksumAt is the offset of the L4 checksum in a serialized frame. Valid iff TCP or UDP.
func (s stack) checksumAt() int {
	if s.tcp != nil {
		return s.l4() + 16
	}
	return s.l4() + 6
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
