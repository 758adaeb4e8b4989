package dataplane

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// BenchmarkObserve is the way of a packet of a known flow to a peer, in batches of 64, with nobody looking and with somebody.
func BenchmarkObserve(b *testing.B) {
	for _, c := range []struct {
		name string
		see  Observer
	}{{"off", nil}, {"on", func(*Sighting) {}}} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b)
			r.engine.Publish(testTables(b)) // without ports of pods
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

// BenchmarkWays are the ways of packets of known flows, in batches of 64, without ports of pods in the tables and with two.
func BenchmarkWays(b *testing.B) {
	for _, c := range []struct {
		name  string
		from  Side
		frame memFrame
		pods  bool
	}{
		{"TAP to peer", TAP, outTo("10.0.2.9")(b), false},
		{"peer to TAP", Underlay, inFrom("10.0.2.9", "10.0.1.9")(b), false},
		{"TAP to peer, beside pods", TAP, outTo("10.0.2.9")(b), true},
		{"peer to TAP, beside pods", Underlay, inFrom("10.0.2.9", "10.0.1.9")(b), true},
		{"pod to peer", Pod, ofPod(pod1, "10.0.2.9")(b), true},
		{"peer to pod", Underlay, inFrom("10.0.2.9", pod1)(b), true},
		{"pod to pod", Pod, ofPod(pod1, pod2)(b), true},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b, func(c *Config) { c.Join = packet.Joining{} })
			if !c.pods {
				r.engine.Publish(testTables(b))
			}
			for _, p := range append(r.pods, r.ports[:]...) {
				p.discard = true
			}
			batch := make([]memFrame, 64)
			for i := range batch {
				batch[i] = c.frame
			}
			b.ReportAllocs()
			for i := 0; i < b.N; i += len(batch) {
				r.send(c.from, batch...)
			}
		})
	}
}

// BenchmarkFlows is the way of packets of many known flows to a peer, in batches of 64, in random order.
func BenchmarkFlows(b *testing.B) {
	for _, flows := range []int{64, 1 << 14, 1 << 20} {
		b.Run(strconv.Itoa(flows), func(b *testing.B) {
			r := newRig(b, withFlows(b, flows, flows))
			r.engine.Publish(testTables(b))
			for _, p := range r.ports {
				p.discard = true
			}
			frames := make([]memFrame, flows)
			for i := range frames {
				data := udpFrame(b, macA, gateA, "10.0.1.9", "10.0.2.9", 64)
				readdress(data, addr("10.0.2.9"))
				binary.BigEndian.PutUint16(data[34:], uint16(i))
				binary.BigEndian.PutUint16(data[36:], uint16(i>>16+1))
				frames[i] = memFrame{data: data}
			}
			for i := 0; i < len(frames); i += 64 {
				r.send(TAP, frames[i:min(i+64, len(frames))]...)
			}
			rand.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += 64 {
				at := i % len(frames)
				r.send(TAP, frames[at:min(at+64, len(frames))]...)
			}
		})
	}
}
