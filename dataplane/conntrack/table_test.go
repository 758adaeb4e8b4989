package conntrack_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

// Up to the capacity everything fits, and beyond it nothing does once all flows are assured. One flow in 10^8 finds its probe sequence full and takes
// the room of another: then it is tried again.
func TestCapacity(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		table, packets := filled(t, 50_000, v6, 17)
		if table.Stats().Evicted > 0 {
			table, packets = filled(t, 50_000, v6, 17)
		}
		for _, p := range packets {
			p = reversed(p)
			if hit, ok := table.Lookup(&p, now); !ok || !hit.Reply {
				t.Fatalf("%+v: %+v, %v", p, hit, ok)
			}
		}
		for i := range uint32(1000) {
			p := numbered(50_000+i, v6, 17)
			if hit, result := table.Insert(&p, conntrack.NAT{}, now); result != conntrack.Full || hit.ID != 0 {
				t.Fatalf("insert beyond the capacity: %v, %+v", result, hit)
			}
		}
		if s := table.Stats(); s.Flows4+s.Flows6 != 50_000 || s.Full != 1000 || s.Evicted != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// A flood of first packets evicts itself, and no flow that was heard from both ends.
func TestFloodSparesAssured(t *testing.T) {
	table := newTable(t, conntrack.Config{Flows4: 2000})
	for i := range uint32(500) {
		p := numbered(i, false, 17)
		back := reversed(p)
		table.Insert(&p, conntrack.NAT{}, now)
		table.Lookup(&back, now)
	}
	for i := range uint32(200_000) {
		p := numbered(1<<20+i, false, 6)
		table.Insert(&p, conntrack.NAT{}, now)
		if s := table.Stats(); s.Flows4 > 2000 {
			t.Fatalf("%+v: more than the capacity", s)
		}
	}
	for i := range uint32(500) {
		p := numbered(i, false, 17)
		if _, ok := table.Find(p.Tuple, now); !ok {
			t.Errorf("flow %d was replied, and is gone", i)
		}
	}
	if s := table.Stats(); s.Evicted < 190_000 || s.Full > 1000 {
		t.Errorf("%+v: first packets should push each other out", s)
	}
}

// What closes makes room, as what was not answered does; what is established does not.
func TestEvictable(t *testing.T) {
	handshake := []string{"> S", "< SA", "> A"}
	for state, steps := range map[conntrack.State][]string{
		conntrack.SynSent: {"> S"}, conntrack.SynRecv: {"> S", "< SA"}, conntrack.Established: handshake,
		conntrack.FinWait: append(handshake[:3:3], "> FA"), conntrack.LastAck: append(handshake[:3:3], "> FA", "< FA"),
		conntrack.Close: append(handshake[:3:3], "> R"),
	} {
		c := newConversation(t, conntrack.Config{Flows4: 1})
		if got := c.play(steps...); got.State != state {
			t.Fatalf("%v: %v", steps, got.State)
		}
		evicted := false
		for i := range uint32(1000) { // most reach a probe sequence without the flow
			p := numbered(1000+i, false, 17)
			if _, result := c.table.Insert(&p, conntrack.NAT{}, c.now); result == conntrack.Inserted {
				evicted = true
				break
			}
		}
		if evicted == (state == conntrack.Established) {
			t.Errorf("%v: evicted %v", state, evicted)
		}
	}
}

// Sweep frees what has timed out, in steps, and nothing else.
func TestSweep(t *testing.T) {
	table, packets := filled(t, 1000, false, 17)
	for i := range packets[:300] {
		p := reversed(packets[i])
		table.Lookup(&p, now)
	}
	if n := table.Sweep(now+30*time.Second, 1<<20); n != 0 {
		t.Errorf("%d flows swept at their timeout, not after", n)
	}
	freed, most := 0, 0
	for range 2000 / 16 {
		n := table.Sweep(now+31*time.Second, 16)
		freed, most = freed+n, max(most, n)
	}
	if freed != 700 || most > 16 {
		t.Errorf("%d flows swept, %d in one step of 16 slots, want all 700", freed, most)
	}
	if s := table.Stats(); s.Flows4 != 300 || s.Expired != 700 {
		t.Errorf("%+v", s)
	}
	if n := table.Sweep(now+time.Hour, -1); n != 0 {
		t.Errorf("%d swept in -1 slots", n)
	}
	if n := table.Sweep(now+time.Hour, 2000); n != 300 {
		t.Errorf("%d flows swept in the end", n)
	}
}

// A flow is found until its timeout is over and not after, whether it is swept or not, and when it was last seen is noted once
// per second.
func TestTimeouts(t *testing.T) {
	seconds := map[uint8][2]int{17: {30, 120}, 1: {60, 60}, 58: {60, 60}, 132: {600, 600}}
	for proto, want := range seconds {
		for answered, timeout := range want {
			table := newTable(t, conntrack.Config{Flows4: 10})
			p := numbered(1, false, proto)
			table.Insert(&p, conntrack.NAT{}, now+900*time.Millisecond)
			for range answered {
				back := reversed(p)
				table.Lookup(&back, now+990*time.Millisecond)
			}
			last := now + time.Duration(timeout)*time.Second + 999*time.Millisecond
			if f, ok := table.Find(p.Tuple, last); !ok || f.Expires != now+time.Duration(timeout)*time.Second {
				t.Errorf("protocol %d, answered %d: gone before %v: %+v", proto, answered, last, f)
			}
			if _, ok := table.Lookup(&p, last+2*time.Millisecond); ok {
				t.Errorf("protocol %d, answered %d: still there after %v", proto, answered, last)
			}
			if _, result := table.Insert(&p, conntrack.NAT{}, last+2*time.Millisecond); result != conntrack.Inserted {
				t.Errorf("protocol %d: %v over one that has timed out", proto, result)
			}
			if s := table.Stats(); s.Expired != 1 || s.Flows4 != 1 {
				t.Errorf("%+v", s)
			}
		}
	}
}

// Tuples and NAT of no family or two are refused, and so is a family that has no room at all.
func TestRefused(t *testing.T) {
	table := newTable(t, conntrack.Config{Flows4: 10})
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, p := range []conntrack.Packet{
		{},
		{Tuple: conntrack.Tuple{Src: four, Proto: 17}},
		{Tuple: conntrack.Tuple{Src: four, Dst: six, Proto: 17}},
		{Tuple: conntrack.Tuple{Src: six, Dst: six, Proto: 17}},
		{Tuple: conntrack.Tuple{Src: four, Dst: netip.MustParseAddr("::ffff:192.0.2.1"), Proto: 17}},
	} {
		if _, ok := table.Lookup(&p, now); ok {
			t.Errorf("%+v is found", p)
		}
		if _, result := table.Insert(&p, conntrack.NAT{}, now); result != conntrack.Refused {
			t.Errorf("%+v: %v", p, result)
		}
		if _, ok := table.Find(p.Tuple, now); ok {
			t.Errorf("%+v is found", p)
		}
	}
	p := numbered(1, false, 17)
	for _, to := range []netip.Addr{six, {}, netip.IPv4Unspecified()} {
		if _, result := table.Insert(&p, conntrack.NAT{Src: netip.AddrPortFrom(to, 1)}, now); result != conntrack.Refused {
			t.Errorf("NAT to %v: %v", to, result)
		}
	}
	for _, id := range []conntrack.ID{0, 1, 1 << 31, 1<<32 | 5, 1<<64 - 1} {
		if table.Delete(id) {
			t.Errorf("ID %x, of nothing, was deleted", id)
		}
	}
	for _, c := range []conntrack.Config{{Flows4: -1}, {Flows6: -1}, {Flows4: 1 << 29}} {
		if table, err := conntrack.New(c); err == nil {
			table.Close()
			t.Errorf("%+v is accepted", c)
		}
	}
}

// Both directions of any tuple are one flow, and tuples that differ are not.
func TestCanonical(t *testing.T) {
	table := newTable(t, conntrack.Config{Flows4: 1000, Flows6: 1000})
	addr := rapid.Custom(func(t *rapid.T) []byte {
		return rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 127, 128, 255}), 16, 16).Draw(t, "addr")
	})
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{4, 16}).Draw(t, "bytes")
		var p conntrack.Packet
		p.Src, _ = netip.AddrFromSlice(addr.Draw(t, "src")[:n])
		p.Dst, _ = netip.AddrFromSlice(addr.Draw(t, "dst")[:n])
		p.SrcPort, p.DstPort = rapid.Uint16().Draw(t, "sport"), rapid.Uint16().Draw(t, "dport")
		p.Proto = rapid.SampledFrom([]uint8{0, 1, 17, 58, 132, 255}).Draw(t, "proto")
		hit, result := table.Insert(&p, conntrack.NAT{}, now)
		back := reversed(p)
		found, ok := table.Lookup(&back, now)
		if result != conntrack.Inserted || !ok || found.ID != hit.ID || found.Reply != (back.Tuple != p.Tuple) {
			t.Fatalf("%+v: %v %+v, its reply %v %+v", p, result, hit, ok, found)
		}
		other := p
		other.SrcPort, other.DstPort = p.DstPort, p.SrcPort
		if _, ok := table.Find(other.Tuple, now); ok && p.SrcPort != p.DstPort && p.Src != p.Dst {
			t.Fatalf("%+v is found as %+v", p, other)
		}
		table.Delete(hit.ID)
	})
}

// Nothing allocates per packet, on hits, misses, inserts, evictions and deletes.
func TestNoAllocations(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, proto := range []uint8{6, 17} {
			table, packets := filled(t, 1000, v6, proto)
			i := uint32(2000)
			allocs := testing.AllocsPerRun(2000, func() {
				back := reversed(packets[i%1000])
				back.TCP.Flags, back.TCP.Ack = conntrack.SYN|conntrack.ACK, back.TCP.Seq+1
				table.Lookup(&packets[i%1000], now+time.Duration(i)*time.Millisecond)
				table.Lookup(&back, now)
				p := numbered(i, v6, proto)
				hit, _ := table.Insert(&p, conntrack.NAT{}, now)
				table.Find(p.Tuple, now)
				table.Delete(hit.ID)
				table.Sweep(now, 10)
				i++
			})
			if allocs != 0 {
				t.Errorf("%s, protocol %d: %v allocations", family(v6), proto, allocs)
			}
		}
	}
}

// The memfd holds what another process needs to take it over, and nobody can cut it short under the table.
func TestFile(t *testing.T) {
	table := newTable(t, conntrack.Config{Flows4: 1000, Flows6: 500})
	info, err := table.File().Stat()
	if want := int64(4096 + 2000*64 + 1000*128); err != nil || info.Size() != want {
		t.Errorf("%d bytes, want %d: %v", info.Size(), want, err)
	}
	var header [48]byte
	if _, err := table.File().ReadAt(header[:], 0); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint64{0x74756c6c65637431, 2, 1000, 2000, 500, 1000} {
		if got := binary.NativeEndian.Uint64(header[8*i:]); got != want {
			t.Errorf("header word %d is %#x, want %#x", i, got, want)
		}
	}
	if err := unix.Ftruncate(int(table.File().Fd()), 0); err == nil {
		t.Error("the memfd can be truncated")
	}
}
