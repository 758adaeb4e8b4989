package capture

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

// A segmented is a send of several datagrams, all of one size but for the last.
type segmented struct {
	v6       bool
	payloads [][]byte
	single   bool // it stays one record: large segments of one stream
}

// An innerFlow is what the packets of a send are made from.
type innerFlow struct {
	v6, udp  bool
	src, dst byte
	port     uint16
	ttl      uint8
	options  bool
	seq      uint32
	more     []layers.TCPOption
}

// packet returns a frame of this flow whose IP packet has that length, nil when it is too short for one, and moves its stream on.
func (f *innerFlow) packet(length int) []byte {
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	proto := layers.IPProtocolTCP
	var l4 gopacket.SerializableLayer = &layers.TCP{SrcPort: layers.TCPPort(f.port), DstPort: 80, Seq: f.seq, ACK: true, Options: f.more}
	headers := 20
	if f.udp {
		proto, l4, headers = layers.IPProtocolUDP, &layers.UDP{SrcPort: layers.UDPPort(f.port), DstPort: 80}, 8
	}
	ip4 := &layers.IPv4{Version: 4, TTL: f.ttl, Protocol: proto, SrcIP: net.IP{10, 244, 0, f.src}, DstIP: net.IP{10, 244, 1, f.dst}}
	var ip gopacket.SerializableLayer = ip4
	if headers += 20; f.options {
		ip4.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
		headers += 4
	}
	if f.v6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		src, dst := net.ParseIP("fd00::a:0"), net.ParseIP("fd00::b:0")
		src[15], dst[15] = f.src, f.dst
		ip = &layers.IPv6{Version: 6, HopLimit: f.ttl, NextHeader: proto, SrcIP: src, DstIP: dst}
		headers += 20
	}
	if !f.udp {
		for _, o := range f.more {
			headers += len(o.OptionData) + 2
		}
		headers = (headers + 3) &^ 3
	}
	if length < headers {
		return nil
	}
	f.seq += uint32(length - headers)
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, eth, ip, l4, gopacket.Payload(make([]byte, length-headers))); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// randomSend makes a send of packets of one stream, of which sometimes one is another one's, or out of its order.
func randomSend(r *rand.Rand, vxlan bool) (s segmented) {
	flow := innerFlow{v6: r.IntN(2) == 0, udp: r.IntN(4) == 0, src: byte(r.IntN(3)), dst: byte(r.IntN(3)), port: uint16(1000 + r.IntN(3)), ttl: 64, seq: r.Uint32()}
	if r.IntN(2) == 0 {
		flow.more = []layers.TCPOption{{OptionType: 8, OptionLength: 10, OptionData: make([]byte, 8)}}
	}
	flow.options = !flow.v6 && r.IntN(8) == 0
	size := pick(r, []int{60, 64, 100, 511, 512, 700, 1400, 1450, 8900})
	count := 1 + r.IntN(min(63, 64000/(size+22)))
	s = segmented{v6: r.IntN(2) == 0, single: !flow.udp && size >= 512 && !flow.options}
	odd := -1
	if r.IntN(2) == 0 {
		odd = r.IntN(count)
	}
	for i := range count {
		of, length := &flow, size
		if i == count-1 && i > 0 && r.IntN(2) == 0 {
			length = 44 + r.IntN(size-44)
		}
		if i == odd {
			other := flow
			switch of = &other; r.IntN(4) {
			case 0:
				other.seq++
			case 1:
				other.seq, other.port = r.Uint32(), other.port+1
			case 2:
				other.udp = !other.udp
			case 3:
				other.v6, other.options = !other.v6, false
			}
			s.single = false
		}
		b := of.packet(length)
		if b == nil { // no IP at all
			b, s.single = make([]byte, 14+length), false
		}
		if vxlan {
			b = append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, b...)
		} else {
			b = b[14:]
		}
		s.payloads = append(s.payloads, b)
	}
	s.single = s.single || count == 1
	return s
}

// TestWireCutsSends sends datagrams together and demands of the capture what the kernel makes of them when it has to cut them itself;
// sends of one stream whole; and that the kernel's copy is as small as it can be.
func TestWireCutsSends(t *testing.T) {
	for _, vxlan := range []bool{true, false} {
		t.Run(fmt.Sprintf("vxlan=%v", vxlan), func(t *testing.T) { testWireCutsSends(t, vxlan) })
	}
}

func testWireCutsSends(t *testing.T, vxlan bool) {
	index := inNamespace(t)
	tunnel := Tunnel{Port: tunnelPort, VXLAN: vxlan}
	addPeers(t, index)
	r := seeded(t)
	sends := make([]segmented, 400)
	for i := range sends {
		sends[i] = randomSend(r, vxlan)
	}
	out := newSenders(t)
	kernel := out.cutByKernel(t, index, sends)
	config := testConfig()
	config.Tunnel = tunnel
	config.SnapLen = 600
	s := NewSession(config)
	if err := s.OpenWire("tulle-a", index); err != nil {
		t.Fatal(err)
	}
	judged := packetSocket(t, index)
	program := tunnelProgram(tunnel, config.SnapLen)
	if err := unix.SetsockoptSockFprog(judged, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		t.Fatal(err)
	}
	got, _ := captured(t, s, func() {
		for i, send := range sends {
			out.send(t, send)
			whole := 0
			for _, p := range kernel[i] {
				whole += len(p)
			}
			whole -= (len(kernel[i]) - 1) * (14 + 8 + map[bool]int{false: 20, true: 40}[send.v6])
			want := whole
			if len(send.payloads) == 1 || send.single {
				want = min(whole, config.SnapLen)
			}
			if n := drain(t, judged); len(n) != 1 || len(n[0]) != want {
				t.Fatalf("send %d, %d datagrams, one stream %v: %d packets, the kernel copies %d bytes of %d, want %d", i, len(send.payloads), send.single, len(n), len(n[0]), whole, want)
			}
		}
	})
	for i, send := range sends {
		want := len(send.payloads)
		if send.single {
			want = 1
		}
		if len(got) < want {
			t.Fatalf("send %d: %d records left, want %d", i, len(got), want)
		}
		records := got[:want]
		got = got[want:]
		if send.single {
			if records[0].Segments != len(send.payloads) || records[0].Flags&FlagCut != 0 {
				t.Fatalf("send %d: a record of %d segments, flags %x, want %d", i, records[0].Segments, records[0].Flags, len(send.payloads))
			}
			continue
		}
		for j, record := range records {
			real := kernel[i][j]
			if record.Length != len(real) || record.Flags&FlagCut == 0 || record.Segments != 1 {
				t.Fatalf("send %d: datagram %d: length %d, flags %x, want %d", i, j, record.Length, record.Flags, len(real))
			}
			if a, b := comparable(record.Data, records[0].Data), comparable(real[:min(len(real), 600)], kernel[i][0]); a != b {
				t.Fatalf("send %d: datagram %d of %d\n%x\n%x", i, j, want, a, b)
			}
		}
	}
	if len(got) > 0 {
		t.Fatalf("%d records too many", len(got))
	}
}

// TestWireFiltersSends demands that the inner filter sees every datagram of a send.
func TestWireFiltersSends(t *testing.T) {
	index := inNamespace(t)
	addPeers(t, index)
	config := testConfig()
	var err error
	if config.Inner, err = ParseFilter("tcp src port 1001"); err != nil {
		t.Fatal(err)
	}
	s := NewSession(config)
	if err := s.OpenWire("tulle-a", index); err != nil {
		t.Fatal(err)
	}
	r := seeded(t)
	var want []int
	got, _ := captured(t, s, func() {
		out := newSenders(t)
		for range 200 {
			send := randomSend(r, true)
			out.send(t, send)
			for i, p := range send.payloads {
				decoded := gopacket.NewPacket(p[8:], layers.LayerTypeEthernet, gopacket.Default)
				if tcp, ok := decoded.TransportLayer().(*layers.TCP); ok && tcp.SrcPort == 1001 && (i == 0 || !send.single) {
					want = append(want, len(p))
				}
			}
		}
	})
	for i := range min(len(got), len(want)) {
		if outer := Dissect(got[i].Data, Ethernet, got[i].Length); got[i].Segments == 1 && got[i].Length-outer.UDP != want[i] {
			t.Fatalf("record %d: %d bytes of payload, want %d", i, got[i].Length-outer.UDP, want[i])
		}
	}
	if len(got) != len(want) || len(want) < 100 {
		t.Errorf("%d records, want %d", len(got), len(want))
	}
}

// comparable is a packet without its UDP checksum, which only a finished one has, and with an IP ID that counts from the first one's.
func comparable(b, first []byte) string {
	b = append([]byte{}, b...)
	udp := 14 + 40
	if b[12] == 8 {
		udp = 14 + 20
		if checksum(b[14:34]) != 0 {
			return "wrong IP header checksum"
		}
		binary.BigEndian.PutUint16(b[18:], binary.BigEndian.Uint16(b[18:])-binary.BigEndian.Uint16(first[18:]))
		b[24], b[25] = 0, 0
	}
	b[udp+6], b[udp+7] = 0, 0
	return string(b)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
