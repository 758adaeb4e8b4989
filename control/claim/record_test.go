package claim

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// testKeys are a few identities: records of one node must meet.
var testKeys = func() (keys []ed25519.PrivateKey) {
	for i := range 4 {
		keys = append(keys, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize)))
	}
	return keys
}()

func genAddr(t *rapid.T, name string) netip.Addr {
	for {
		var a netip.Addr
		if rapid.Bool().Draw(t, name+" is IPv4") {
			a = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
		} else {
			a = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name)))
		}
		if usable(a) {
			return a
		}
	}
}

func genClaim(t *rapid.T) Claim {
	a := genAddr(t, "block")
	return Claim{
		Block:  netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked(),
		Fence:  rapid.Uint64().Draw(t, "fence"),
		Tenure: time.Duration(rapid.Int64Range(0, 1<<42).Draw(t, "tenure")) * time.Millisecond,
		State:  claimState(rapid.Byte().Draw(t, "state")),
	}
}

// genRecord draws any signed record; small numbers make those of one node meet.
func genRecord(t *rapid.T) *Record {
	few := rapid.SampledFrom([]uint64{300, 1 << 40}) // the encodings order the other way round
	r := &Record{
		Epoch: few.Draw(t, "epoch"), Nonce: few.Draw(t, "nonce"), Seq: few.Draw(t, "seq"),
		Flags:      rapid.Uint64().Draw(t, "flags"),
		Name:       rapid.StringMatching(`[!-~]{1,60}`).Draw(t, "name"),
		Endpoint:   netip.AddrPortFrom(genAddr(t, "endpoint"), rapid.Uint16Min(1).Draw(t, "port")),
		Backend:    rapid.StringMatching(`[a-z-]{0,16}`).Draw(t, "backend"),
		VNI:        rapid.Uint32Range(0, 1<<24-1).Draw(t, "vni"),
		TunnelPort: rapid.Uint16().Draw(t, "tunnel port"), capabilities: rapid.Uint64().Draw(t, "capabilities"),
		extra: bytes.Clone(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "extra")),
	}
	r.VTEP = tables.MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "vtep"))
	r.VTEP[0] &^= 1
	for range rapid.IntRange(0, 2).Draw(t, "addrs") {
		r.Addrs = append(r.Addrs, genAddr(t, "addr"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "claims") {
		r.Claims = append(r.Claims, genClaim(t))
	}
	if err := r.Sign(rapid.SampledFrom(testKeys).Draw(t, "key")); err != nil {
		t.Fatal(err)
	}
	return r
}

func sameRecord(a, b *Record) bool {
	return a.ID == b.ID && bytes.Equal(a.Raw, b.Raw) && bytes.Equal(a.appendBody(nil), b.appendBody(nil))
}

func TestRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord(t)
		got, err := OpenRecord(r.Raw)
		if err != nil {
			t.Fatal(err)
		}
		if !sameRecord(got, r) || got.Name != r.Name || got.Endpoint != r.Endpoint || got.compare(r) != 0 || !bytes.Equal(got.extra, r.extra) {
			t.Fatalf("got %+v, want %+v", got, r)
		}
	})
}

// TestSuperseded demands that only an older record of the same boot and key is taken for one that need not be verified.
func TestSuperseded(t *testing.T) {
	sign := func(key ed25519.PrivateKey, epoch, nonce, seq uint64) *Record {
		r := &Record{Epoch: epoch, Nonce: nonce, Seq: seq, Name: "n", Endpoint: netip.MustParseAddrPort("192.0.2.1:7946")}
		if err := r.Sign(key); err != nil {
			t.Fatal(err)
		}
		return r
	}
	a, b := ed25519.NewKeyFromSeed(make([]byte, 32)), ed25519.NewKeyFromSeed(append(make([]byte, 31), 1))
	known := sign(a, 3, 7, 5)
	for i, c := range []struct {
		raw  []byte
		want bool
	}{
		{sign(a, 3, 7, 4).Raw, true}, {known.Raw, false}, {sign(a, 3, 7, 6).Raw, false}, {sign(a, 2, 7, 4).Raw, false}, {sign(a, 4, 7, 4).Raw, false},
		{sign(a, 3, 8, 4).Raw, false}, {sign(b, 3, 7, 4).Raw, false}, {nil, false}, {known.Raw[:33], false}, {known.Raw[:36], false},
	} {
		if SupersededBy(c.raw, known) != c.want {
			t.Errorf("%d: want %v", i, c.want)
		}
	}
}

func TestDamagedRecordsAreRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := genRecord(t).Raw
		if n := rapid.IntRange(0, len(raw)-1).Draw(t, "length"); true {
			if r, err := OpenRecord(raw[:n]); err == nil {
				t.Fatalf("cut to %d of %d bytes it is %v", n, len(raw), r)
			}
		}
		bit := rapid.IntRange(0, 8*len(raw)-1).Draw(t, "bit")
		flipped := bytes.Clone(raw)
		flipped[bit/8] ^= 1 << (bit % 8)
		if r, err := OpenRecord(flipped); err == nil {
			t.Fatalf("with bit %d flipped it is %v", bit, r)
		}
	})
}

func plainRecord(change func(*Record)) *Record {
	r := &Record{
		Epoch: 3, Nonce: 9, Seq: 1, Name: "n1", Endpoint: netip.MustParseAddrPort("192.0.2.1:7946"), Backend: "vxlan", VNI: 1, TunnelPort: 8472,
		VTEP:   tables.MAC{2, 0, 0, 0, 0, 1},
		Claims: []Claim{{Block: netip.MustParsePrefix("10.244.1.0/24"), Tenure: time.Hour, State: Confirmed}},
	}
	change(r)
	return r
}

// A record from a newer tulle has fields behind those that this one knows.
func TestUnknownTrailingFieldsAreCarried(t *testing.T) {
	r := plainRecord(func(r *Record) { r.extra, r.Flags = []byte("dual stack"), 1<<40 })
	if err := r.Sign(testKeys[0]); err != nil {
		t.Fatal(err)
	}
	got, err := OpenRecord(r.Raw)
	if err != nil || got.Name != "n1" || !bytes.Equal(got.Raw, r.Raw) || string(got.extra) != "dual stack" || got.Flags != 1<<40 {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestRecordLimits(t *testing.T) {
	for _, c := range []struct {
		why    string
		change func(*Record)
		want   string
	}{
		{"no name", func(r *Record) { r.Name = "" }, "printable"},
		{"escape in the name", func(r *Record) { r.Name = "n\x1b[2J" }, "printable"},
		{"long name", func(r *Record) { r.Name = strings.Repeat("n", 254) }, "printable"},
		{"no endpoint", func(r *Record) { r.Endpoint = netip.MustParseAddrPort("0.0.0.0:7946") }, "unicast"},
		{"multicast endpoint", func(r *Record) { r.Endpoint = netip.MustParseAddrPort("224.0.0.1:7946") }, "unicast"},
		{"no port", func(r *Record) { r.Endpoint = netip.MustParseAddrPort("192.0.2.1:0") }, "unicast"},
		{"VNI", func(r *Record) { r.VNI = 1 << 24 }, "24 bits"},
		{"multicast MAC", func(r *Record) { r.VTEP[0] = 1 }, "multicast"},
		{"host bits", func(r *Record) { r.Claims[0].Block = netip.MustParsePrefix("10.244.1.1/24") }, "masked"},
		{"mapped", func(r *Record) { r.Claims[0].Block = netip.MustParsePrefix("::ffff:10.244.0.0/112") }, "masked"},
		{"many claims", func(r *Record) { r.Claims = make([]Claim, 9) }, "at most"},
		{"too large", func(r *Record) { r.Name = strings.Repeat("n", 253); r.extra = make([]byte, 200) }, "shorter node name"},
	} {
		r := plainRecord(c.change)
		if err := r.Sign(testKeys[0]); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.why, err)
		}
		// The same from a node that does not check what it signs.
		body := r.appendBody(nil)
		raw := append(body, ed25519.Sign(testKeys[0], signedBytes(body))...)
		if _, err := OpenRecord(raw); err == nil {
			t.Errorf("%s: taken from the network", c.why)
		}
	}
	longest := plainRecord(func(r *Record) {
		r.Name, r.Epoch, r.Seq = strings.Repeat("n", 253), 1<<32, 1<<32
		r.Addrs = []netip.Addr{netip.MustParseAddr("2001:db8::1")}
		r.Claims = append(r.Claims, Claim{Block: netip.MustParsePrefix("2001:db8::/64"), State: Confirmed, Tenure: 1e6 * time.Hour, Fence: 1 << 20})
		r.Claims = append(r.Claims, Claim{Block: r.Claims[0].Block, State: Released, Fence: 1 << 20})
	})
	if err := longest.Sign(testKeys[0]); err != nil {
		t.Errorf("the longest name with dual stack: %v", err)
	}
}

func TestForeignSignature(t *testing.T) {
	r := plainRecord(func(*Record) {})
	if err := r.Sign(testKeys[0]); err != nil {
		t.Fatal(err)
	}
	body := r.Raw[:len(r.Raw)-ed25519.SignatureSize]
	for _, signature := range [][]byte{
		ed25519.Sign(testKeys[1], signedBytes(body)), // another node's
		ed25519.Sign(testKeys[0], body),              // not as a record
	} {
		if _, err := OpenRecord(append(bytes.Clone(body), signature...)); !errors.Is(err, errSignature) {
			t.Errorf("%v", err)
		}
	}
}

// Merging is a join: whatever the order and however often, the same records come out.
func TestMergeIsAJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(genRecord), 1, 12).Draw(t, "records")
		a, b := Records{}, Records{}
		for _, r := range all {
			a.Merge(r)
		}
		shuffled := rapid.Permutation(all).Draw(t, "order")
		for i := range rapid.IntRange(0, len(all)).Draw(t, "twice") {
			shuffled = append(shuffled, all[i])
		}
		half := rapid.IntRange(0, len(shuffled)).Draw(t, "half")
		left, right := Records{}, Records{} // associative: merge two merged halves
		for i, r := range shuffled {
			if i < half {
				left.Merge(r)
			} else {
				right.Merge(r)
			}
		}
		for _, r := range left {
			b.Merge(r)
		}
		for _, r := range right {
			b.Merge(r)
		}
		for id := range a {
			if b[id] == nil || !bytes.Equal(a[id].Raw, b[id].Raw) {
				t.Fatalf("node %s: %v and %v", id, a[id], b[id])
			}
			if a.Merge(b[id]) {
				t.Fatal("a record that is known is news")
			}
		}
		for _, r := range all { // the newest of each node, by hand
			top := a[r.ID]
			if r.Epoch > top.Epoch || r.Epoch == top.Epoch && (r.Nonce > top.Nonce || r.Nonce == top.Nonce && r.Seq > top.Seq) {
				t.Fatalf("%+v was kept, %+v is newer", top, r)
			}
		}
		if len(a) != len(b) {
			t.Fatalf("%d and %d nodes", len(a), len(b))
		}
	})
}

func TestStateRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(genRecord), 0, 5).Draw(t, "records")
		fences := Fences{netip.MustParsePrefix("10.244.7.0/24"): {3, 5 * time.Second}, netip.MustParsePrefix("fd00::/64"): {1, Quarantine}}
		b := EncodeState(all, fences)
		b = append(b, 77, 3, 'n', 'e', 'w') // a section of a newer tulle
		raws, got, err := DecodeState(b)
		if err != nil || len(raws) != len(all) || !maps.Equal(got, fences) {
			t.Fatalf("%d of %d records, %v", len(raws), len(all), err)
		}
		for i, raw := range raws {
			if !bytes.Equal(raw, all[i].Raw) {
				t.Fatalf("record %d differs", i)
			}
		}
		if n := rapid.IntRange(0, len(b)-6).Draw(t, "cut"); n > 2 {
			if raws, got, err := DecodeState(b[:n]); err == nil && len(raws) == len(all) && len(all) > 0 && len(got) == len(fences) {
				t.Fatalf("cut to %d of %d bytes it is whole", n, len(b))
			}
		}
	})
}

// FuzzRecord: what decodes has exactly one encoding, and it is the one that came in.
func FuzzRecord(f *testing.F) {
	for _, change := range []func(*Record){
		func(*Record) {},
		func(r *Record) { r.extra = []byte{1, 2, 3} },
		func(r *Record) { r.Claims, r.Addrs = nil, []netip.Addr{netip.MustParseAddr("2001:db8::7")} },
	} {
		r := plainRecord(change)
		if err := r.Sign(testKeys[0]); err != nil {
			f.Fatal(err)
		}
		f.Add(r.Raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRecord(raw)
		if err != nil {
			return
		}
		if body := raw[:len(raw)-ed25519.SignatureSize]; !bytes.Equal(r.appendBody(nil), body) {
			t.Fatalf("%x decodes to %+v, which encodes as %x", body, r, r.appendBody(nil))
		}
		if again, err := OpenRecord(raw); err == nil && !sameRecord(again, r) {
			t.Fatalf("%+v and %+v", again, r)
		}
		_ = r.String()
	})
}

// FuzzState: the records of a state survive another trip.
func FuzzState(f *testing.F) {
	r := plainRecord(func(*Record) {})
	if err := r.Sign(testKeys[0]); err != nil {
		f.Fatal(err)
	}
	f.Add(EncodeState([]*Record{r, r}, Fences{netip.MustParsePrefix("10.244.7.0/24"): {3, time.Second}}))
	f.Add([]byte{stateVersion, 9, 1, 0, SectionRecords, 2, 1, 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		raws, fences, _ := DecodeState(b)
		var all []*Record
		for _, raw := range raws {
			all = append(all, &Record{Raw: raw})
		}
		again, same, err := DecodeState(EncodeState(all, fences))
		if err != nil || len(again) != len(raws) || !maps.Equal(same, fences) {
			t.Fatalf("%d records become %d: %v", len(raws), len(again), err)
		}
		for i := range raws {
			if !bytes.Equal(raws[i], again[i]) {
				t.Fatalf("record %d differs", i)
			}
		}
	})
}

func TestMemberNames(t *testing.T) {
	id := NodeID{1, 2, 3}
	if got, epoch, ok := ParseMember(MemberName(id, 77)); !ok || got != id || epoch != 77 {
		t.Errorf("%s %d %v", got, epoch, ok)
	}
	for _, name := range []string{"", ".", "n1", id.String(), id.String() + ".", id.String() + ".-1", id.String() + ".01", id.String() + ".1.2", "." + id.String()} {
		if _, _, ok := ParseMember(name); ok {
			t.Errorf("%q is taken for a member", name)
		}
	}
}
