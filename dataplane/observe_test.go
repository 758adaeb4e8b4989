package dataplane

import (
	"slices"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A step is what a test keeps of a Sighting.
type step struct {
	point   Point
	verdict packet.Verdict
	peer    string
	known   bool
	about   uint64
}

// watch returns the steps of each packet, by serial number, and ends with the test.
func (r *rig) watch() map[uint64][]step {
	seen := map[uint64][]step{}
	r.t.Cleanup(r.engine.Observe(func(s *Sighting) {
		one := step{point: s.Point, verdict: s.Verdict, about: s.About}
		if s.Peer != nil {
			one.peer = s.Peer.Name
		}
		if s.Flow.ID != 0 {
			one.known = s.Known
		}
		seen[s.Serial] = append(seen[s.Serial], one)
	}))
	return seen
}

// TestObserve demands every point of a packet's way, in order, under one serial number.
func TestObserve(t *testing.T) {
	read, drop := step{point: AtRead}, func(v packet.Verdict) step { return step{point: AtDrop, verdict: v} }
	made := func(about uint64) step { return step{point: AtRead, about: about} }
	sent := func(v packet.Verdict) step { return step{point: AtSent, verdict: v} }
	for _, c := range []struct {
		name  string
		side  Side
		frame memFrame
		twice bool
		want  map[uint64][]step
	}{
		{"a new flow", TAP, outTo("10.0.2.9")(t), false, map[uint64][]step{
			1: {read, {point: AtRoute}, {point: AtEncap, peer: "b"}, {point: AtFlow, peer: "b"}, sent(packet.Encapsulated)}}},
		{"a known flow", TAP, outTo("10.0.2.9")(t), true, map[uint64][]step{
			1: {read, {point: AtFlow, known: true}, {point: AtRoute, known: true}, {point: AtEncap, peer: "b", known: true}, sent(packet.Encapsulated)}}},
		{"from a peer", Underlay, fromB(t, "10.0.2.9", "10.0.1.9"), false, map[uint64][]step{
			1: {read, {point: AtDecap, peer: "b"}, {point: AtFlow, peer: "b"}, sent(packet.Delivered)}}},
		{"a drop and the engine's own packet about it", TAP, outTo("10.0.9.9")(t), false, map[uint64][]step{
			1: {read, {point: AtRoute}, drop(packet.DropReject)}, 2: {made(1), sent(packet.Delivered)}}},
		{"a drop at once", Underlay, edit(func(b []byte) { b[0] = 0 })(t), false, map[uint64][]step{
			1: {read, {point: AtDrop, verdict: packet.DropVXLANFlags, peer: "b"}}}},
		{"used up", TAP, memFrame{data: arpRequest(t, "10.0.1.0", "10.0.1.254")}, false, map[uint64][]step{
			1: {read, drop(packet.ARPAnswered)}, 2: {made(1), sent(packet.Delivered)}}},
		{"used up, and answered to a peer", Underlay, echoFromB("10.0.2.9", "10.0.1.254", false)(t), false, map[uint64][]step{
			1: {read, {point: AtDecap, peer: "b"}, {point: AtDrop, verdict: packet.EchoAnswered, peer: "b"}},
			2: {made(1), {point: AtEncap, peer: "b", about: 1}, sent(packet.Encapsulated)}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			if c.twice {
				r.send(c.side, c.frame)
			}
			seen := r.watch()
			r.send(c.side, c.frame)
			if len(seen) != len(c.want) {
				t.Errorf("%d packets seen, want %d", len(seen), len(c.want))
			}
			for serial, want := range c.want {
				if got := seen[serial]; !slices.Equal(got, want) {
					t.Errorf("packet %d: %v, want %v", serial, got, want)
				}
			}
		})
	}
}

// TestObserveEnds demands that nobody is called after the end, and that several observers do not mind each other.
func TestObserveEnds(t *testing.T) {
	r := newRig(t)
	var calls [2]int
	stop := [2]func(){}
	for i := range stop {
		stop[i] = r.engine.Observe(func(*Sighting) { calls[i]++ })
	}
	r.send(TAP, outTo("10.0.2.9")(t))
	stop[0]()
	stop[0]()
	first := calls
	r.send(TAP, outTo("10.0.2.9")(t))
	if first[0] == 0 || calls[0] != first[0] || calls[1] <= first[1] {
		t.Errorf("calls %v, then %v after the first one's end", first, calls)
	}
	stop[1]()
	if r.engine.observed.Load() != nil || r.engine.Observers() != 0 {
		t.Error("the list is not empty after the last one's end")
	}
}
