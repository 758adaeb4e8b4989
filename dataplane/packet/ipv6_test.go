package packet_test

import (
	"bytes"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// option returns an extension header of 8-byte words of padding.
func option(proto uint8, words int) extension {
	e := extension{proto, make([]byte, 8*words)}
	e.data[1] = uint8(words - 1)
	if e.data[2] = 1; proto == 43 {
		e.data[2], e.data[3] = 4, 0 // a segment routing header without segments left
	}
	return e
}

func fragmentHeader(offset int, more byte) extension {
	return extension{44, []byte{0, 0, byte(offset >> 8), byte(offset) | more, 1, 2, 3, 4}}
}

func routing(kind, left byte) extension {
	e := option(43, 3)
	e.data[2], e.data[3] = kind, left
	return e
}

func repeat(e extension, n int) (all []extension) {
	for range n {
		all = append(all, e)
	}
	return all
}

func TestParseExtensions(t *testing.T) {
	hop, route, dest := option(0, 1), option(43, 3), option(60, 2)
	tests := []struct {
		name string
		ext  []extension
		want packet.Verdict
	}{
		{"none", nil, packet.None},
		{"all in order", []extension{hop, dest, route, fragmentHeader(0, 0), dest}, packet.None},
		{"routing before options", []extension{route, dest}, packet.None},
		{"hop-by-hop second", []extension{dest, hop}, packet.DropExtension},
		{"hop-by-hop twice", []extension{hop, hop}, packet.DropExtension},
		{"hop-by-hop in a fragment", []extension{fragmentHeader(0, 1), hop}, packet.DropExtension},
		{"routing type 0 (RFC 5095)", []extension{routing(0, 0)}, packet.DropExtension},
		{"routing type 0, segments left", []extension{routing(0, 1)}, packet.DropExtension},
		{"routing type 4, segments left", []extension{routing(4, 1)}, packet.DropExtension},
		{"routing type 0 in a fragment", []extension{fragmentHeader(0, 1), routing(0, 0)}, packet.DropExtension},
		{"first fragment", []extension{hop, fragmentHeader(0, 1), dest}, packet.None},
		{"two fragment headers", []extension{fragmentHeader(0, 0), fragmentHeader(0, 0)}, packet.DropExtension},
		{"two fragment headers, the second later", []extension{fragmentHeader(0, 0), fragmentHeader(80, 1)}, packet.DropExtension},
		{"fragment up to 64 KiB", []extension{fragmentHeader(65504, 0)}, packet.None},
		{"fragment over 64 KiB", []extension{fragmentHeader(65512, 0)}, packet.DropExtension},
		{"fragment up to 64 KiB with a header before", []extension{hop, fragmentHeader(65496, 0)}, packet.None},
		{"fragment over 64 KiB with a header before", []extension{hop, fragmentHeader(65504, 0)}, packet.DropExtension},
		{"8 headers", repeat(dest, 8), packet.None},
		{"9 headers", repeat(dest, 9), packet.DropExtension},
		{"256 bytes", []extension{option(60, 32)}, packet.None},
		{"264 bytes", []extension{option(60, 33)}, packet.DropExtension},
		{"256 bytes in two", []extension{option(0, 16), option(60, 16)}, packet.None},
		{"264 bytes in two", []extension{option(0, 16), option(60, 17)}, packet.DropExtension},
	}
	b := packet.NewBatch(0)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := plainTCP(make([]byte, 4)).overIPv6(tt.ext...)
			data := s.bytes(t)
			if got := load(b, data).Parse(); got != tt.want {
				t.Errorf("verdict %v, want %v: %x", got, tt.want, data)
			}
			if _, err := decode(data); (err == nil) != (tt.want == packet.None) {
				t.Errorf("the oracle says: %v", err)
			}
		})
	}
}

// A chain that is cut inside the packet: the payload length ends it, not the frame.
func TestParseExtensionsCut(t *testing.T) {
	for _, tt := range []struct {
		ext  []extension
		want packet.Verdict
	}{
		{[]extension{option(0, 2), option(43, 3), option(60, 1)}, packet.DropExtension},
		{[]extension{fragmentHeader(0, 0), option(60, 2)}, packet.DropExtension},
		{[]extension{fragmentHeader(0, 1), option(60, 2)}, packet.DropFragmentTiny},
	} {
		s := plainTCP(nil).overIPv6(tt.ext...)
		whole := s.bytes(t)
		for n := 41; n < s.l4()-packet.EthernetLen; n++ {
			data := bytes.Clone(whole)
			data[18], data[19] = 0, byte(n-40)
			want := tt.want
			if tt.want == packet.DropFragmentTiny && (n < 48 || n%8 != 0) {
				want = packet.DropExtension // the fragment header itself, or a length that only the last one has
			}
			if got := load(packet.NewBatch(0), data).Parse(); got != want {
				t.Errorf("chain cut to %d bytes: %v, want %v", n-40, got, want)
			}
		}
	}
}

func TestParseIPv6Lengths(t *testing.T) {
	whole := plainUDP([]byte("payload")).overIPv6().bytes(t)
	tests := []struct {
		name  string
		spoil func([]byte) []byte
		want  packet.Verdict
	}{
		{"sound", func(d []byte) []byte { return d }, packet.None},
		{"version 4", func(d []byte) []byte { d[14] = 0x45; return d }, packet.DropIPHeader},
		{"length 0", func(d []byte) []byte { d[19] = 0; return d }, packet.DropIPHeader},
		{"jumbogram", func(d []byte) []byte { d[19], d[20] = 0, 0; return d }, packet.DropIPHeader},
		{"length 0, no next header", func(d []byte) []byte { d[19], d[20] = 0, 59; return d }, packet.None},
		{"no next header, data behind", func(d []byte) []byte { d[20] = 59; return d }, packet.None},
		{"longer than the frame", func(d []byte) []byte { d[19]++; return d }, packet.DropFrameTruncated},
		{"authentication header", func(d []byte) []byte { d[20] = 51; return d }, packet.None},
		{"encapsulated security payload", func(d []byte) []byte { d[20] = 50; return d }, packet.None},
		{"padding", func(d []byte) []byte { return append(d, 1, 2, 3) }, packet.None},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := load(packet.NewBatch(0), tt.spoil(bytes.Clone(whole)))
			if got := f.Parse(); got != tt.want {
				t.Fatalf("verdict %v, want %v", got, tt.want)
			}
			if want := 40 + int(f.Bytes()[19]); tt.want == packet.None && f.Start()+f.Len()-f.L3 != want {
				t.Errorf("%d bytes of IP, want %d", f.Start()+f.Len()-f.L3, want)
			}
		})
	}
}

// An atomic fragment is none (RFC 6946): it has ports, and the hash of the same flow unfragmented.
func TestAtomicFragment(t *testing.T) {
	f := parsed(t, packet.NewBatch(0), plainTCP(nil).overIPv6(fragmentHeader(0, 0)).bytes(t))
	whole := parsed(t, packet.NewBatch(0), plainTCP(nil).overIPv6().bytes(t))
	sport, dport := f.Ports()
	if f.Fragment || f.FragmentID != 0 || sport != 1000 || dport != 2000 || f.Hash != whole.Hash || f.Payload != f.L4+20 {
		t.Errorf("fragment %v %#x, ports %d %d, hash %#x, of the whole %#x", f.Fragment, f.FragmentID, sport, dport, f.Hash, whole.Hash)
	}
}

// Every bit of addresses and ports counts in the hash, those of an echo's identifier too: a collision is one in four
// billion.
func TestHashEveryBit(t *testing.T) {
	for _, s := range []stack{plainUDP(nil), plainUDP(nil).overIPv6()} {
		ports := s.l4()
		checkHashBits(t, s.bytes(t), ports, ports+4)
		checkHashBits(t, icmpBytes(t, s, nil), ports+4, ports+6)
	}
}

// checkHashBits turns over the bits of the addresses and of data[from:to].
func checkHashBits(t *testing.T, data []byte, from, to int) {
	t.Helper()
	b := packet.NewBatch(0)
	first, last := 14+12, 14+20
	if data[14]>>4 == 6 {
		first, last = 14+8, 14+40
	}
	seen := map[uint32]int{parsed(t, b, data).Hash: -1}
	for bit := 8 * first; bit < 8*to; bit++ {
		if bit >= 8*last && bit < 8*from {
			continue
		}
		other := bytes.Clone(data)
		if other[bit/8] ^= 0x80 >> (bit % 8); data[14]>>4 == 4 {
			refresh(other[14:])
		}
		hash := parsed(t, b, other).Hash
		if before, ok := seen[hash]; ok {
			t.Errorf("bits %d and %d turned over: both hash to %#x", before, bit, hash)
		}
		seen[hash] = bit
	}
}
