package tables_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// benchRoutes are n different prefixes of 24 bits, or 64 in IPv6, spread over the space, and an address in each, in another order.
func benchRoutes(n int, v6 bool) (routes []tables.Route, in []netip.Addr) {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	seen := make(map[netip.Prefix]bool, n)
	for len(routes) < n {
		addr, bits := benchAddr(random, v6)
		p := netip.PrefixFrom(addr, bits).Masked()
		if seen[p] {
			continue
		}
		seen[p] = true
		routes, in = append(routes, tables.Route{Prefix: p, Kind: tables.Local}), append(in, addr)
	}
	random.Shuffle(n, func(i, j int) { in[i], in[j] = in[j], in[i] })
	return routes, in
}

func benchAddr(random *rand.Rand, v6 bool) (addr netip.Addr, bits int) {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], random.Uint64())
	binary.BigEndian.PutUint64(b[8:], random.Uint64())
	if !v6 {
		return netip.AddrFrom4([4]byte(b[:4])), 24
	}
	b[0] = 0xfd // the other 56 bits of the prefix are enough to be different
	return netip.AddrFrom16(b), 64
}

// heap is how many bytes make keeps.
func heap[T any](make func() T) (T, uint64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	v := make()
	runtime.GC()
	runtime.ReadMemStats(&after)
	return v, after.HeapAlloc - min(before.HeapAlloc, after.HeapAlloc)
}

// BenchmarkFIB looks up addresses in random order, each in a route of its own.
func BenchmarkFIB(b *testing.B) {
	for _, n := range []int{1, 100, 10_000, 1_000_000} {
		for _, v6 := range []bool{false, true} {
			b.Run(fmt.Sprintf("routes=%d/%s", n, map[bool]string{false: "v4", true: "v6"}[v6]), func(b *testing.B) { benchFIB(b, n, v6) })
		}
	}
}

func benchFIB(b *testing.B, n int, v6 bool) {
	routes, in := benchRoutes(n, v6)
	set, bytes := heap(func() *tables.Set {
		set, err := tables.Compile(1, tables.Node{}, nil, routes)
		if err != nil {
			b.Fatal(err)
		}
		return set
	})
	runtime.KeepAlive(routes) // else they count against the set
	i := 0
	inBatches(b, func() {
		if set.Lookup(in[i]) == nil {
			b.Fatalf("no route to %s", in[i])
		}
		if i++; i == len(in) {
			i = 0
		}
	})
	b.ReportMetric(float64(bytes)/float64(n), "B/route")
}

// BenchmarkPeers is the two looks at a received packet's sources, outer and inner, and what publishing a change of the peers costs.
func BenchmarkPeers(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		peers, in := benchPeers(n)
		set, err := tables.Compile(1, tables.Node{}, peers, nil)
		if err != nil {
			b.Fatal(err)
		}
		i := 0
		b.Run(fmt.Sprintf("peers=%d/source-check", n), func(b *testing.B) {
			inBatches(b, func() {
				if set.Owner(in[i]) != set.PeerAt(peers[i].Endpoint.Addr()) {
					b.Fatalf("%s is not of %s", in[i], peers[i].Name)
				}
				if i++; i == n {
					i = 0
				}
			})
		})
		b.Run(fmt.Sprintf("peers=%d/compile", n), func(b *testing.B) {
			for range b.N {
				if _, err := tables.Compile(1, tables.Node{}, peers, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchPeers are peers with a subnet each, and a pod of each.
func benchPeers(n int) (peers []*tables.Peer, in []netip.Addr) {
	for i := range n {
		addr := func(a, last byte) netip.Addr { return netip.AddrFrom4([4]byte{a, byte(i >> 8), byte(i), last}) }
		peers = append(peers, &tables.Peer{Name: fmt.Sprint(i), Endpoint: netip.AddrPortFrom(addr(192, 1), 8472),
			Sources: []netip.Prefix{netip.PrefixFrom(addr(10, 0), 24)}})
		in = append(in, addr(10, 7))
	}
	return peers, in
}

// inBatches runs op and reports the median time of a batch of 1000 beside the mean: on a machine that does other work the mean
// tells of that.
func inBatches(b *testing.B, op func()) {
	const batch = 1000
	times := make([]float64, 0, b.N/batch+1)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N / batch {
		start := time.Now()
		for range batch {
			op()
		}
		times = append(times, float64(time.Since(start))/batch)
	}
	for range b.N % batch {
		op()
	}
	if len(times) > 0 {
		slices.Sort(times)
		b.ReportMetric(times[len(times)/2], "median-ns/op")
	}
}
