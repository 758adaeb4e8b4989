package dataplane

import "testing"

// BenchmarkObserve is the way of a packet of a known flow to a peer, in batches of 64, with nobody looking and with somebody.
func BenchmarkObserve(b *testing.B) {
	for _, c := range []struct {
		name string
		see  Observer
	}{{"off", nil}, {"on", func(*Sighting) {}}} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b)
			for _, p := range r.ports {
				p.discard = true
			}
			if c.see != nil {
				defer r.engine.Observe(c.see)()
			}
			batch := make([]memFrame, 64)
			for i := range batch {
				batch[i] = memFrame{data: udpFrame(b, macA, gateA, "10.0.1.9", "10.0.2.9", 100)}
			}
			b.ReportAllocs()
			for i := 0; i < b.N; i += len(batch) {
				r.send(TAP, batch...)
			}
		})
	}
}
