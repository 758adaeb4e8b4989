package bench

import (
	"testing"
	"time"
)

func TestTCP(t *testing.T) {
	for _, flows := range []int{0, 1, 20} {
		for _, six := range []bool{false, true} {
			r, err := TCP{Flows: flows, WarmUp: 10 * time.Millisecond, Duration: 100 * time.Millisecond}.Run(deadline(t, 10*time.Second), selfEnds(t, six))
			if err != nil || r.Bytes < 1<<20 || r.Elapsed < 100*time.Millisecond {
				t.Errorf("%d flows: %+v, %v", flows, r, err)
			}
			t.Logf("%d flows: %.1f Gb/s", flows, r.Gbps())
		}
	}
}

func TestTransact(t *testing.T) {
	for _, tr := range []Transact{{}, {Size: 5000}, {Connect: true}, {Connect: true, Size: 1 << 16}} {
		for _, six := range []bool{false, true} {
			tr.Duration = 100 * time.Millisecond
			r, err := tr.Run(deadline(t, 10*time.Second), selfEnds(t, six))
			if err != nil || r.Count < 10 || r.Latency.Count != int64(r.Count) || r.Latency.P50 <= 0 {
				t.Errorf("%+v: %+v, %v", tr, r, err)
			}
			t.Logf("%+v: %.0f/s, %v", tr, r.Rate(), r.Latency.P50)
		}
	}
}
