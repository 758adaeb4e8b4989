package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A fragmentSource makes fragments of datagrams as frames.
type fragmentSource struct {
	src, dst netip.Addr
}

var fragmentSources = map[string]fragmentSource{
	"IPv4": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
	"IPv6": {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
}

// frame is one fragment: data[from:to] of a datagram, of which it is the last one or not.
func (s fragmentSource) frame(id uint32, tos uint8, data []byte, from, to int, more bool) []byte {
	ip := outerIP{src: s.src, dst: s.dst, tos: tos, id: id, payload: to - from, fragment: true, more: more, offset: from}
	b := make([]byte, packet.EthernetLen+ip.len()+to-from)
	putEthernet(b, &NextHop{}, familyOf(s.dst).etherType)
	ip.put(b[packet.EthernetLen:])
	copy(b[packet.EthernetLen+ip.len():], data[from:to])
	return b
}

// udpData is a UDP packet of n bytes to a port, the header included, with its checksum.
func (s fragmentSource) udpData(port uint16, n int) []byte {
	b := pattern(n)
	putUDP(b, 1000, port, n-outerUDPLen, 0)
	ip := outerIP{src: s.src, dst: s.dst}
	binary.BigEndian.PutUint16(b[6:], ip.pseudoHeader(n).Add(b).Checksum())
	return b
}

func parsedFrame(t testing.TB, data []byte) *packet.Frame {
	t.Helper()
	f := load(packet.NewBatch(0), data)
	if v := f.Parse(); v != packet.None || !f.Fragment {
		t.Fatalf("Parse: %v, fragment %t", v, f.Fragment)
	}
	return f
}

// A modelDatagram is what a slow and simple reassembler knows: who wrote each byte.
type modelDatagram struct {
	data   map[int]byte
	end    int
	spoilt bool
}

// add says what becomes of a fragment.
func (m *modelDatagram) add(data []byte, from, to int, more bool) (whole bool, v packet.Verdict) {
	overlaps, repeats := false, true
	for i := from; i < to; i++ {
		_, ok := m.data[i]
		overlaps, repeats = overlaps || ok, repeats && ok
	}
	reach := 0
	for i := range m.data {
		reach = max(reach, i+1)
	}
	switch {
	case m.spoilt:
		return false, packet.DropFragmentOverlap
	case repeats && (more || to == m.end):
		return false, packet.DropFragmentOverlap
	case overlaps, m.end > 0 && (to > m.end || !more), !more && reach > to:
		m.spoilt = true
		return false, packet.DropFragmentOverlap
	}
	for i := from; i < to; i++ {
		m.data[i] = data[i]
	}
	if !more {
		m.end = to
	}
	return m.end > 0 && len(m.data) == m.end, packet.None
}

// Random datagrams in random fragments, in random order, some lost, repeated or overlapping: the reassembler does what the model
// does, and what it calls whole is what was cut.
func TestReassemblerModel(t *testing.T) {
	for name, s := range fragmentSources {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			r, whole, spoilt := newReassembler(), 0, 0
			for id := range uint32(1000) {
				m := &modelDatagram{data: map[int]byte{}}
				data := s.udpData(wirePort, 120+random.IntN(500))
				for _, p := range randomPieces(random, len(data)) {
					f := parsedFrame(t, s.frame(id, 0, data, p.from, p.to, p.more))
					ip, got, v := r.add(f, wirePort, 0, func(packet.Verdict) {})
					wantWhole, want := m.add(data, p.from, p.to, p.more)
					if v != want || (got != nil) != wantWhole {
						t.Fatalf("datagram %d, %+v: %v, whole %t; want %v, %t", id, p, v, got != nil, want, wantWhole)
					}
					if got == nil {
						continue
					}
					whole++
					if !bytes.Equal(got, data[:m.end]) || ip.src != s.src || ip.dst != s.dst || ip.payload != m.end {
						t.Fatalf("datagram %d: %d bytes, want %d, or others; %+v", id, len(got), len(data), ip)
					}
					break
				}
				if m.spoilt {
					spoilt++
				}
			}
			t.Logf("%d whole, %d spoilt", whole, spoilt)
			if whole < 300 || spoilt < 80 {
				t.Errorf("%d whole and %d spoilt: not what this test is about", whole, spoilt)
			}
		})
	}
}

type testPiece struct {
	from, to int
	more     bool
}

// randomPieces cuts n bytes at multiples of 8 and spoils the pieces now and then.
func randomPieces(random *rand.Rand, n int) (pieces []testPiece) {
	for from := 0; from < n; {
		to := min(n, from+8*(1+random.IntN(12)))
		pieces = append(pieces, testPiece{from, to, to < n})
		from = to
	}
	random.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	if random.IntN(3) == 0 {
		pieces = append(pieces[:1], pieces...) // repeated
	}
	at := random.IntN(len(pieces))
	switch p := pieces[at]; random.IntN(6) {
	case 0:
		pieces = append(pieces[:at], pieces[at+1:]...)
	case 1: // overlapping its neighbour, or the same
		if p.more && p.to+8 < n && p.from > 0 {
			pieces = append(pieces, testPiece{p.from - 8, p.to, true})
			random.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		}
	case 2: // another end
		if p.more && p.from > 0 {
			pieces[at].more = false
		}
	}
	return pieces
}

// Datagrams that stay incomplete give way to new ones, the oldest first, and end with their time. Memory does not grow.
func TestReassemblerBounds(t *testing.T) {
	s := fragmentSources["IPv4"]
	r, data, lost := newReassembler(), s.udpData(wirePort, 100), map[packet.Verdict]int{}
	count := func(v packet.Verdict) { lost[v]++ }
	first := func(id uint32, now time.Duration) {
		if _, got, v := r.add(parsedFrame(t, s.frame(id, 0, data, 0, 48, true)), wirePort, now, count); got != nil || v != packet.None {
			t.Fatalf("first fragment of %d: %v, whole %t", id, v, got != nil)
		}
	}
	last := func(id uint32, now time.Duration) bool {
		_, got, _ := r.add(parsedFrame(t, s.frame(id, 0, data, 48, 100, false)), wirePort, now, count)
		return got != nil
	}
	for id := range uint32(partials + 3) {
		first(id, time.Duration(id))
	}
	if lost[packet.DropFragmentMemory] != 3 || len(lost) != 1 {
		t.Errorf("3 more datagrams than there is room for: %v", lost)
	}
	if last(2, 100) || !last(4, 100) { // the first one takes the place of 3, the oldest
		t.Error("it was not the oldest that made room")
	}
	if !last(partials+2, 100) {
		t.Error("the newest is gone")
	}
	clear(lost)
	if last(5, 5+partialLife) {
		t.Error("a datagram outlived its time")
	}
	if lost[packet.DropFragmentOrphan] != 1 {
		t.Errorf("one datagram's time is over: %v", lost)
	}
	clear(lost)
	for id := range uint32(partials) { // of other services
		foreign := s.udpData(53, 100)
		r.add(parsedFrame(t, s.frame(1000+id, 0, foreign, 0, 48, true)), wirePort, 10*partialLife, count)
		if _, got, v := r.add(parsedFrame(t, s.frame(1000+id, 0, foreign, 48, 100, false)), wirePort, 10*partialLife, count); got != nil || v != packet.None {
			t.Fatalf("a datagram to another port: %v, whole %t", v, got != nil)
		}
	}
}

// One datagram in more pieces than it can have, apart from each other, is given up.
func TestReassemblerSpans(t *testing.T) {
	s := fragmentSources["IPv6"]
	r, data := newReassembler(), s.udpData(wirePort, 4000)
	for i := range 2 * maxSpans {
		_, _, v := r.add(parsedFrame(t, s.frame(1, 0, data, 16*i, 16*i+8, true)), wirePort, 0, func(packet.Verdict) {})
		want := packet.None
		if i+1 >= maxSpans {
			want = packet.DropFragmentMemory
		}
		if v != want {
			t.Fatalf("piece %d: %v, want %v", i, v, want)
		}
	}
}

// ECN of fragments, RFC 3168 section 5.3.
func TestReassemblerECN(t *testing.T) {
	for name, s := range fragmentSources {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				a, b, want uint8
				v          packet.Verdict
			}{{0, 0, 0, 0}, {0xb8, 0xb8, 0xb8, 0}, {2, 2, 2, 0}, {2, 3, 3, 0}, {3, 2, 3, 0}, {0xb9, 0xbb, 0xbb, 0},
				{0, 3, 0, packet.DropECN}, {3, 0, 0, packet.DropECN}} {
				r, data := newReassembler(), s.udpData(wirePort, 100)
				r.add(parsedFrame(t, s.frame(1, c.a, data, 0, 48, true)), wirePort, 0, func(packet.Verdict) {})
				ip, got, v := r.add(parsedFrame(t, s.frame(1, c.b, data, 48, 100, false)), wirePort, 0, func(packet.Verdict) {})
				if v != c.v || (got != nil) != (v == packet.None) || ip.tos != c.want {
					t.Errorf("TOS %#x and %#x: %#x, %v, whole %t; want %#x, %v", c.a, c.b, ip.tos, v, got != nil, c.want, c.v)
				}
			}
		})
	}
}

// Fragments belong together by source and identification.
func TestReassemblerKeys(t *testing.T) {
	for name, s := range fragmentSources {
		t.Run(name, func(t *testing.T) {
			r, data := newReassembler(), s.udpData(wirePort, 100)
			other := s
			other.src = s.src.Prev()
			for _, first := range [][]byte{s.frame(1, 0, data, 0, 48, true), s.frame(2, 0, data, 0, 48, true), other.frame(3, 0, data, 0, 48, true)} {
				r.add(parsedFrame(t, first), wirePort, 0, func(packet.Verdict) {})
			}
			for i, last := range [][]byte{s.frame(3, 0, data, 48, 100, false), other.frame(1, 0, data, 48, 100, false), s.frame(2, 0, data, 48, 100, false)} {
				_, got, v := r.add(parsedFrame(t, last), wirePort, 0, func(packet.Verdict) {})
				if v != packet.None || (got != nil) != (i == 2) {
					t.Errorf("last fragment %d: %v, whole %t", i, v, got != nil)
				}
			}
		})
	}
}
