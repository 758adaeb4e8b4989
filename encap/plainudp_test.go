package encap

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// What leaves is the IPv4 packet without its Ethernet header and without the padding behind it.
func TestPlainUDPBytes(t *testing.T) {
	ethernet := flow{1, 2}.udp(t, []byte("data"))
	f := parsed(t, packet.NewBatch(0), append(bytes.Clone(ethernet), make([]byte, 14)...), 0)
	if v := (PlainUDP{}).Encap(f); v != packet.None || !bytes.Equal(f.Bytes(), ethernet[14:]) {
		t.Fatalf("Encap: %v, %x; want %x", v, f.Bytes(), ethernet[14:])
	}
	f = load(packet.NewBatch(0), f.Bytes())
	if v := (PlainUDP{}).Decap(f); v != packet.None || !f.Detached || !bytes.Equal(f.Bytes(), ethernet[14:]) {
		t.Errorf("Decap: %v, detached %v, %x", v, f.Detached, f.Bytes())
	}
	if got := (PlainUDP{}).Overhead(false); got != 20+8 {
		t.Errorf("overhead %d, want 28", got)
	}
	if got := (PlainUDP{}).Overhead(true); got != 40+8 {
		t.Errorf("overhead over IPv6 %d, want 48", got)
	}
}

// An answer that is written into the frame it answers has no Ethernet header to strip.
func TestPlainUDPEncapDetached(t *testing.T) {
	ethernet := flow{1, 2}.udp(t, []byte("data"))
	f := load(packet.NewBatch(0), ethernet[14:])
	(PlainUDP{}).Decap(f)
	f.EtherType, f.L3 = packet.EtherTypeIPv4, f.Start() // as Parse has it
	if v := (PlainUDP{}).Encap(f); v != packet.None || !bytes.Equal(f.Bytes(), ethernet[14:]) {
		t.Errorf("Encap: %v, %x; want %x", v, f.Bytes(), ethernet[14:])
	}
}

func TestPlainUDPEncapRefuses(t *testing.T) {
	for _, etherType := range []uint16{packet.EtherTypeARP, packet.EtherTypeIPv6, 0x8100, 0} {
		f := parsed(t, packet.NewBatch(0), flow{1, 2}.udp(t, nil), 0)
		before := f.Len()
		f.EtherType = etherType
		if v := (PlainUDP{}).Encap(f); v != packet.DropEtherType || f.Len() != before {
			t.Errorf("EtherType %#x: %v, %d of %d bytes left", etherType, v, f.Len(), before)
		}
	}
}

func TestPlainUDPDecapRefuses(t *testing.T) {
	b, ip := packet.NewBatch(0), flow{1, 2}.udp(t, nil)[14:]
	for n := range 20 {
		f := load(b, ip[:n])
		if v := (PlainUDP{}).Decap(f); v != packet.DropFrameTruncated || f.Detached || f.Len() != n {
			t.Errorf("%d bytes: %v, detached %v, %d left", n, v, f.Detached, f.Len())
		}
	}
	for version := range byte(16) {
		spoiled := bytes.Clone(ip)
		spoiled[0] = version<<4 | spoiled[0]&0xf
		want := packet.DropIPHeader
		if version == 4 {
			want = packet.None
		}
		f := load(b, spoiled)
		if v := (PlainUDP{}).Decap(f); v != want || f.Detached != (version == 4) {
			t.Errorf("version %d: %v, detached %v", version, v, f.Detached)
		}
	}
}

// Super-packets and single packets between two sockets of the udp backend: every datagram is an IPv4 packet
// by itself, and together they carry the bytes that were sent.
func TestPlainUDPOverLoopback(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pairOf(t, Config{Framing: PlainUDP{}, FixedSource: true})
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		outgoingPlain(t, out, flow{1, 2}.tcp(t, pattern(60000)), 1410, to).OuterTOS = 2
		outgoingPlain(t, out, flow{1, 2}.tcp(t, pattern(700)), 0, to)
		want := wireOf(out)
		a.Write(out)
		checkSent(t, out)
		got := receive(t, b, in, len(want))
		checkArrived(t, got, want)
		var stream []byte
		for i, d := range got {
			stream = append(stream, tcpPayload(t, d.data)...)
			if wantTOS := uint8(2); i < len(got)-1 && d.tos != wantTOS {
				t.Errorf("datagram %d: TOS %#x, want %#x", i, d.tos, wantTOS)
			}
		}
		if !bytes.Equal(stream, append(pattern(60000), pattern(700)...)) {
			t.Errorf("%d bytes arrived of 60700, or others", len(stream))
		}
		if a.Fallbacks() != 0 || int(b.recv.msgs[0].len) <= len(want[0]) {
			t.Errorf("%d fallbacks; the first read has %d bytes", a.Fallbacks(), b.recv.msgs[0].len)
		}
	})
}

// tcpPayload decodes a datagram that must be an IPv4 packet from its first byte to its last.
func tcpPayload(t *testing.T, datagram []byte) []byte {
	t.Helper()
	p := gopacket.NewPacket(datagram, layers.LayerTypeIPv4, gopacket.Default)
	ip, _ := p.NetworkLayer().(*layers.IPv4)
	tcp, _ := p.TransportLayer().(*layers.TCP)
	if ip == nil || tcp == nil || p.ErrorLayer() != nil || int(ip.Length) != len(datagram) {
		t.Fatalf("no TCP packet: %x", datagram)
	}
	return tcp.Payload
}

// FuzzPlainUDP: Decap takes what gopacket reads as the beginning of an IPv4 header, and changes no byte; Encap of a
// frame that Parse accepts leaves the packet that gopacket finds in it, and Decap takes that back.
func FuzzPlainUDP(f *testing.F) {
	f.Add([]byte{})
	f.Add(flow{1, 2}.udp(f, []byte("data"))[14:])
	f.Add(append(flow{1, 2}.tcp(f, pattern(100))[14:], 0, 0, 0))
	f.Add(flow{1, 2}.longHeaders(f, pattern(10))[14:])
	f.Add(withEmptyOption(flow{1, 2}.longHeaders(f, pattern(10))[14:]))
	f.Add(ipv6UDP(f, 30)[14:])
	b := packet.NewBatch(0)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > packet.MaxFrame-packet.EthernetLen {
			return
		}
		c, frame := PlainUDP{}, load(b, data)
		takes := len(data) >= 20 && data[0]>>4 == 4
		if v := c.Decap(frame); (v == packet.None) != takes || frame.Detached != takes || !bytes.Equal(frame.Bytes(), data) {
			t.Fatalf("Decap(%x) = %v, detached %v: %x", data, v, frame.Detached, frame.Bytes())
		}
		frame = load(b, append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00}, data...))
		if frame.Parse() != packet.None {
			return
		}
		want := bareIPv4(t, data)
		if v := c.Encap(frame); v != packet.None || !bytes.Equal(frame.Bytes(), want) || c.DatagramLen(frame.Bytes()) != len(want) {
			t.Fatalf("Encap(%x) = %v: %x, want %x", data, v, frame.Bytes(), want)
		}
		frame = load(b, bytes.Clone(frame.Bytes()))
		if v := c.Decap(frame); v != packet.None || !frame.Detached || !bytes.Equal(frame.Bytes(), want) {
			t.Fatalf("Decap(Encap(%x)) = %v: %x", data, v, frame.Bytes())
		}
	})
}

// withEmptyOption has an IPv4 option without data, and the header checksum to it.
func withEmptyOption(ip []byte) []byte {
	ip[20], ip[21], ip[22], ip[23] = 0x9e, 2, 0x9e, 38
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], packet.Sum(0).Add(ip[:60]).Checksum())
	return ip
}

// bareIPv4 is the IPv4 packet that gopacket finds at the beginning of data. It does not see the options: of those it
// refuses some that are harmless.
func bareIPv4(t *testing.T, data []byte) []byte {
	t.Helper()
	const noOperation = 1
	readable := bytes.Clone(data)
	for i := 20; i < int(data[0]&0xf)*4; i++ {
		readable[i] = noOperation
	}
	var ip layers.IPv4
	if err := ip.DecodeFromBytes(readable, gopacket.NilDecodeFeedback); err != nil {
		t.Fatalf("Parse accepts what gopacket refuses: %v: %x", err, data)
	}
	return data[:len(ip.Contents)+len(ip.Payload)]
}
