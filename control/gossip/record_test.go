package gossip

import (
	"bytes"
	"crypto/ed25519"
	"errors"
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

func genClaim(t *rapid.T) claim {
	a := genAddr(t, "block")
	return claim{
		block:  netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked(),
		fence:  rapid.Uint64().Draw(t, "fence"),
		tenure: time.Duration(rapid.Int64Range(0, 1<<42).Draw(t, "tenure")) * time.Millisecond,
		state:  claimState(rapid.Byte().Draw(t, "state")),
	}
}

// genRecord draws any signed record; small numbers make those of one node meet.
func genRecord(t *rapid.T) *record {
	few := rapid.SampledFrom([]uint64{300, 1 << 40}) // the encodings order the other way round
	r := &record{
		epoch: few.Draw(t, "epoch"), nonce: few.Draw(t, "nonce"), seq: few.Draw(t, "seq"),
		flags:      rapid.Uint64().Draw(t, "flags"),
		name:       rapid.StringMatching(`[!-~]{1,60}`).Draw(t, "name"),
		endpoint:   netip.AddrPortFrom(genAddr(t, "endpoint"), rapid.Uint16Min(1).Draw(t, "port")),
		backend:    rapid.StringMatching(`[a-z-]{0,16}`).Draw(t, "backend"),
		vni:        rapid.Uint32Range(0, 1<<24-1).Draw(t, "vni"),
		tunnelPort: rapid.Uint16().Draw(t, "tunnel port"), capabilities: rapid.Uint64().Draw(t, "capabilities"),
		extra: bytes.Clone(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "extra")),
	}
	r.vtep = tables.MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "vtep"))
	r.vtep[0] &^= 1
	for range rapid.IntRange(0, 2).Draw(t, "addrs") {
		r.addrs = append(r.addrs, genAddr(t, "addr"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "claims") {
		r.claims = append(r.claims, genClaim(t))
	}
	if err := r.sign(rapid.SampledFrom(testKeys).Draw(t, "key")); err != nil {
		t.Fatal(err)
	}
	return r
}

func sameRecord(a, b *record) bool {
	return a.id == b.id && bytes.Equal(a.raw, b.raw) && bytes.Equal(a.appendBody(nil), b.appendBody(nil))
}

func TestRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRecord(t)
		got, err := openRecord(r.raw)
		if err != nil {
			t.Fatal(err)
		}
		if !sameRecord(got, r) || got.name != r.name || got.endpoint != r.endpoint || got.compare(r) != 0 || !bytes.Equal(got.extra, r.extra) {
			t.Fatalf("got %+v, want %+v", got, r)
		}
	})
}

func TestDamagedRecordsAreRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := genRecord(t).raw
		if n := rapid.IntRange(0, len(raw)-1).Draw(t, "length"); true {
			if r, err := openRecord(raw[:n]); err == nil {
				t.Fatalf("cut to %d of %d bytes it is %v", n, len(raw), r)
			}
		}
		bit := rapid.IntRange(0, 8*len(raw)-1).Draw(t, "bit")
		flipped := bytes.Clone(raw)
		flipped[bit/8] ^= 1 << (bit % 8)
		if r, err := openRecord(flipped); err == nil {
			t.Fatalf("with bit %d flipped it is %v", bit, r)
		}
	})
}

func plainRecord(change func(*record)) *record {
	r := &record{
		epoch: 3, nonce: 9, seq: 1, name: "n1", endpoint: netip.MustParseAddrPort("192.0.2.1:7946"), backend: "vxlan", vni: 1, tunnelPort: 8472,
		vtep:   tables.MAC{2, 0, 0, 0, 0, 1},
		claims: []claim{{block: netip.MustParsePrefix("10.244.1.0/24"), tenure: time.Hour, state: confirmed}},
	}
	change(r)
	return r
}

// A record from a newer tulle has fields behind those that this one knows.
func TestUnknownTrailingFieldsAreCarried(t *testing.T) {
	r := plainRecord(func(r *record) { r.extra, r.flags = []byte("dual stack"), 1<<40 })
	if err := r.sign(testKeys[0]); err != nil {
		t.Fatal(err)
	}
	got, err := openRecord(r.raw)
	if err != nil || got.name != "n1" || !bytes.Equal(got.raw, r.raw) || string(got.extra) != "dual stack" || got.flags != 1<<40 {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestRecordLimits(t *testing.T) {
	for _, c := range []struct {
		why    string
		change func(*record)
		want   string
	}{
		{"no name", func(r *record) { r.name = "" }, "printable"},
		{"escape in the name", func(r *record) { r.name = "n\x1b[2J" }, "printable"},
		{"long name", func(r *record) { r.name = strings.Repeat("n", 254) }, "printable"},
		{"no endpoint", func(r *record) { r.endpoint = netip.MustParseAddrPort("0.0.0.0:7946") }, "unicast"},
		{"multicast endpoint", func(r *record) { r.endpoint = netip.MustParseAddrPort("224.0.0.1:7946") }, "unicast"},
		{"no port", func(r *record) { r.endpoint = netip.MustParseAddrPort("192.0.2.1:0") }, "unicast"},
		{"VNI", func(r *record) { r.vni = 1 << 24 }, "24 bits"},
		{"multicast MAC", func(r *record) { r.vtep[0] = 1 }, "multicast"},
		{"host bits", func(r *record) { r.claims[0].block = netip.MustParsePrefix("10.244.1.1/24") }, "masked"},
		{"mapped", func(r *record) { r.claims[0].block = netip.MustParsePrefix("::ffff:10.244.0.0/112") }, "masked"},
		{"many claims", func(r *record) { r.claims = make([]claim, 9) }, "at most"},
		{"too large", func(r *record) { r.name = strings.Repeat("n", 253); r.extra = make([]byte, 200) }, "shorter node name"},
	} {
		r := plainRecord(c.change)
		if err := r.sign(testKeys[0]); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.why, err)
		}
		// The same from a node that does not check what it signs.
		body := r.appendBody(nil)
		raw := append(body, ed25519.Sign(testKeys[0], signedBytes(body))...)
		if _, err := openRecord(raw); err == nil {
			t.Errorf("%s: taken from the network", c.why)
		}
	}
	longest := plainRecord(func(r *record) {
		r.name, r.epoch, r.seq = strings.Repeat("n", 253), 1<<32, 1<<32
		r.addrs = []netip.Addr{netip.MustParseAddr("2001:db8::1")}
		r.claims = append(r.claims, claim{block: netip.MustParsePrefix("2001:db8::/64"), state: confirmed, tenure: 1e6 * time.Hour, fence: 1 << 20})
	})
	if err := longest.sign(testKeys[0]); err != nil {
		t.Errorf("the longest name with dual stack: %v", err)
	}
}

func TestForeignSignature(t *testing.T) {
	r := plainRecord(func(*record) {})
	if err := r.sign(testKeys[0]); err != nil {
		t.Fatal(err)
	}
	body := r.raw[:len(r.raw)-ed25519.SignatureSize]
	for _, signature := range [][]byte{
		ed25519.Sign(testKeys[1], signedBytes(body)), // another node's
		ed25519.Sign(testKeys[0], body),              // not as a record
	} {
		if _, err := openRecord(append(bytes.Clone(body), signature...)); !errors.Is(err, errSignature) {
			t.Errorf("%v", err)
		}
	}
}

// Merging is a join: whatever the order and however often, the same records come out.
func TestMergeIsAJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(genRecord), 1, 12).Draw(t, "records")
		a, b := records{}, records{}
		for _, r := range all {
			a.merge(r)
		}
		shuffled := rapid.Permutation(all).Draw(t, "order")
		for i := range rapid.IntRange(0, len(all)).Draw(t, "twice") {
			shuffled = append(shuffled, all[i])
		}
		half := rapid.IntRange(0, len(shuffled)).Draw(t, "half")
		left, right := records{}, records{} // associative: merge two merged halves
		for i, r := range shuffled {
			if i < half {
				left.merge(r)
			} else {
				right.merge(r)
			}
		}
		for _, r := range left {
			b.merge(r)
		}
		for _, r := range right {
			b.merge(r)
		}
		for id := range a {
			if b[id] == nil || !bytes.Equal(a[id].raw, b[id].raw) {
				t.Fatalf("node %s: %v and %v", id, a[id], b[id])
			}
			if a.merge(b[id]) {
				t.Fatal("a record that is known is news")
			}
		}
		for _, r := range all { // the newest of each node, by hand
			top := a[r.id]
			if r.epoch > top.epoch || r.epoch == top.epoch && (r.nonce > top.nonce || r.nonce == top.nonce && r.seq > top.seq) {
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
		b := encodeState(all)
		b = append(b, 77, 3, 'n', 'e', 'w') // a section of a newer tulle
		raws, err := decodeState(b)
		if err != nil || len(raws) != len(all) {
			t.Fatalf("%d of %d records, %v", len(raws), len(all), err)
		}
		for i, raw := range raws {
			if !bytes.Equal(raw, all[i].raw) {
				t.Fatalf("record %d differs", i)
			}
		}
		if n := rapid.IntRange(0, len(b)-6).Draw(t, "cut"); n > 2 {
			if raws, err := decodeState(b[:n]); err == nil && len(raws) == len(all) && len(all) > 0 {
				t.Fatalf("cut to %d of %d bytes it is whole", n, len(b))
			}
		}
	})
}

// FuzzRecord: what decodes has exactly one encoding, and it is the one that came in.
func FuzzRecord(f *testing.F) {
	for _, change := range []func(*record){
		func(*record) {},
		func(r *record) { r.extra = []byte{1, 2, 3} },
		func(r *record) { r.claims, r.addrs = nil, []netip.Addr{netip.MustParseAddr("2001:db8::7")} },
	} {
		r := plainRecord(change)
		if err := r.sign(testKeys[0]); err != nil {
			f.Fatal(err)
		}
		f.Add(r.raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRecord(raw)
		if err != nil {
			return
		}
		if body := raw[:len(raw)-ed25519.SignatureSize]; !bytes.Equal(r.appendBody(nil), body) {
			t.Fatalf("%x decodes to %+v, which encodes as %x", body, r, r.appendBody(nil))
		}
		if again, err := openRecord(raw); err == nil && !sameRecord(again, r) {
			t.Fatalf("%+v and %+v", again, r)
		}
		_ = r.String()
	})
}

// FuzzState: the records of a state survive another trip.
func FuzzState(f *testing.F) {
	r := plainRecord(func(*record) {})
	if err := r.sign(testKeys[0]); err != nil {
		f.Fatal(err)
	}
	f.Add(encodeState([]*record{r, r}))
	f.Add([]byte{stateVersion, 9, 1, 0, sectionRecords, 2, 1, 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		raws, _ := decodeState(b)
		var all []*record
		for _, raw := range raws {
			all = append(all, &record{raw: raw})
		}
		again, err := decodeState(encodeState(all))
		if err != nil || len(again) != len(raws) {
			t.Fatalf("%d records become %d: %v", len(raws), len(again), err)
		}
		for i := range raws {
			if !bytes.Equal(raws[i], again[i]) {
				t.Fatalf("record %d differs", i)
			}
		}
	})
}
