package gate

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func testGate(t testing.TB, keys ...byte) *Gate {
	c := Config{Label: "tulle-test"}
	if len(keys) > 0 {
		var all [][]byte
		for _, k := range keys {
			all = append(all, bytes.Repeat([]byte{k}, 32))
		}
		ring, err := NewKeyring(all)
		if err != nil {
			t.Fatal(err)
		}
		c.Keys = ring
	}
	return &Gate{config: c}
}

// TestRoundTrip wraps with one ring and unwraps with another: it works iff the first key of the one is in the other.
func TestRoundTrip(t *testing.T) {
	for _, c := range []struct {
		from, to []byte
		reason   string
	}{
		{nil, nil, ""}, {[]byte{1}, []byte{1}, ""}, {[]byte{1, 2}, []byte{2, 1}, ""}, {[]byte{2, 1}, []byte{1}, Key}, {[]byte{1, 2}, []byte{1}, ""},
		{nil, []byte{1}, Truncated},
	} {
		from, to := testGate(t, c.from...), testGate(t, c.to...)
		msg := []byte{8, 1, 2, 3}
		wire := from.wrap(msg)
		if len(wire) != len(msg)+from.config.Overhead() {
			t.Errorf("%v: %d bytes on the wire, overhead %d", c, len(wire), from.config.Overhead())
		}
		got, no := to.unwrap(wire)
		switch {
		case c.reason == "" && (no != nil || !bytes.Equal(got, msg)):
			t.Errorf("%v: %v, %v", c, got, no)
		case c.reason != "" && no == nil:
			t.Errorf("%v: let through", c)
		case c.from != nil && c.to != nil && no != nil && no.reason != c.reason:
			t.Errorf("%v: %v", c, no)
		}
	}
}

func TestSealedWithoutAKey(t *testing.T) {
	refused := 0
	for range 1000 {
		if _, no := testGate(t).unwrap(testGate(t, 1).wrap([]byte{8, 1, 2, 3})); no != nil && no.reason == Key {
			refused++
		}
	}
	if refused < 850 {
		t.Errorf("%d of 1000 sealed packets are refused without a key", refused)
	}
	if _, no := testGate(t).unwrap(testGate(t).wrap(append([]byte{1, 0x86}, make([]byte, 40)...))); no != nil {
		t.Errorf("an indirect ping is refused: %v", no)
	}
}

// TestEveryByteCounts changes each byte of a packet in turn, and cuts it at each length: nothing of that gets through.
func TestEveryByteCounts(t *testing.T) {
	g := testGate(t, 1)
	wire := g.wrap([]byte{7, 2, 0, 1, 0, 2, 11, 8, 1})
	for i := range wire {
		bad := bytes.Clone(wire)
		bad[i] ^= 0x40
		if _, no := g.unwrap(bad); no == nil {
			t.Errorf("byte %d changed: let through", i)
		}
		if _, no := g.unwrap(wire[:i]); no == nil {
			t.Errorf("cut at %d: let through", i)
		}
	}
	if _, no := g.unwrap(wire); no != nil {
		t.Error(no)
	}
	if _, no := g.unwrap(wire); no == nil || no.reason != Replayed {
		t.Error(no)
	}
}

// FuzzPlain checks plaintext packets: what is let through holds, by a slow look at it, nothing compressed and nothing nested.
func FuzzPlain(f *testing.F) {
	f.Add([]byte{7, 2, 0, 1, 0, 2, 11, 9, 0})
	f.Add([]byte{12, 1, 2, 3, 4, 7, 1, 0, 1, 9})
	f.Add([]byte{7, 1, 0, 3, 7, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkPacket(b) != nil {
			return
		}
		if len(b) >= 5 && b[0] == kindCRC {
			b = b[5:]
		}
		parts := [][]byte{b}
		if b[0] == kindCompound {
			parts = nil
			table, rest := b[2:2+2*int(b[1])], b[2+2*int(b[1]):]
			for len(table) > 0 {
				n := binary.BigEndian.Uint16(table)
				parts, rest, table = append(parts, rest[:n]), rest[n:], table[2:]
			}
		}
		for _, p := range parts {
			if len(p) == 0 || p[0] == kindCompressed || p[0] == kindCompound || p[0] == kindEncrypted || p[0] > kindLast {
				t.Fatalf("let through: %v", p)
			}
		}
	})
}

// TestSeen compares with a memory of everything: the last seenMost are always known, and nothing new is taken for old.
func TestSeen(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	var s seen
	at := map[[nonceSize]byte]int{}
	var order [][nonceSize]byte
	for range 5 * seenMost {
		var n [nonceSize]byte
		if again := rng.IntN(4) == 0 && len(order) > 0; again {
			n = order[max(0, len(order)-1-rng.IntN(2*seenMost))]
		} else {
			binary.BigEndian.PutUint64(n[:], rng.Uint64())
		}
		last, known := at[n]
		switch first := s.first(n); {
		case !known && !first:
			t.Fatalf("seed %d: a new one is taken for an old one", seed)
		case known && len(order)-last <= seenMost && first:
			t.Fatalf("seed %d: one of %d ago is taken for new", seed, len(order)-last)
		case first:
			at[n] = len(order)
			order = append(order, n)
		}
	}
}

// TestSources bounds one address and leaves others alone.
func TestSources(t *testing.T) {
	var s sources
	now := time.Unix(1000, 0)
	bad, good := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1")
	same := netip.MustParseAddr("2001:db8::2") // the same /64
	in := 0
	for i := range 100 {
		from := bad
		if i%2 == 1 {
			from = same
		}
		if s.enter(from, now) == nil {
			in++
		}
	}
	if in != maxStreams || s.enter(good, now) != nil {
		t.Errorf("%d streams at once", in)
	}
	for range in {
		s.leave(bad)
	}
	taken := 0
	for range 10 * 100 { // ten seconds, one each 10 ms
		now = now.Add(10 * time.Millisecond)
		if s.enter(bad, now) == nil {
			taken++
			s.leave(bad)
		}
	}
	if want := 10*streamRate + streamBurst - maxStreams; taken < want-1 || taken > want+1 {
		t.Errorf("%d streams in ten seconds, want %d", taken, want)
	}
	for i := range 3 * manySources {
		s.enter(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now.Add(time.Duration(i)*time.Second))
		s.leave(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if len(s.of) > manySources {
		t.Errorf("%d addresses are remembered", len(s.of))
	}
}
