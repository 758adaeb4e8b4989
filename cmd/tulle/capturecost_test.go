package main

import (
	"slices"
	"testing"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

// BenchmarkCapture measures what captures at full rate cost a TCP stream between two nodes: rounds of every variant in turn, the
// median of the ratios to the round's stream without a capture. Run it on an idle machine:
//
//	go test -run '^$' -bench BenchmarkCapture -benchtime 5x ./cmd/tulle
func BenchmarkCapture(b *testing.B) {
	l := labUnderTest(b, lab.Config{Nodes: 2, Pods: 1})
	stream := streamTCP(b, between(l, 1, 2))
	rate := func() float64 {
		time.Sleep(300 * time.Millisecond)
		start, before := time.Now(), stream.received.Load()
		time.Sleep(2 * time.Second)
		return float64(stream.received.Load()-before) * 8 / 1e9 / time.Since(start).Seconds()
	}
	variants := map[string][]string{
		"wire": {"--stage", "wire"}, "wire+tap": {"--stage", "wire,tap"}, "headers": {"--stage", "wire,tap", "-s", "128"},
	}
	var off []float64
	ratios := map[string][]float64{}
	for b.Loop() {
		without := rate()
		off = append(off, without)
		for name, args := range variants {
			c := startCapture(b, l.Nodes()[0], append(args, "--max-size", "100GB", "-w", "/dev/null")...)
			ratios[name] = append(ratios[name], rate()/without)
			b.Log(name, c.stop())
		}
	}
	b.ReportMetric(median(off), "Gb/s-off")
	for name := range variants {
		b.ReportMetric(median(ratios[name]), name+"/off")
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
