package conntrack_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
)

const now = 1000 * time.Second

// numbered returns the first packet of flow number i, all different.
func numbered(i uint32, v6 bool, proto uint8) conntrack.Packet {
	p := conntrack.Packet{Tuple: conntrack.Tuple{SrcPort: uint16(i), DstPort: 53, Proto: proto}}
	p.TCP = conntrack.Segment{Seq: i, Window: 64000, Flags: conntrack.SYN}
	if v6 {
		src := [16]byte{0: 0xfd, 7: 1}
		binary.BigEndian.PutUint32(src[12:], i>>8)
		p.Src, p.Dst = netip.AddrFrom16(src), netip.AddrFrom16([16]byte{0: 0xfd, 7: 2, 15: 9})
		return p
	}
	p.Src, p.Dst = netip.AddrFrom4([4]byte{10, byte(i >> 24), byte(i >> 16), byte(i >> 8)}), netip.AddrFrom4([4]byte{10, 200, 0, 9})
	return p
}

func family(v6 bool) string {
	if v6 {
		return "v6"
	}
	return "v4"
}

// filled returns a table at its capacity of flows, and a packet of each in random order.
func filled(tb testing.TB, flows int, v6 bool, proto uint8) (*conntrack.Table, []conntrack.Packet) {
	c := conntrack.Config{Flows4: flows}
	if v6 {
		c = conntrack.Config{Flows6: flows}
	}
	t := newTable(tb, c)
	packets := make([]conntrack.Packet, flows)
	for i := range packets {
		packets[i] = numbered(uint32(i), v6, proto)
		if _, result := t.Insert(&packets[i], conntrack.NAT{}, now); result != conntrack.Inserted {
			tb.Fatalf("flow %d of %d: %v", i, flows, result)
		}
	}
	rand.Shuffle(flows, func(i, j int) { packets[i], packets[j] = packets[j], packets[i] })
	return t, packets
}

func newTable(tb testing.TB, c conntrack.Config) *conntrack.Table {
	tb.Helper()
	t, err := conntrack.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	return t
}

// BenchmarkLookup looks flows up in random order, in a table at its capacity: UDP, so that nothing is stored.
func BenchmarkLookup(b *testing.B) {
	for _, flows := range []int{1, 1000, 100_000, 1_000_000} {
		for _, v6 := range []bool{false, true} {
			for _, hit := range []bool{true, false} {
				b.Run(fmt.Sprintf("flows=%d/%s/hit=%v", flows, family(v6), hit), func(b *testing.B) {
					benchLookup(b, flows, v6, hit)
				})
			}
		}
	}
}

func benchLookup(b *testing.B, flows int, v6, hit bool) {
	t, packets := filled(b, flows, v6, 17)
	if !hit {
		for i := range packets {
			packets[i].DstPort++
		}
	}
	size, err := t.File().Stat()
	if err != nil {
		b.Fatal(err)
	}
	i := 0
	measure(b, func() {
		if _, ok := t.Lookup(&packets[i], now); ok != hit {
			b.Fatalf("packet %d: %v", i, ok)
		}
		if i++; i == len(packets) {
			i = 0
		}
	})
	b.ReportMetric(float64(size.Size())/float64(flows), "B/flow")
}

// measure runs op, and reports beside the mean per call the best batch of 1000 and the median one: on a machine that
// does other work, the mean says more about that.
func measure(b *testing.B, op func()) {
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
		b.ReportMetric(times[0], "best-ns/op")
		b.ReportMetric(times[len(times)/2], "median-ns/op")
	}
}

// BenchmarkTCP tracks a transfer: super-packets one way, an ACK for each the other way. Each stores one word.
func BenchmarkTCP(b *testing.B) {
	t := newTable(b, conntrack.Config{Flows4: 1000})
	data := numbered(1, false, 6)
	data.TCP.Flags, data.TCP.Len = conntrack.ACK, 1000
	ack := data
	ack.Src, ack.Dst, ack.SrcPort, ack.DstPort = data.Dst, data.Src, data.DstPort, data.SrcPort
	ack.TCP.Len = 0
	if _, result := t.Insert(&data, conntrack.NAT{}, now); result != conntrack.Inserted {
		b.Fatal(result)
	}
	data.TCP.Seq += 1000
	sent := false
	measure(b, func() {
		if sent = !sent; sent {
			t.Lookup(&data, now)
			data.TCP.Seq += 1000
			return
		}
		ack.TCP.Ack = data.TCP.Seq
		t.Lookup(&ack, now)
	})
}

func BenchmarkInsertDelete(b *testing.B) {
	t := newTable(b, conntrack.Config{Flows4: 1000})
	p := numbered(1, false, 17)
	measure(b, func() {
		p.SrcPort++
		hit, _ := t.Insert(&p, conntrack.NAT{}, now)
		t.Delete(hit.ID)
	})
}
