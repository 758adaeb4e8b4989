package conntrack_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

func newSeed(t testing.TB) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("random test: repeat with -seed=%d", seed)
	return seed
}

var compareFlows = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}

// A duel steps a table and the model together. Its choices come from intn, so that a seed or a fuzzer's bytes replay it.
type duel struct {
	tb    testing.TB
	intn  func(int) int
	table *conntrack.Table
	model *model
	now   time.Duration
	last  step // what was done
	seen  map[string]int

	insertedBefore uint64 // by tables that others took over
}

// A step is one packet.
type step struct {
	at     time.Duration
	packet conntrack.Packet
}

func (s step) String() string { return fmt.Sprintf("at %v: %+v", s.at, s.packet) }

func newDuel(tb testing.TB, intn func(int) int) *duel {
	table, err := conntrack.New(duelConfig)
	if err != nil {
		tb.Fatal(err)
	}
	d := &duel{tb: tb, intn: intn, table: table, model: newModel(), seen: map[string]int{}}
	tb.Cleanup(func() { d.table.Close() })
	return d
}

var duelConfig = conntrack.Config{Flows4: 400, Flows6: 400}

// restart lets another table take over what the table is in.
func (d *duel) restart() {
	old, before := d.table, d.table.Stats()
	var got conntrack.Adoption
	d.table, got = inherit(d.tb, old.File(), duelConfig, d.now)
	if err := old.Close(); err != nil {
		d.tb.Fatal(err)
	}
	if want := (conntrack.Adoption{Kept: before.Flows4 + before.Flows6}); got != want {
		d.tb.Fatalf("after %s: %+v, want %+v", d.last, got, want)
	}
	d.insertedBefore += before.Inserted
	d.seen["restart"]++
	d.checkAll()
}

func (d *duel) pick(values ...int) int { return values[d.intn(len(values))] }

func (d *duel) step() {
	d.advanceTime()
	switch n := d.intn(1000); {
	case n < 925:
		d.packet()
	case n < 985:
		d.find()
	case n < 990:
		d.delete()
	case n < 998:
		d.sweep()
	case d.intn(10) == 0:
		d.restart()
	default:
		d.checkAll()
	}
}

func (d *duel) advanceTime() {
	switch n := d.intn(10_000); {
	case n < 3:
		d.now += time.Duration(d.intn(3*3600)) * time.Second
	case n < 30:
		d.now += time.Duration(d.intn(150)) * time.Second
	case n < 200:
		d.now += time.Duration(d.intn(15)) * time.Second
	case n < 1000:
		d.now += time.Duration(d.intn(1500)) * time.Millisecond
	}
}

// tuple draws one of few, in a random direction.
func (d *duel) tuple() conntrack.Tuple {
	t := conntrack.Tuple{Proto: uint8(d.pick(6, 6, 6, 6, 6, 17, 1, 58, 132)), SrcPort: uint16(d.intn(3)), DstPort: uint16(d.pick(80, 80, 0))}
	a, b := byte(d.intn(3)), byte(d.intn(3))
	if d.intn(2) == 0 {
		t.Src, t.Dst = netip.AddrFrom4([4]byte{10, 0, 0, a}), netip.AddrFrom4([4]byte{10, 0, 0, b})
	} else {
		t.Src, t.Dst = netip.AddrFrom16([16]byte{0xfd, 0, a, 15: 1}), netip.AddrFrom16([16]byte{0xfd, 0, b, 15: 1})
	}
	if d.intn(2) == 0 {
		t.Src, t.Dst, t.SrcPort, t.DstPort = t.Dst, t.Src, t.DstPort, t.SrcPort
	}
	return t
}

func (d *duel) nat(t conntrack.Tuple) (n conntrack.NAT) {
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(d.intn(256))}), uint16(d.intn(1<<16)))
	if t.Src.Is6() {
		to = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfe, 9: byte(d.intn(256)), 15: 1}), uint16(d.intn(1<<16)))
	}
	switch d.intn(4) {
	case 0:
		n.Src = to
	case 1:
		n.Dst = to
	case 2:
		n.Src, n.Dst = to, netip.AddrPortFrom(to.Addr().Next(), 7)
	}
	return n
}

// packet lets the table and the model see one packet, as the engine does: a lookup, and an insert if it misses.
func (d *duel) packet() {
	p := conntrack.Packet{Tuple: d.tuple()}
	if p.Proto == 6 {
		p.TCP = d.segment(p.Tuple)
	}
	at := max(0, d.now-time.Duration(d.pick(0, 0, 0, d.intn(1000)))*time.Millisecond) // of a worker that took it earlier
	if d.model.live(p.Tuple, at) != d.model.live(p.Tuple, d.now) {
		at = d.now // swept or not: either is right
	}
	d.last = step{at, p}
	got, ok := d.table.Lookup(&p, at)
	want, wantOK := d.model.lookup(&p, at)
	if ok != wantOK || got != want {
		d.tb.Fatalf("%s: Lookup returned\n%+v, %v, want\n%+v, %v", d.last, got, ok, want, wantOK)
	}
	d.count(p, got, ok)
	if !ok && d.intn(4) > 0 {
		d.insert(p, at)
	}
}

// count notes what the random walk has reached.
func (d *duel) count(p conntrack.Packet, hit conntrack.Hit, ok bool) {
	if ok {
		d.seen[hit.State.String()]++
	}
	if hit.OutOfWindow {
		d.seen["out of window"]++
	}
}

func (d *duel) insert(p conntrack.Packet, at time.Duration) {
	nat := d.nat(p.Tuple)
	got, result := d.table.Insert(&p, nat, at)
	want, wantResult := d.model.insert(&p, nat, got.ID, at)
	if result != wantResult || got != want {
		d.tb.Fatalf("%s: Insert returned\n%+v, %v, want\n%+v, %v", d.last, got, result, want, wantResult)
	}
	if result != conntrack.Inserted {
		return
	}
	if got.ID == 0 || d.model.ids[got.ID] {
		d.tb.Fatalf("%s: Insert returned the ID %x, which is 0 or named a flow before", d.last, got.ID)
	}
	d.model.ids[got.ID] = true
}

func (d *duel) find() {
	t := d.tuple()
	got, ok := d.table.Find(t, d.now)
	f := d.model.live(t, d.now)
	if ok != (f != nil) || ok && got != f.expected() {
		d.tb.Fatalf("after %s: Find(%+v) returned\n%+v, %v, want\n%+v", d.last, t, got, ok, f)
	}
}

func (f *modelFlow) expected() conntrack.Flow {
	flow := f.Flow
	flow.Expires = f.LastSeen + f.timeout()
	return flow
}

// delete removes the flow of a tuple, which may have timed out and be swept or not, and tries it again.
func (d *duel) delete() {
	t := d.tuple()
	if f := d.model.flows[canonical(t)][t.Proto]; f != nil {
		live := d.model.live(t, d.now) != nil
		if ok := d.table.Delete(f.ID); live && !ok {
			d.tb.Fatalf("after %s: Delete(%x) found no flow", d.last, f.ID)
		}
		if d.table.Delete(f.ID) {
			d.tb.Fatalf("after %s: Delete(%x) found a flow twice", d.last, f.ID)
		}
		delete(d.model.flows[canonical(t)], t.Proto)
	}
}

func (d *duel) sweep() {
	n := d.pick(0, 1, 100, 1<<20)
	d.table.Sweep(d.now, n)
	if s := d.table.Stats(); n == 1<<20 && s.Flows4+s.Flows6 != len(d.live()) {
		d.tb.Fatalf("after %s: %+v when all is swept, want %d flows", d.last, s, len(d.live()))
	}
}

func (d *duel) live() map[conntrack.ID]conntrack.Flow {
	flows := map[conntrack.ID]conntrack.Flow{}
	for _, protos := range d.model.flows {
		for _, f := range protos {
			if d.model.live(f.Tuple, d.now) != nil {
				flows[f.ID] = f.expected()
			}
		}
	}
	return flows
}

// checkAll compares the listing and the counts.
func (d *duel) checkAll() {
	d.tb.Helper()
	got := map[conntrack.ID]conntrack.Flow{}
	for f := range d.table.Flows(d.now) {
		if _, ok := got[f.ID]; ok {
			d.tb.Fatalf("after %s: Flows lists %x twice", d.last, f.ID)
		}
		got[f.ID] = f
	}
	if want := d.live(); !maps.Equal(want, got) {
		d.tb.Fatalf("after %s: flows differ (-model +table):\n%s", d.last, cmp.Diff(want, got, compareFlows))
	}
	s := d.table.Stats()
	if d.insertedBefore+s.Inserted != d.model.inserted || s.Adopted+s.Inserted != uint64(s.Flows4+s.Flows6)+s.Expired+s.Evicted+s.Deleted || s.Full != 0 {
		d.tb.Fatalf("after %s: %+v do not add up, or %d were inserted", d.last, s, d.model.inserted)
	}
}

// segment draws a segment for a tuple: often the one that moves its connection on, else one near the windows' edges, else
// anything.
func (d *duel) segment(t conntrack.Tuple) conntrack.Segment {
	s := conntrack.Segment{Window: uint16(d.pick(0, 1, 100, 29200, 65535, d.intn(1<<16))), Options: d.options()}
	s.Len = d.pick(0, 0, 0, 1, 1448, 65160, d.intn(1<<16))
	f := d.model.live(t, d.now)
	if f == nil {
		s.Seq, s.Ack = d.random32(), d.random32()
		s.Flags = uint8(d.pick(0x02, 0x02, 0x02, 0x02, 0x10, d.intn(256)))
		return s
	}
	from := 0
	if t.Src != f.Tuple.Src || t.SrcPort != f.Tuple.SrcPort {
		from = 1
	}
	e, other := f.ends[from], f.ends[1-from]
	s.Seq, s.Ack = e.next, other.next
	if !e.heard {
		s.Seq = d.random32()
	}
	if s.Flags = d.sensible(f.State, from); d.intn(2) == 0 {
		return s
	}
	s.Seq, s.Ack = d.near(s.Seq, e.limit, e.next-other.window-uint32(s.Len)), d.near(s.Ack, other.next-max(e.window, 66000))
	s.Flags = uint8(d.pick(int(s.Flags), 0x10, 0x10, 0x18, 0x11, 0x04, 0x14, 0x02, 0x12, 0x42, d.intn(256)))
	return s
}

// sensible returns the flags of a segment that a connection in that state waits for.
func (d *duel) sensible(s conntrack.State, from int) uint8 {
	switch {
	case s == conntrack.SynSent && from == 1, s == conntrack.SynSent2:
		return uint8(d.pick(0x12, 0x12, 0x12, 0x02))
	case s == conntrack.SynSent, s == conntrack.TimeWait, s == conntrack.Close:
		return uint8(d.pick(0x02, 0x10))
	}
	return uint8(d.pick(0x10, 0x10, 0x10, 0x18, 0x11))
}

// near returns one of the edges or a number a little beside it.
func (d *duel) near(edges ...uint32) uint32 {
	if d.intn(20) == 0 {
		return d.random32()
	}
	return edges[d.intn(len(edges))] + uint32(d.pick(0, 0, 0, 1, 2, -1, -2, 1448, -1448, 65160))
}

func (d *duel) random32() uint32 { return uint32(d.intn(1<<16))<<16 | uint32(d.intn(1<<16)) }

func (d *duel) options() []byte {
	switch d.intn(6) {
	case 0:
		return nil
	case 1:
		return []byte{2, 4, 5, 180, 4, 2, 1, 3, 3, byte(d.intn(16))} // MSS, SACK permitted, window scale
	case 2:
		return []byte{3, 3, byte(d.intn(256)), 0}
	case 3:
		return []byte{0, 3, 3, 7} // after the end
	case 4:
		return []byte{byte(d.intn(5)), byte(d.intn(6)), byte(d.intn(5)), byte(d.intn(5)), byte(d.intn(5))}
	}
	return []byte{1, 3, 3, byte(d.intn(8))}
}

func TestAgreesWithModel(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 0))
	d := newDuel(t, r.IntN)
	for range 1_000_000 {
		d.step()
	}
	d.checkAll()
	for _, reached := range []string{"syn-sent", "syn-recv", "established", "fin-wait", "close-wait", "last-ack",
		"time-wait", "close", "syn-sent2", "unreplied", "replied", "out of window", "restart"} {
		if d.seen[reached] < 100 {
			t.Errorf("the random walk saw %q only %d times", reached, d.seen[reached])
		}
	}
	t.Logf("%d flows, hits by state: %v", d.model.inserted, d.seen)
}

// FuzzAgreesWithModel: whatever the steps, the table is the model.
func FuzzAgreesWithModel(f *testing.F) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 0))
		b := make([]byte, 4000)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDuel(t, func(n int) int {
			var word [4]byte
			b = b[copy(word[:], b):]
			return int(binary.LittleEndian.Uint32(word[:]) % uint32(n))
		})
		for len(b) > 0 {
			d.step()
		}
		d.checkAll()
	})
}
