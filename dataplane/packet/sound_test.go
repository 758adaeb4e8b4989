package packet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// kinds is a packet of every kind that the package looks into.
func kinds(t testing.TB) map[string][]byte {
	v4, v6 := plainTCP(nil), plainTCP(nil).overIPv6()
	quote4, quote6 := plainTCP([]byte("quoted")).bytes(t)[14:], plainUDP([]byte("quoted")).overIPv6(option(0, 1), option(60, 2)).bytes(t)[14:]
	options := plainTCP([]byte("data"))
	options.ip.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: make([]byte, 5)}}
	options.tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)}}
	first := plainUDP(make([]byte, 32))
	first.ip.Flags = layers.IPv4MoreFragments
	all := []extension{option(0, 2), option(60, 1), option(43, 3), fragmentHeader(0, 0), option(60, 2)}
	return map[string][]byte{
		"TCP": options.bytes(t), "UDP": plainUDP([]byte("data")).bytes(t), "ICMP": icmpBytes(t, v4, []byte("data")),
		"ICMP error": quoting(t, false, 3, quote4), "fragment": first.bytes(t),
		"TCP over IPv6": plainTCP([]byte("data")).overIPv6(all...).bytes(t), "UDP over IPv6": plainUDP([]byte("data")).overIPv6().bytes(t),
		"ICMPv6": icmpBytes(t, v6, []byte("data")), "ICMPv6 error": quoting(t, true, 1, quote6),
		"IPv6 fragment":       plainUDP(make([]byte, 32)).overIPv6(option(0, 1), fragmentHeader(0, 1), option(60, 1)).bytes(t),
		"neighbour discovery": ndSolicitation().bytes(t), "ARP": arpRequestBytes,
	}
}

// fit makes the IP header's length that of the bytes behind it, and the IPv4 checksum right.
func fit(data []byte) []byte {
	data = bytes.Clone(data)
	ip := data[min(14, len(data)):]
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4 && int(ip[0]&0xf)*4 <= len(ip):
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		refresh(ip)
	case len(ip) >= 40 && ip[0]>>4 == 6:
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
	}
	return data
}

// useAll calls everything that takes a parsed IP frame, and what turns it into another last.
func useAll(f *packet.Frame, out *packet.Batch) {
	f.Ports()
	f.Martian()
	f.CheckL4()
	f.DontFragment()
	f.SegmentLen()
	f.IsND()
	f.Quoted()
	f.EchoReply()
	f.DecapECN(f.EncapTOS(true))
	f.AdoptOffload(testMTU, testMTU, 0)
	if f.Fragment {
		f.FragmentData()
	}
	out.Reset()
	packet.ICMPError(out, f, engineOf(f), packet.TooBig, 1280)
	f.CompleteChecksum()
	f.DecrementTTL()
	if _, source, ok := f.NDTarget(); ok && !source.IsUnspecified() {
		f.AnswerND(ndMAC)
	}
	f.AnswerEcho()
}

// Every cut of every kind of packet, with the length as it was and made to fit: Parse agrees with the oracle, and
// nothing panics or touches a byte beside the frame.
func TestEveryCut(t *testing.T) {
	b, spare, out := packet.NewBatch(0), packet.NewBatch(0), packet.NewBatch(0)
	for name, whole := range kinds(t) {
		for n := range len(whole) + 1 {
			for _, data := range [][]byte{whole[:n], fit(whole[:n])} {
				f := bare(b, data, packet.Headroom)
				f.Detached = false
				v := f.Parse()
				if _, err := decode(data); (err == nil) != (v == packet.None && f.EtherType != packet.EtherTypeARP) {
					t.Fatalf("%s cut to %d bytes: %v, the oracle says: %v", name, n, v, err)
				}
				if v != packet.None || f.EtherType == packet.EtherTypeARP {
					continue
				}
				checkAgainstOracle(t, spare, f, data)
				useAll(f, out)
				if front := f.Slot()[:f.Start()]; bytes.Count(front, []byte{0xee}) != len(front) {
					t.Fatalf("%s cut to %d bytes: %x in front", name, n, front)
				}
			}
		}
	}
}

// Each kind's whole packet is read as what it is, so that TestEveryCut and TestAllocates reach what they are about.
func TestKinds(t *testing.T) {
	b, out := packet.NewBatch(0), packet.NewBatch(0)
	for name, data := range kinds(t) {
		f := parsed(t, b, data)
		_, _, _, _, _, quoted := f.Quoted()
		_, _, nd := f.NDTarget()
		if quoted != (name == "ICMP error" || name == "ICMPv6 error") || nd != (name == "neighbour discovery") {
			t.Errorf("%s: quoted %v, solicitation %v", name, quoted, nd)
		}
		if f.EtherType == packet.EtherTypeARP {
			continue
		}
		if _, ok := packet.ICMPError(out, f, engineOf(f), packet.NoRoute, 0); ok == (quoted || nd) || f.CheckL4() != packet.None {
			t.Errorf("%s: error %v, checksum %v", name, ok, f.CheckL4())
		}
		if echo := f.AnswerEcho(); echo != (name == "ICMP" || name == "ICMPv6") {
			t.Errorf("%s: echo %v", name, echo)
		}
	}
}

func TestAllocates(t *testing.T) {
	b, out := packet.NewBatch(0), packet.NewBatch(0)
	for name, data := range kinds(t) {
		n := testing.AllocsPerRun(20, func() {
			f := load(b, data)
			if f.Parse() == packet.None && f.EtherType != packet.EtherTypeARP {
				useAll(f, out)
			}
			g := load(b, data[packet.EthernetLen:])
			g.Detached = true
			g.Parse()
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for each packet", name, n)
		}
	}
	for _, s := range []super{{stack: plainTCP(make([]byte, 9000)).overIPv6(option(0, 1)), gsoSize: 1400}, {stack: plainTCP(make([]byte, 9000)), gsoSize: 1400}} {
		f := s.frame(t, b)
		header := make([]byte, packet.MaxHeaders)
		n := testing.AllocsPerRun(20, func() {
			out.Reset()
			packet.ICMPError(out, f, engineOf(f), packet.TooBig, 1400)
			packet.EchoRequest(out, engine6, ndAsker, 1, 1, 1400)
			cut := packet.NewSegmenter(f)
			for ok := true; ok; {
				_, ok = cut.Next(header[:cut.HeaderLen()])
			}
		})
		if n != 0 {
			t.Errorf("%v allocations for each super-packet", n)
		}
	}
}
