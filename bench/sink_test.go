package bench

import (
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// The judge itself, with datagrams fed by hand.
func TestSinkJudges(t *testing.T) {
	s := Stream{Flows: 2, Sizes: []int{30, 40}, Rate: 100, Duration: time.Second}
	if err := s.normalize(); err != nil {
		t.Fatal(err)
	}
	k := newSink(s, -1)
	k.trial = 7
	feed := func(flow uint32, number uint64, spoil func([]byte) []byte) {
		b := make([]byte, s.Sizes[number%2])
		stamp{7, flow, number, 0}.put(b)
		k.judge(spoil(b), 0)
	}
	right := func(b []byte) []byte { return b }
	feed(0, 0, right)
	feed(0, 3, right)
	feed(1, 1, right) // no reordering: the other flow is further
	feed(0, 2, right) // reordered
	feed(0, 2, right) // duplicate
	feed(0, 3, right) // duplicate
	for _, spoil := range []func([]byte) []byte{
		func(b []byte) []byte { b[3] = 8; return b }, // another trial's
		func(b []byte) []byte { b[7] = 2; return b }, // no such flow
		func(b []byte) []byte { b[8] = 1; return b }, // no such number
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return append(b, 0) },
		func(b []byte) []byte { return b[:23] },
		func(b []byte) []byte { return nil },
	} {
		feed(0, 4, spoil)
	}
	feed(1, 5, right)
	if want := (Counts{Received: 5, Duplicates: 2, Reordered: 1, Foreign: 7, Bytes: 30 + 40 + 40 + 30 + 40}); k.counts != want {
		t.Errorf("got %+v, want %+v", k.counts, want)
	}
}

// Random orders, losses and duplicates against counts by a map.
func TestSinkAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		s := Stream{Flows: 1 + random.IntN(5), Sizes: IMIX, Rate: 1000, Duration: time.Second}
		s.normalize()
		k := newSink(s, -1)
		var want Counts
		seen, highest := map[uint64]bool{}, map[uint32]uint64{}
		for range 2000 {
			number := random.Uint64N(1000)
			flow := uint32(number % uint64(s.Flows))
			b := make([]byte, IMIX[number%12])
			stamp{0, flow, number, 0}.put(b)
			k.judge(b, 0)
			if seen[number] {
				want.Duplicates++
				continue
			}
			seen[number] = true
			want.Received++
			want.Bytes += uint64(len(b))
			if number < highest[flow] {
				want.Reordered++
			}
			highest[flow] = max(highest[flow], number)
		}
		if k.counts != want {
			t.Fatalf("%+v, want %+v", k.counts, want)
		}
	}
}

// A stamp comes back as it was put.
func FuzzStamp(f *testing.F) {
	f.Add(uint32(1), uint32(2), uint64(3), int64(4))
	f.Fuzz(func(t *testing.T, trial, flow uint32, number uint64, intended int64) {
		b := make([]byte, streamHeader)
		want := stamp{trial, flow, number, time.Duration(intended)}
		want.put(b)
		if got := stampOf(b); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// Histogram quantiles against the sorted values, to their three digits.
func TestHistogram(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	h := newHistogram()
	var values []float64
	for range 20000 {
		v := int64(1e3 * (1 + random.ExpFloat64()*100))
		record(h, time.Duration(v))
		values = append(values, float64(v))
	}
	slices.Sort(values)
	l := summarize(h)
	for _, q := range []struct {
		part float64
		got  time.Duration
	}{{0.5, l.P50}, {0.9, l.P90}, {0.99, l.P99}, {0.999, l.P999}, {1, l.Max}} {
		want := values[int(q.part*float64(len(values)))-1]
		if ratio := float64(q.got) / want; ratio < 0.998 || ratio > 1.002 {
			t.Errorf("quantile %v: %v, want %v", q.part, q.got, time.Duration(want))
		}
	}
	if l.Count != 20000 || summarize(newHistogram()) != (Latency{}) || summarize(nil) != (Latency{}) {
		t.Errorf("%+v", l)
	}
	record(h, time.Hour)
	if got := summarize(h).Max; got < maxLatency || got > maxLatency*1001/1000 {
		t.Errorf("beyond the highest: %v", got)
	}
}

// Neither side of a stream allocates.
func TestStreamAllocates(t *testing.T) {
	u := openUDP(t, selfEnds(t, false), 3)
	s := Stream{Flows: 3, Sizes: IMIX, Rate: 1e9, Duration: time.Hour, Latency: true}
	s.normalize()
	s.Batch = 8
	short := s
	short.Duration = time.Millisecond
	tx, rx := newSender(s, u.flows), newSink(short, u.far.(*localUDP).fd)
	var halt atomic.Bool
	tx.halt = &halt
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	if n := testing.AllocsPerRun(100, func() {
		tx.elapsed = time.Since(tx.begin)
		tx.due(1 << 40)
		if err := tx.send(8); err != nil {
			t.Fatal(err)
		}
		n, errno := rx.batch.receive(rx.fd)
		if errno != 0 || n == 0 {
			t.Fatal(n, errno)
		}
		rx.take(n, time.Since(rx.begin))
	}); n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
	if rx.counts.Received < 800 || rx.counts.Foreign > 0 || slices.Min(rx.highest) < 700 {
		t.Errorf("%+v, highest of each flow %v", rx.counts, rx.highest)
	}
}

func TestStreamCheck(t *testing.T) {
	for _, s := range []Stream{
		{}, {Duration: time.Second, Sizes: []int{23}}, {Duration: time.Second, Sizes: []int{65508}}, {Duration: time.Second, Flows: 4097},
		{Duration: time.Second, Segments: 64}, {Duration: time.Second, Segments: 2, Sizes: []int{64, 65}}, {Duration: time.Second, Segments: 60, Sizes: []int{1400}},
		{Duration: time.Second, Echo: true, Flows: 2}, {Duration: time.Second, Rate: -1}, {Duration: time.Second, Batch: 2000},
	} {
		if _, err := openUDP(t, selfEnds(t, false), 1).Run(deadline(t, time.Second), s); err == nil {
			t.Errorf("%+v: no error", s)
		}
	}
	if _, err := openUDP(t, selfEnds(t, false), 1).Run(deadline(t, time.Second), Stream{Flows: 2, Duration: time.Second}); err == nil {
		t.Error("two flows over one socket, and no error")
	}
}

func TestCPUTime(t *testing.T) {
	got, err := parseCPU([]byte("cpu  10 1 20 1000 5 2 30 7 0 0\ncpu0 1 2 3\n"))
	ms := time.Millisecond
	if want := (CPUTime{User: 110 * ms, Sys: 200 * ms, Soft: 320 * ms, Steal: 70 * ms}); err != nil || got != want || got.Busy() != 630*ms {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8 9", "cpu 1 2 3 4 x 6 7 8 9 10"} {
		if _, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if _, err := readCPU(); err != nil {
		t.Error(err)
	}
}

// A sender that was held up sends at once what fell due meanwhile, and the delay that its datagrams show is from when they were to be
// sent, not from when they were.
func TestIntendedTime(t *testing.T) {
	u := openUDP(t, selfEnds(t, false), 1)
	s := Stream{Rate: 1000, Duration: 100 * time.Millisecond, Latency: true}
	s.normalize()
	var halt atomic.Bool
	var sent atomic.Uint64
	tx, rx := newSender(s, u.flows), newSink(s, u.far.(*localUDP).fd)
	tx.halt, rx.sent = &halt, &sent
	tx.begin = time.Now().Add(-time.Second)
	rx.begin = tx.begin
	if err := tx.run(); err != nil || tx.next != 100 {
		t.Fatalf("%d sent, %v", tx.next, err)
	}
	sent.Store(tx.next + 1)
	if err := rx.run(); err != nil || rx.counts.Received != 100 {
		t.Fatalf("%+v, %v", rx.counts, err)
	}
	// The last was due 99 ms after the begin, the first at it.
	l := summarize(rx.latency)
	if l.Max < time.Second || l.P50 < 900*time.Millisecond || rx.latency.Min() > int64(l.Max)-int64(98*time.Millisecond)+int64(l.Max)/500 {
		t.Errorf("delays %+v, least %v", l, time.Duration(rx.latency.Min()))
	}
}
