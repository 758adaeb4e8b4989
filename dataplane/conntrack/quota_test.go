package conntrack_test

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

// quotaPacket is a UDP packet from one of a few sources.
func quotaPacket(source byte, port uint16, v6 bool) conntrack.Packet {
	t := conntrack.Tuple{SrcPort: port, DstPort: 53, Proto: 17}
	t.Src, t.Dst = netip.AddrFrom4([4]byte{10, 0, 1, source}), netip.AddrFrom4([4]byte{10, 0, 1, 100})
	if v6 {
		t.Src, t.Dst = netip.AddrFrom16([16]byte{0: 0xfd, 15: source}), netip.AddrFrom16([16]byte{0: 0xfd, 15: 100})
	}
	return conntrack.Packet{Tuple: t}
}

// TestQuota opens, deletes and outlives flows of few sources, below and above their destination, at random, and holds what the quota allows
// against a count.
func TestQuota(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	const most = 20
	table := newTable(t, conntrack.Config{Flows4: 4000, Flows6: 4000, PerSource: most})
	type sourceOf struct {
		v6     bool
		source byte
	}
	have := map[sourceOf]map[uint16]conntrack.ID{}
	now := time.Hour
	refused := uint64(0)
	for range 100_000 {
		s := sourceOf{rng.IntN(2) == 0, byte(97 + rng.IntN(7))}
		if have[s] == nil {
			have[s] = map[uint16]conntrack.ID{}
		}
		p := quotaPacket(s.source, uint16(rng.IntN(40)), s.v6)
		if _, known := have[s][p.SrcPort]; !known && s.source != 100 {
			hit, result := table.Insert(&p, conntrack.NAT{}, now)
			switch {
			case len(have[s]) < most && result == conntrack.Inserted:
				have[s][p.SrcPort] = hit.ID
			case len(have[s]) == most && result == conntrack.OverQuota:
				refused++
			default:
				t.Fatalf("insert with %d flows of %+v: %s", len(have[s]), s, result)
			}
		}
		switch rng.IntN(30) {
		case 0: // of an answer: it belongs to the flow, and is nothing of the answerer's
			back := conntrack.Packet{Tuple: conntrack.Tuple{Src: p.Dst, Dst: p.Src, SrcPort: p.DstPort, DstPort: p.SrcPort, Proto: p.Proto}}
			table.Lookup(&back, now)
		case 1:
			for port, id := range have[s] {
				if !table.Delete(id) {
					t.Fatalf("flow %x of %+v is gone", id, s)
				}
				delete(have[s], port)
				break
			}
		}
		if rng.IntN(2000) == 0 {
			now += 10 * time.Minute
			table.Sweep(now, 100_000)
			clear(have)
		}
	}
	if s := table.Stats(); s.OverQuota != refused || refused < 100 || s.Full != 0 {
		t.Errorf("%+v, refused %d", s, refused)
	}
}

// TestQuotaConcurrent has many workers open flows of one source: it never has more than it may, and all that was given back can be had again.
func TestQuotaConcurrent(t *testing.T) {
	const most = 50
	table := newTable(t, conntrack.Config{Flows4: 4000, PerSource: most})
	for round := range 20 {
		var workers sync.WaitGroup
		ids := make([][]conntrack.ID, 8)
		for w := range ids {
			workers.Go(func() {
				for port := range 200 {
					p := quotaPacket(1, uint16(w*200+port), false)
					if hit, result := table.Insert(&p, conntrack.NAT{}, time.Hour); result == conntrack.Inserted {
						ids[w] = append(ids[w], hit.ID)
					}
					if n := table.Stats().Flows4; n > most {
						t.Errorf("%d flows of a source that may have %d", n, most)
						return
					}
				}
			})
		}
		workers.Wait()
		if n := table.Stats().Flows4; n != most {
			t.Fatalf("round %d: %d flows, want %d", round, n, most)
		}
		for _, of := range ids {
			for _, id := range of {
				table.Delete(id)
			}
		}
	}
}

// TestQuotaAdopted demands that flows which are taken over count.
func TestQuotaAdopted(t *testing.T) {
	c := conntrack.Config{Flows4: 1000, Flows6: 1000, PerSource: 3}
	for _, v6 := range []bool{false, true} {
		for _, source := range []byte{1, 200} { // below and above the destination
			old, err := conntrack.New(c)
			if err != nil {
				t.Fatal(err)
			}
			for port := range uint16(2) {
				p := quotaPacket(source, port, v6)
				old.Insert(&p, conntrack.NAT{}, time.Hour)
			}
			table, _ := inherit(t, old.File(), c, time.Hour)
			for port, want := range []conntrack.Result{conntrack.Exists, conntrack.Exists, conntrack.Inserted, conntrack.OverQuota} {
				p := quotaPacket(source, uint16(port), v6)
				if _, result := table.Insert(&p, conntrack.NAT{}, time.Hour); result != want {
					t.Errorf("flow %d of source %d: %s, want %s", port, source, result, want)
				}
			}
		}
	}
}

// TestQuotaNotSpent demands that an insert which finds no room takes nothing of its source's quota.
func TestQuotaNotSpent(t *testing.T) {
	table := newTable(t, conntrack.Config{Flows4: 1, PerSource: 3})
	there := quotaPacket(1, 1, false)
	hit, _ := table.Insert(&there, conntrack.NAT{}, time.Hour)
	back := conntrack.Packet{Tuple: conntrack.Tuple{Src: there.Dst, Dst: there.Src, SrcPort: there.DstPort, DstPort: there.SrcPort, Proto: there.Proto}}
	table.Lookup(&back, time.Hour) // now it does not give way
	other := quotaPacket(2, 1, false)
	for range 10 {
		if _, result := table.Insert(&other, conntrack.NAT{}, time.Hour); result != conntrack.Full {
			t.Fatalf("insert into a full table: %s", result)
		}
	}
	table.Delete(hit.ID)
	if _, result := table.Insert(&other, conntrack.NAT{}, time.Hour); result != conntrack.Inserted {
		t.Errorf("insert into an empty table: %s", result)
	}
}
