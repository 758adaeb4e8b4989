package packet_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

var joinAll = packet.Joining{TCP: true, UDP: true}

// joinable is a random super-packet whose segments are those that may be joined: no options, ACK alone.
func joinable(r *rand.Rand) super {
	s := super{stack: stack{ip: randomIPv4(r)}}
	s.ip.Options, s.ip.Flags, s.ip.FragOffset, s.ip.IHL = nil, s.ip.Flags&layers.IPv4DontFragment, 0, 5
	if r.IntN(2) == 0 {
		s.stack = s.randomIPv6(r, false)
		s.ext = nil
	}
	if r.IntN(2) == 0 {
		s.udp, s.tcp, s.ip.Protocol = randomUDP(r), nil, layers.IPProtocolUDP
	} else {
		s.tcp, s.udp, s.ip.Protocol = randomTCP(r), nil, layers.IPProtocolTCP
		s.tcp.FIN, s.tcp.SYN, s.tcp.RST, s.tcp.URG, s.tcp.ECE, s.tcp.CWR, s.tcp.NS = false, false, false, false, false, false, false
		s.tcp.ACK, s.tcp.PSH = true, r.IntN(2) == 0
	}
	s.gsoSize = 1 + r.IntN(1400)
	s.payload = randomBytes(r, 1+r.IntN(min(60000, s.gsoSize*80)))
	return s
}

// wire puts packets into an empty batch as an underlay's datagrams, each behind encap bytes that are all the same, and returns the
// first one parsed.
func wire(t testing.TB, b *packet.Batch, encap int, packets [][]byte) *packet.Frame {
	t.Helper()
	b.Reset()
	for _, p := range packets {
		appendFrame(b, append(bytes.Repeat([]byte{7}, encap), p...))
	}
	f := b.Frames[0]
	f.Strip(encap)
	if v := f.Parse(); v != packet.None {
		t.Fatalf("Parse = %v", v)
	}
	if v := f.CheckL4(); v != packet.None {
		t.Fatalf("CheckL4 = %v", v)
	}
	return f
}

// recut is the frame cut again as the kernel cuts it: what a receiver gets in the end.
func recut(t testing.TB, f *packet.Frame) (packets [][]byte) {
	t.Helper()
	whole := load(packet.NewBatch(0), f.AppendTo(nil))
	whole.VNet = f.VNet
	if v := whole.Parse(); v != packet.None || whole.Segments != f.Segments {
		t.Fatalf("Parse of the whole = %v, %d segments, want %d", v, whole.Segments, f.Segments)
	}
	if f.VNet.GSOType == packet.GSONone {
		return [][]byte{whole.Bytes()}
	}
	cut := packet.NewSegmenter(whole)
	for {
		header := make([]byte, cut.HeaderLen())
		payload, ok := cut.Next(header)
		if !ok {
			return packets
		}
		packets = append(packets, append(header, payload...))
	}
}

// TestJoin joins what gopacket wrote as segments, and cuts it again: the same packets come out.
func TestJoin(t *testing.T) {
	r, b := newRand(t), packet.NewBatch(1<<20)
	joined := 0
	for range 500 {
		s := joinable(r)
		segments := s.segments(t)
		f := wire(t, b, r.IntN(2)*8, segments)
		n := b.Join(f, b.Frames[1:], joinAll)
		if want := min(len(segments), packet.MaxJoined) - 1; n != want {
			t.Fatalf("%d of %d segments joined, want %d:\n%x\n%x", n, len(segments)-1, want, segments[0], segments[1])
		}
		joined += n
		for i, p := range recut(t, f) {
			if !bytes.Equal(p, segments[i]) && !(i == n && n+1 < len(segments)) { // a cut run's last one had no PSH to lose
				t.Fatalf("segment %d of %d comes out as\n%x, was\n%x", i, len(segments), p, segments[i])
			}
		}
	}
	if joined < 1000 {
		t.Errorf("%d segments joined in all: the test has nothing to say", joined)
	}
}

// TestJoinRefuses changes the second of three segments, or what the first came with, in each way that must end the run there.
func TestJoinRefuses(t *testing.T) {
	r, b := newRand(t), packet.NewBatch(1<<20)
	fix := func(p []byte) { // all checksums anew
		ip := p[packet.EthernetLen:]
		_, proto, l4 := naiveIP(ip)
		if ip[0]>>4 == 4 {
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^naiveSum(ip[:l4]))
		}
		field := l4 + 6
		if proto == packet.ProtoTCP {
			field = l4 + 16
		}
		ip[field], ip[field+1] = 0, 0
		pseudo := naivePseudo(ip, len(ip))
		sum := ^naiveSum([]byte{byte(pseudo >> 8), byte(pseudo)}, ip[l4:])
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(ip[field:], sum)
	}
	for range 100 {
		s := joinable(r)
		s.gsoSize = 10 + r.IntN(500)
		s.payload = randomBytes(r, 3*s.gsoSize)
		good := s.segments(t)
		l4 := s.l4()
		edits := map[string]func(p []byte) []byte{
			"nothing":            func(p []byte) []byte { return p },
			"Ethernet":           func(p []byte) []byte { p[0] ^= 4; return p },
			"version, length":    func(p []byte) []byte { p[14] ^= 1; return p },
			"source":             func(p []byte) []byte { p[l4-5] ^= 1; fix(p); return p },
			"destination":        func(p []byte) []byte { p[l4-1] ^= 1; fix(p); return p },
			"source port":        func(p []byte) []byte { p[l4+1] ^= 1; fix(p); return p },
			"destination port":   func(p []byte) []byte { p[l4+3] ^= 1; fix(p); return p },
			"payload, checksum":  func(p []byte) []byte { p[len(p)-1] ^= 1; return p },
			"checksum":           func(p []byte) []byte { p[s.checksumAt()] ^= 1; return p },
			"shorter than it is": func(p []byte) []byte { return p[:len(p)-1] },
			"longer than the first": func([]byte) []byte {
				return super{s.with(s.payload[s.gsoSize : 2*s.gsoSize+1]), s.gsoSize + 1}.following(s.gsoSize).bytes(t)
			},
			"source and destination": func(p []byte) []byte { // the sums stay right
				size := 4
				if s.ip6 != nil {
					size = 16
				}
				a := p[l4-2*size : l4]
				copy(a, append(slices.Clone(a[size:]), a[:size]...))
				return p
			},
		}
		if s.ip6 == nil {
			edits["TOS"] = func(p []byte) []byte { p[15] ^= 1; fix(p); return p }
			edits["TTL"] = func(p []byte) []byte { p[22] ^= 1; fix(p); return p }
			edits["DF"] = func(p []byte) []byte { p[20] ^= 0x40; fix(p); return p }
			edits["fragment"] = func(p []byte) []byte { p[20] |= 0x20; fix(p); return p }
			edits["IP checksum"] = func(p []byte) []byte { p[24] ^= 1; return p }
			if s.ip.Flags&layers.IPv4DontFragment == 0 {
				edits["ID"] = func(p []byte) []byte { p[19] ^= 1; fix(p); return p }
			}
		} else {
			edits["traffic class"] = func(p []byte) []byte { p[15] ^= 0x10; return p }
			edits["flow label"] = func(p []byte) []byte { p[17] ^= 1; return p }
			edits["hop limit"] = func(p []byte) []byte { p[21] ^= 1; return p }
		}
		if s.tcp != nil {
			for name, at := range map[string]int{"seq": 7, "ack": 11, "window": 15, "urgent pointer": 19} {
				edits[name] = func(p []byte) []byte { p[l4+at] ^= 1; fix(p); return p }
			}
			for name, flag := range map[string]byte{"FIN": 1, "SYN": 2, "RST": 4, "URG": 0x20, "ECE": 0x40, "CWR": 0x80} {
				edits[name] = func(p []byte) []byte { p[l4+13] |= flag; fix(p); return p }
			}
			edits["no ACK"] = func(p []byte) []byte { p[l4+13] = 8; fix(p); return p }
		} else {
			edits["no UDP checksum"] = func(p []byte) []byte { p[l4+6], p[l4+7] = 0, 0; return p }
			edits["UDP length"] = func(p []byte) []byte { p[l4+5]--; fix(p); return p }
		}
		for name, edit := range edits {
			second := edit(slices.Clone(good[1]))
			f := wire(t, b, 8, [][]byte{good[0], second, good[2]})
			want := 0
			if name == "nothing" {
				want = 2
			}
			if n := b.Join(f, b.Frames[1:], joinAll); n != want {
				t.Fatalf("%s of the second segment: %d joined, want %d\n%x\n%x", name, n, want, good[0], second)
			}
			if want == 0 && !bytes.Equal(f.AppendTo(nil), good[0]) {
				t.Fatalf("%s: the first segment was changed without being joined", name)
			}
		}
		leads := map[string]func(f *packet.Frame){
			"from another port":   func(f *packet.Frame) { f.Remote = netip.MustParseAddrPort("192.0.2.9:1") },
			"outer TOS":           func(f *packet.Frame) { f.OuterTOS ^= 1 },
			"segment hint":        func(f *packet.Frame) { f.SegmentHint = 100 },
			"unfinished checksum": func(f *packet.Frame) { f.VNet.Flags = packet.VNetNeedsCsum },
			"hint of the next":    func(*packet.Frame) { b.Frames[1].SegmentHint = 100 },
			"end of the next":     func(*packet.Frame) { b.Frames[1].Truncated = true },
		}
		if s.tcp != nil {
			leads["FIN"] = func(f *packet.Frame) { f.L4Bytes()[13] |= 1 }
			leads["PSH"] = func(f *packet.Frame) { f.L4Bytes()[13] |= 8 }
		} else if s.ip6 == nil {
			leads["UDP checksum"] = func(f *packet.Frame) { clear(f.L4Bytes()[6:8]) }
		}
		for name, change := range leads {
			f := wire(t, b, 8, good)
			if change(f); b.Join(f, b.Frames[1:], joinAll) != 0 {
				t.Fatalf("%s of the first segment: joined", name)
			}
		}
		if f := wire(t, b, 8, good); b.Join(f, b.Frames[1:], packet.Joining{TCP: s.udp != nil, UDP: s.tcp != nil}) != 0 {
			t.Fatal("joined what the port does not take")
		}
	}
}

// TestJoinEnds demands that a shorter segment and one with PSH are the last, and that 64 KiB are the limit.
func TestJoinEnds(t *testing.T) {
	r, b := newRand(t), packet.NewBatch(1<<20)
	s := super{stack: stack{ip: randomIPv4(r), tcp: &layers.TCP{ACK: true, Window: 1}}, gsoSize: 1000}
	s.ip.Options, s.ip.Flags, s.ip.FragOffset, s.ip.IHL, s.ip.Protocol = nil, layers.IPv4DontFragment, 0, 5, layers.IPProtocolTCP
	s.payload = randomBytes(r, 3000)
	for _, end := range []int{1, 500, 999} {
		packets := append(super{s.with(s.payload[:1000+end]), 1000}.segments(t), s.at(1000+end, s.payload[2000:]).bytes(t))
		if n := b.Join(wire(t, b, 8, packets), b.Frames[1:], joinAll); n != 1 {
			t.Errorf("behind a segment of %d bytes: %d joined, want it alone", end, n)
		}
	}
	pushed := s.segments(t)
	tcp := *s.tcp
	tcp.PSH = true
	middle := s.at(1000, s.payload[1000:2000])
	tcp.Seq, middle.tcp = middle.tcp.Seq, &tcp
	pushed[1] = middle.bytes(t)
	if n := b.Join(wire(t, b, 8, pushed), b.Frames[1:], joinAll); n != 1 {
		t.Errorf("behind PSH: %d joined, want it alone", n)
	}
	huge := super{s.with(randomBytes(r, 40*1500)), 1500}
	packets := append(huge.segments(t), s.at(60000, randomBytes(r, 1500)).bytes(t), s.at(61500, randomBytes(r, 1500)).bytes(t),
		s.at(63000, randomBytes(r, 1500)).bytes(t), s.at(64500, randomBytes(r, 1500)).bytes(t))
	f := wire(t, b, 8, packets)
	if n := b.Join(f, b.Frames[1:], joinAll); n != 42 || len(f.AppendTo(nil)) > 14+0xffff {
		t.Errorf("%d joined into %d bytes, want 42: an IP packet has 65,535 bytes at most", n, len(f.AppendTo(nil)))
	}
}

func (s super) with(payload []byte) stack {
	one := s.stack
	one.payload = payload
	return one
}

// at is a segment of the same stream, at an offset.
func (s super) at(offset int, payload []byte) stack {
	one, tcp := s.with(payload), *s.tcp
	tcp.Seq += uint32(offset)
	one.tcp = &tcp
	return one
}

// following is s, which is no longer the first, as the segment at an offset.
func (s super) following(offset int) stack {
	if s.tcp == nil {
		one := s.stack
		one.ip.Id++
		return one
	}
	return s.at(offset, s.payload)
}

// TestJoinExtensions demands that nothing behind extension headers is joined.
func TestJoinExtensions(t *testing.T) {
	r, b := newRand(t), packet.NewBatch(1<<20)
	for range 100 {
		s := joinable(r)
		s.stack = s.randomIPv6(r, false)
		s.ext = []extension{randomExtension(r, 60)}
		s.payload = randomBytes(r, 2*s.gsoSize)
		if n := b.Join(wire(t, b, 8, s.segments(t)), b.Frames[1:], joinAll); n != 0 {
			t.Fatal("joined behind an extension header")
		}
	}
}

// FuzzJoin joins whatever follows a good segment: what comes out, cut again, is what went in.
func FuzzJoin(f *testing.F) {
	r := newRand(f)
	for range 8 {
		s := joinable(r)
		s.payload = randomBytes(r, min(len(s.payload), 2*s.gsoSize))
		segments := s.segments(f)
		f.Add(segments[0], segments[len(segments)-1])
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		b := packet.NewBatch(0)
		lead := appendFrame(b, first[:min(len(first), 4000)])
		appendFrame(b, second[:min(len(second), 4000)])
		if lead.Parse() != packet.None || lead.CheckL4() != packet.None {
			return
		}
		before := slices.Clone(lead.Bytes())
		if b.Join(lead, b.Frames[1:], joinAll) == 0 {
			if !bytes.Equal(lead.Bytes(), before) {
				t.Fatal("a frame was changed without being joined")
			}
			return
		}
		next := b.Frames[1]
		if next.Parse() != packet.None || next.CheckL4() != packet.None {
			t.Fatalf("joined %x, which is not sound", second)
		}
		for i, want := range [][]byte{before, next.Bytes()} {
			got := recut(t, lead)[i]
			if want[14]>>4 == 4 { // with DF the ID is free
				got, want = slices.Clone(got), slices.Clone(want)
				for _, p := range [][]byte{got, want} {
					clear(p[18:20])
					clear(p[24:26])
				}
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("segment %d comes out as\n%x, was\n%x", i, got, want)
			}
		}
	})
}
