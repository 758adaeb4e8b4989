package main

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// serialize makes a packet with right checksums.
func serialize(t *testing.T, random *rand.Rand, ttl uint8) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: ttl, Id: uint16(random.Uint32()), Protocol: layers.IPProtocolUDP,
		SrcIP: net.IP{10, 244, 1, byte(random.Uint32())}, DstIP: net.IP{10, 244, byte(random.Uint32()), 2}}
	udp := &layers.UDP{SrcPort: 1, DstPort: 2}
	udp.SetNetworkLayerForChecksum(ip)
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp,
		gopacket.Payload(make([]byte, random.IntN(100))))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDecrementTTL(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 5000 {
		packet := serialize(t, random, uint8(random.Uint32()))
		ttl := packet[8]
		if went := decrementTTL(packet); went != (ttl > 1) {
			t.Fatalf("TTL %d: goes on: %t", ttl, went)
		}
		if ttl > 1 && packet[8] != ttl-1 || checksum(packet[:headerLength]) != 0 {
			t.Fatalf("TTL %d: now %d, checksum over the header %#x", ttl, packet[8], checksum(packet[:headerLength]))
		}
	}
}

func TestUnreachable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	from := netip.MustParseAddr("10.244.1.0")
	for range 500 {
		packet := serialize(t, random, 64)
		message := unreachable(packet, from)
		decoded := gopacket.NewPacket(message, layers.LayerTypeIPv4, gopacket.Default)
		icmp, ok := decoded.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if !ok || decoded.ErrorLayer() != nil {
			t.Fatalf("% x: %v", message, decoded)
		}
		ip := decoded.NetworkLayer().(*layers.IPv4)
		if icmp.TypeCode != layers.CreateICMPv4TypeCode(3, 0) || string(icmp.Payload) != string(packet[:28]) ||
			ip.SrcIP.String() != from.String() || string(ip.DstIP.To4()) != string(packet[12:16]) || int(ip.Length) != len(message) {
			t.Fatalf("% x: %v", message, decoded)
		}
		if checksum(message[:headerLength]) != 0 || checksum(message[headerLength:]) != 0 {
			t.Fatalf("% x: wrong checksum", message)
		}
	}
}

func TestBare(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	packet := serialize(t, random, 64)
	for name, b := range map[string][]byte{"empty": {}, "short": packet[:19], "cut": packet[:len(packet)-1],
		"longer": append(packet[:len(packet):len(packet)], 0), "VXLAN": append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, packet...)} {
		if bare(b) {
			t.Errorf("%s is taken for a bare packet", name)
		}
	}
	if !bare(packet) {
		t.Error("a bare packet is not")
	}
}
