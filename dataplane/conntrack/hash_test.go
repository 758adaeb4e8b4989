package conntrack

import (
	"math"
	"net/netip"
	"testing"
)

// TestHash holds hashes of flows that differ as little as flows do, in a port or in some bits of an address, against what random numbers
// are: what is too even with one key is too uneven with another. Looked at are the bits that homes and the quota's cells are chosen by.
func TestHash(t *testing.T) {
	const keys, flows = 30, 1 << 14
	client4, server4 := netip.MustParseAddr("10.244.1.7"), netip.MustParseAddr("10.96.0.10")
	client6, server6 := netip.MustParseAddr("fd00:244:0:1::7"), netip.MustParseAddr("fd00:96::a")
	with := func(a netip.Addr, at int, i uint16) netip.Addr {
		b := a.AsSlice()
		b[at], b[at+1] = byte(i>>8), byte(i)
		a, _ = netip.AddrFromSlice(b)
		return a
	}
	for name, flow := range map[string]func(i uint16) Tuple{
		"v4 ports":        func(i uint16) Tuple { return Tuple{client4, server4, 32768 + i, 53, 17} },
		"v4 both ports":   func(i uint16) Tuple { return Tuple{client4, server4, 32768 + i%64, 8000 + i/64, 17} },
		"v4 sources":      func(i uint16) Tuple { return Tuple{with(client4, 2, i), server4, 4000, 53, 17} },
		"v4 subnets":      func(i uint16) Tuple { return Tuple{with(client4, 1, i), server4, 4000, 53, 17} },
		"v4 destinations": func(i uint16) Tuple { return Tuple{client4, with(server4, 2, i), 4000, 53, 17} },
		"v6 ports":        func(i uint16) Tuple { return Tuple{client6, server6, 32768 + i, 53, 17} },
		"v6 both ports":   func(i uint16) Tuple { return Tuple{client6, server6, 32768 + i%64, 8000 + i/64, 17} },
		"v6 sources":      func(i uint16) Tuple { return Tuple{with(client6, 14, i), server6, 4000, 53, 17} },
		"v6 subnets":      func(i uint16) Tuple { return Tuple{with(client6, 6, i), server6, 4000, 53, 17} },
		"v6 destinations": func(i uint16) Tuple { return Tuple{client6, with(server6, 14, i), 4000, 53, 17} },
	} {
		t.Run(name, func(t *testing.T) {
			for range keys {
				var homes, cells [1 << 10]int
				sources := map[uint64]bool{}
				table := tableOfKey(newHashKey())
				for i := range uint16(flows) {
					hash, source := hashes(table, flow(i))
					homes[hash>>54]++
					if !sources[source] {
						sources[source] = true
						cells[source%(1<<10)]++
					}
				}
				for what, counts := range map[string]*[1 << 10]int{"homes": &homes, "sources": &cells} {
					if d := deviation(counts[:]); math.Abs(d) > 6 {
						t.Errorf("%s with the hash key %#x: chi-squared is %.1f standard deviations from what is expected", what, table.key, d)
					}
				}
			}
		})
	}
}

// tableOfKey is a table without memory.
func tableOfKey(h hashKey) *Table {
	table := &Table{key: h}
	for _, a := range []*area{&table.v4, &table.v6} {
		a.slots, a.key, a.quota.most = 1, &table.key, 1
	}
	table.v4.size, table.v6.size = slotLen4, slotLen6
	return table
}

// hashes returns those of a flow and of its source.
func hashes(table *Table, tuple Tuple) (flow, source uint64) {
	var k key
	a := table.setKey(&k, &tuple)
	var ctrl uint64
	if k.swapped {
		ctrl = swapped
	}
	return k.hash, a.source(&k, ctrl)
}

// deviation is by how many standard deviations chi-squared is more than on average of so many random choices.
func deviation(counts []int) float64 {
	n := 0
	for _, c := range counts {
		n += c
	}
	if n < 2*len(counts) {
		return 0 // too few to tell
	}
	expected, squares := float64(n)/float64(len(counts)), 0.0
	for _, c := range counts {
		squares += (float64(c) - expected) * (float64(c) - expected)
	}
	free := float64(len(counts) - 1)
	return (squares/expected - free) / math.Sqrt(2*free)
}
