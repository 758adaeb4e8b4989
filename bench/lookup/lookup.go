// Package lookup measures what the engine's tables cost by themselves, in this process: the FIB's and conntrack's lookups and the
// memory of a flow. Nothing else is between the clock and the table, so there is no path and no generator.
package lookup

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// Cost is one figure of a table.
type Cost struct {
	Name  string // such as fib/1000000-routes/256-used/v4
	Value float64
	Unit  string // ns/op or B/flow
}

const (
	// Cached is the number of flows that stay in the CPU's cache: 32 KiB of IPv4 entries; and of destinations.
	Cached = 256
	batch  = 1000
	// batches of lookups of which the median counts: on a machine that does other work the mean tells of that.
	batches = 2000
	start   = 1000 * time.Second
)

// Measure fills tables with entries and looks them up in random order, for each family: all of them, and a few again and again. It takes some hundred bytes of memory for each
// entry, and gives them back.
func Measure(entries int) (costs []Cost, err error) {
	defer debug.FreeOSMemory()
	costs = append(costs, Cost{"memory/load", load(entries), "ns/op"})
	for _, v6 := range []bool{false, true} {
		of := family(v6)
		fib, err := FIB(entries, v6)
		if err != nil {
			return nil, err
		}
		for _, used := range slices.Compact([]int{min(Cached, entries), entries}) {
			ns, err := fib(used)
			if err != nil {
				return nil, err
			}
			costs = append(costs, Cost{fmt.Sprintf("fib/%d-routes/%d-used/%s", entries, used, of), ns, "ns/op"})
		}
		for _, flows := range slices.Compact([]int{min(Cached, entries), entries}) {
			ns, bytes, err := Conntrack(flows, v6)
			if err != nil {
				return nil, err
			}
			costs = append(costs, Cost{fmt.Sprintf("conntrack/%d-flows/%s", flows, of), ns, "ns/op"})
			if flows == entries {
				costs = append(costs, Cost{"conntrack/memory/" + of, bytes, "B/flow"})
			}
		}
	}
	return costs, nil
}

func family(v6 bool) string {
	if v6 {
		return "v6"
	}
	return "v4"
}

// FIB makes one of so many routes, prefixes of 24 bits, or 64 in IPv6. What it returns measures a lookup, ns, by as many destinations, each
// of another route.
func FIB(routes int, v6 bool) (lookup func(used int) (float64, error), err error) {
	random := rand.New(rand.NewPCG(1, uint64(routes)))
	have := make(map[netip.Prefix]bool, routes)
	in, all := make([]netip.Addr, 0, routes), make([]tables.Route, 0, routes)
	for len(all) < routes {
		addr, bits := anywhere(random, v6)
		p := netip.PrefixFrom(addr, bits).Masked()
		if !have[p] {
			have[p] = true
			all, in = append(all, tables.Route{Prefix: p, Kind: tables.Local}), append(in, addr)
		}
	}
	set, err := tables.Compile(1, tables.Node{}, nil, all)
	if err != nil {
		return nil, fmt.Errorf("FIB of %d routes: %w", routes, err)
	}
	random.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
	return func(used int) (float64, error) {
		missed, at := 0, 0
		large := used > atOnce && set.Large()
		ns := median(func() {
			if large && at%atOnce == 0 {
				set.Touch(nil, in[at:min(at+atOnce, used)])
			}
			if set.Lookup(in[at]) == nil {
				missed++
			}
			if at++; at == used {
				at = 0
			}
		})
		if missed > 0 {
			return 0, fmt.Errorf("FIB of %d routes: %d lookups found none", routes, missed)
		}
		return ns, nil
	}, nil
}

func anywhere(random *rand.Rand, v6 bool) (addr netip.Addr, bits int) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], random.Uint64())
	binary.BigEndian.PutUint64(b[8:], random.Uint64())
	if !v6 {
		return netip.AddrFrom4([4]byte(b[:4])), 24
	}
	b[0] = 0xfd // the other 56 bits of the prefix are enough to be different
	return netip.AddrFrom16(b), 64
}

// atOnce is how many packets an engine under load has at hand. It touches their flows before it looks them up, if the table is large.
const atOnce = 64

// Conntrack is the time of a lookup that finds its flow, ns, as the engine looks flows up, in a table full of them, and the table's memory
// for each.
func Conntrack(flows int, v6 bool) (ns, bytes float64, err error) {
	c := conntrack.Config{Flows4: flows}
	if v6 {
		c = conntrack.Config{Flows6: flows}
	}
	t, err := conntrack.New(c)
	if err != nil {
		return 0, 0, err
	}
	defer t.Close()
	packets := make([]conntrack.Packet, flows)
	for i := range packets {
		packets[i] = first(uint32(i), v6)
		if _, result := t.Insert(&packets[i], conntrack.NAT{}, start); result != conntrack.Inserted {
			return 0, 0, fmt.Errorf("flow %d of %d: %v", i, flows, result)
		}
	}
	rand.Shuffle(flows, func(i, j int) { packets[i], packets[j] = packets[j], packets[i] })
	missed := 0
	large, tuples := t.Large(), make([]conntrack.Tuple, min(atOnce, flows))
	at := 0
	ns = median(func() {
		if large && at%atOnce == 0 {
			for i := range tuples {
				tuples[i] = packets[min(at+i, flows-1)].Tuple
			}
			t.Touch(tuples)
		}
		if _, ok := t.Lookup(&packets[at], start); !ok {
			missed++
		}
		if at++; at == flows {
			at = 0
		}
	})
	// One flow in 10^8 finds no room in its reach and takes another's, which is missed each time that it is looked up.
	if times := batch*batches/flows + 1; missed > times*int(t.Stats().Evicted) {
		return 0, 0, fmt.Errorf("conntrack of %d flows: %d lookups found none", flows, missed)
	}
	bytes, err = memory(t, flows, v6)
	return ns, bytes, err
}

// memory is what so many flows more would take, each: a table's page of its own is none of theirs.
func memory(t *conntrack.Table, flows int, v6 bool) (float64, error) {
	c := conntrack.Config{Flows4: 2 * flows}
	if v6 {
		c = conntrack.Config{Flows6: 2 * flows}
	}
	larger, err := conntrack.New(c)
	if err != nil {
		return 0, err
	}
	defer larger.Close()
	var sizes [2]int64
	for i, t := range []*conntrack.Table{t, larger} {
		info, err := t.File().Stat()
		if err != nil {
			return 0, err
		}
		sizes[i] = info.Size()
	}
	return float64(sizes[1]-sizes[0]) / float64(flows), nil
}

// first is the first packet of UDP flow number i, all different.
func first(i uint32, v6 bool) conntrack.Packet {
	p := conntrack.Packet{Tuple: conntrack.Tuple{SrcPort: uint16(i), DstPort: 53, Proto: 17}}
	if v6 {
		src := [16]byte{0: 0xfd, 7: 1}
		binary.BigEndian.PutUint32(src[12:], i>>8)
		p.Src, p.Dst = netip.AddrFrom16(src), netip.AddrFrom16([16]byte{0: 0xfd, 7: 2, 15: 9})
		return p
	}
	p.Src, p.Dst = netip.AddrFrom4([4]byte{10, byte(i >> 24), byte(i >> 16), byte(i >> 8)}), netip.AddrFrom4([4]byte{10, 200, 0, 9})
	return p
}

// load is the time of one load, ns, that depends on the one before, from as much memory as so many IPv4 flows take: no lookup in a table of
// that size that begins where the last one ended can be faster.
func load(entries int) float64 {
	const line = 64 / 4 // words
	lines := max(128/64*entries, 2)
	words := make([]uint32, lines*line)
	order := rand.Perm(lines)
	for i, from := range order {
		words[from*line] = uint32(order[(i+1)%lines] * line)
	}
	at := uint32(0)
	ns := median(func() { at = words[at] })
	runtime.KeepAlive(at)
	return ns
}

// median is the time of one op, ns, over batches.
func median(op func()) float64 {
	times := make([]float64, batches)
	for b := range times {
		begin := time.Now()
		for range batch {
			op()
		}
		times[b] = float64(time.Since(begin)) / batch
	}
	slices.Sort(times)
	return times[len(times)/2]
}
