package packet_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// quoting is an ICMP error of the type with the quote.
func quoting(t testing.TB, v6 bool, kind byte, quote []byte) []byte {
	s := stack{ip: plainTCP(nil).ip, payload: append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, quote...)}
	if s.ip.Protocol = layers.IPProtocolICMPv4; v6 {
		s = s.overIPv6()
	}
	return s.finishICMP(t).bytes(t)
}

// The errors that the engine makes are read back.
func TestQuotedReadsOwnErrors(t *testing.T) {
	r := newRand(t)
	b, out := packet.NewBatch(0), packet.NewBatch(0)
	for range 2000 {
		data := answerable(randomStack(r, 40)).bytes(t)
		f := parsed(t, b, data)
		out.Reset()
		if e, ok := packet.ICMPError(out, f, engineOf(f), packet.NoRoute, 0); ok {
			checkQuotesFlow(t, e, f)
		}
	}
}

func TestQuotedTypes(t *testing.T) {
	b := packet.NewBatch(0)
	quote4, quote6 := plainTCP(nil).bytes(t)[14:], plainTCP(nil).overIPv6().bytes(t)[14:]
	for kind := range 256 {
		want4, want6 := kind == 3 || kind == 11 || kind == 12, kind >= 1 && kind <= 4
		if _, _, _, _, _, ok := parsed(t, b, quoting(t, false, byte(kind), quote4)).Quoted(); ok != want4 {
			t.Errorf("ICMP type %d: %v", kind, ok)
		}
		if _, _, _, _, _, ok := parsed(t, b, quoting(t, true, byte(kind), quote6)).Quoted(); ok != want6 {
			t.Errorf("ICMPv6 type %d: %v", kind, ok)
		}
	}
	for name, data := range map[string][]byte{
		"version 6 in ICMP": quoting(t, false, 3, append([]byte{0x65}, quote4[1:]...)), "version 4 in ICMPv6": quoting(t, true, 1, append([]byte{0x40}, quote6[1:]...)),
		"IPv6 in ICMP": quoting(t, false, 3, quote6), "IPv4 in ICMPv6": quoting(t, true, 1, quote4), "TCP": plainTCP(quote4).bytes(t),
		"first fragment": stack{ip: plainTCP(nil).ip}.overIPv6(fragmentHeader(0, 1)).withICMP(t, quote6),
	} {
		if _, _, _, _, _, ok := parsed(t, b, data).Quoted(); ok {
			t.Errorf("%s: a quote is found", name)
		}
	}
}

// withICMP makes the stack an unreachable error with the quote, filled up to whole fragments.
func (s stack) withICMP(t testing.TB, quote []byte) []byte {
	s.ip.Protocol = layers.IPProtocolICMPv4
	s.payload = append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, quote...)
	s.payload = s.payload[:len(s.payload)&^7]
	return s.finishICMP(t).bytes(t)
}

// Every cut of a quote: eight bytes behind the headers are enough and needed, whatever the lengths in it say.
func TestQuotedCutsAndLengths(t *testing.T) {
	b := packet.NewBatch(0)
	for _, s := range []stack{plainTCP(nil), plainUDP(nil), plainTCP(nil).overIPv6(), plainUDP(make([]byte, 8)).overIPv6(option(0, 1), fragmentHeader(0, 1), option(60, 3))} {
		quote := s.bytes(t)[14:]
		v6, kind, length := s.ip6 != nil, byte(3), quote[2:4]
		if v6 {
			kind, length = 1, quote[4:6]
		}
		for _, lie := range []uint16{0, 1, 21, 0xffff, binary.BigEndian.Uint16(length)} {
			binary.BigEndian.PutUint16(length, lie)
			for n := range len(quote) + 1 {
				src, dst, proto, sport, dport, ok := parsed(t, b, quoting(t, v6, kind, quote[:n])).Quoted()
				if ok != (n >= s.l4()-14+8) {
					t.Fatalf("%d bytes of %x: %v", n, quote, ok)
				}
				if ok && (proto != s.proto() || sport != 1000 || dport != 2000 || !src.IsValid() || !dst.IsValid()) {
					t.Fatalf("%v:%d -> %v:%d protocol %d", src, sport, dst, dport, proto)
				}
			}
		}
	}
}

// FuzzQuoted: Quoted reads from any quote what gopacket reads from the same bytes.
func FuzzQuoted(f *testing.F) {
	r := rand.New(rand.NewPCG(6, 0))
	for range 20 {
		s := randomStack(r, 40)
		f.Add(s.bytes(f)[14:], s.ip6 != nil)
	}
	b := packet.NewBatch(0)
	f.Fuzz(func(t *testing.T, quote []byte, v6 bool) {
		if len(quote) > 2000 {
			return
		}
		kind := byte(3)
		if v6 {
			kind = 1
		}
		src, dst, proto, sport, dport, ok := parsed(t, b, quoting(t, v6, kind, quote)).Quoted()
		o, want := quotedOracle(quote, v6)
		if ok != want {
			t.Fatalf("%x: %v, gopacket %v", quote, ok, want)
		}
		got := oracle{Src: src, Dst: dst, Proto: proto, SPort: sport, DPort: dport}
		if wanted := (oracle{Src: o.Src, Dst: o.Dst, Proto: o.Proto, SPort: o.SPort, DPort: o.DPort}); ok && got != wanted {
			t.Fatalf("%x:\ngot  %+v\nwant %+v", quote, got, wanted)
		}
	})
}

// quotedOracle decodes a quote whose lengths have been made to fit.
func quotedOracle(quote []byte, v6 bool) (o oracle, ok bool) {
	b, l4 := bytes.Clone(quote), []byte(nil)
	o.quoted = true
	if v6 {
		if len(b) < 40 || b[0]>>4 != 6 {
			return o, false
		}
		o.Src, o.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		rest, err := o.walk(b[6], b[40:])
		if err != nil || o.FragmentOffset > 0 {
			return o, false
		}
		l4 = rest
	} else {
		if len(b) < 20 || b[0]>>4 != 4 {
			return o, false
		}
		var ip layers.IPv4
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		ip.DecodeFromBytes(b, &o)
		if int(ip.IHL) < 5 || int(ip.IHL)*4 > len(b) || ip.FragOffset != 0 {
			return o, false
		}
		o.Src, o.Dst, o.Proto = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		l4 = b[int(ip.IHL)*4:]
	}
	if len(l4) < 8 {
		return o, false
	}
	o.decodeL4(append(l4[:8:8], make([]byte, 12)...)) // eight bytes have the ports
	return o, true
}
