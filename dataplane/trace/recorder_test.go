package trace

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A source shows packets to a Recorder as a worker does.
type source struct {
	t      testing.TB
	r      *Recorder
	batch  *packet.Batch
	serial uint64
	worker int
}

func newSource(t testing.TB, c Config) *source {
	c.Workers = 1
	return &source{t: t, r: New(c), batch: packet.NewBatch(0)}
}

// frame puts bytes into the batch, as read.
func (s *source) frame(b []byte) *packet.Frame {
	s.batch.Reset()
	slot := s.batch.Slot(len(b))
	copy(slot[packet.Headroom:], b)
	return s.batch.Append(slot, packet.Headroom, packet.Headroom+len(b))
}

// read shows a packet as read; about is 0 for one that the engine did not make.
func (s *source) read(f *packet.Frame, about uint64) *dataplane.Sighting {
	s.serial++
	at := &dataplane.Sighting{Point: dataplane.AtRead, Worker: s.worker, Serial: s.serial, From: dataplane.Underlay, Frame: f, Time: time.Duration(s.serial)}
	if about != 0 {
		at.From, at.Made, at.About = dataplane.TAP, true, about
	}
	s.r.Observe(at)
	return at
}

// settle shows the packet's end.
func (s *source) settle(at *dataplane.Sighting, v packet.Verdict) {
	at.Verdict, at.Point = v, dataplane.AtSent
	if !v.Sent() {
		at.Point = dataplane.AtDrop
	}
	s.r.Observe(at)
}

func (s *source) take() (all []Record) {
	s.r.Take(func(r *Record) { all = append(all, *r) })
	return all
}

// TestFilter holds the filter against what the random packets are.
func TestFilter(t *testing.T) {
	r := newRand(t)
	for range 200 {
		b, h := randomPacket(t, r, VXLAN)
		other, _ := randomPacket(t, r, VXLAN)
		half := func(a netip.Addr) netip.Prefix { p, _ := a.Prefix(a.BitLen() / 2); return p }
		for i, f := range []Filter{{Proto: h.Proto}, {Src: half(h.Src)}, {Dst: half(h.Dst)}, {SrcPort: h.SrcPort}, {DstPort: h.DstPort}, {Peer: "b"}, {Drops: true}} {
			s := newSource(t, Config{Filter: f})
			at := s.read(s.frame(b), 0)
			at.Peer = &tables.Peer{Name: "b"}
			s.settle(at, packet.DropInnerSource)
			if len(s.take()) != 1 {
				t.Fatalf("filter %d %+v takes not %+v", i, f, h)
			}
			o := Decode(other, VXLAN)
			want := f.Drops || f.Proto == o.Proto || f.SrcPort == o.SrcPort && f.SrcPort > 0 || f.DstPort == o.DstPort && f.DstPort > 0 ||
				f.Src.IsValid() && f.Src.Contains(o.Src) || f.Dst.IsValid() && f.Dst.Contains(o.Dst)
			s.settle(s.read(s.frame(other), 0), packet.DropInnerSource)
			if got := len(s.take()) == 1; got != want {
				t.Fatalf("filter %d %+v: %t of %+v", i, f, got, o)
			}
			if f.Drops {
				s.settle(s.read(s.frame(b), 0), packet.Delivered)
				if len(s.take()) != 0 {
					t.Fatal("a packet that was delivered is no drop")
				}
			}
		}
	}
}

// TestRoom demands that every packet is kept or counted as missed, when nobody takes them, and when too many are under way.
func TestRoom(t *testing.T) {
	b, _ := randomPacket(t, newRand(t), VXLAN)
	s := newSource(t, Config{})
	for range 1000 {
		s.settle(s.read(s.frame(b), 0), packet.Delivered)
	}
	all := s.take()
	if len(all) != doneSlots || s.r.Missed() != 1000-doneSlots {
		t.Errorf("%d kept and %d missed of 1000", len(all), s.r.Missed())
	}
	for i, r := range all {
		if r.Serial != uint64(i+1) || r.Verdict != packet.Delivered || len(r.Steps()) != 2 {
			t.Fatalf("packet %d: %+v", i, r)
		}
	}
	f := s.frame(b)
	for range openSlots + 10 {
		s.read(f, 0)
	}
	if got := s.r.Missed(); got != 1000-doneSlots+10 {
		t.Errorf("%d missed after 10 more under way than there is room for", got)
	}
}

// TestCount demands as many packets as asked for, one of each sample, and what the engine makes about them on top.
func TestCount(t *testing.T) {
	b, h := randomPacket(t, newRand(t), VXLAN)
	s := newSource(t, Config{Count: 3, Sample: 4, Filter: Filter{Src: netip.PrefixFrom(h.Src, h.Src.BitLen())}})
	var made []uint64
	for range 100 {
		at := s.read(s.frame(b), 0)
		s.settle(at, packet.DropReject)
		about := at.Serial
		answer := s.read(s.frame(nil), about)
		s.settle(answer, packet.Delivered)
		made = append(made, about)
	}
	all := s.take()
	if len(all) != 6 || !s.r.Full() || s.r.Missed() != 0 {
		t.Fatalf("%d packets, full %t, %d missed", len(all), s.r.Full(), s.r.Missed())
	}
	for i := 0; i < 6; i += 2 {
		if all[i].Serial != made[2*i] || all[i+1].About != all[i].Serial || !all[i+1].Made {
			t.Errorf("packet %d: %+v, then %+v", i, all[i], all[i+1])
		}
	}
}

// TestRefusedPartly demands the verdict of the segments that a port did not take.
func TestRefusedPartly(t *testing.T) {
	b, _ := randomPacket(t, newRand(t), VXLAN)
	s := newSource(t, Config{})
	f := s.frame(b)
	at := s.read(f, 0)
	f.Sent, f.Refused, f.Segments = 1, 1, 2
	s.settle(at, packet.Encapsulated)
	s.settle(at, packet.DropUnderlaySend)
	if all := s.take(); len(all) != 1 || all[0].Verdict != packet.DropUnderlaySend || len(all[0].Steps()) != 3 || all[0].Segments != 2 {
		t.Errorf("%+v", all)
	}
}

// TestNoAllocations is the worker's side.
func TestNoAllocations(t *testing.T) {
	b, _ := randomPacket(t, newRand(t), VXLAN)
	s := newSource(t, Config{Filter: Filter{Peer: "b"}})
	peer := &tables.Peer{Name: "b"}
	at := &dataplane.Sighting{From: dataplane.Underlay, Frame: s.frame(b)}
	if n := testing.AllocsPerRun(1000, func() {
		s.serial++
		at.Serial, at.Point, at.Verdict, at.Peer = s.serial, dataplane.AtRead, 0, nil
		s.r.Observe(at)
		for _, p := range []dataplane.Point{dataplane.AtDecap, dataplane.AtFlow, dataplane.AtRoute, dataplane.AtEncap} {
			at.Point, at.Peer = p, peer
			s.r.Observe(at)
		}
		at.Point, at.Verdict = dataplane.AtSent, packet.Encapsulated
		s.r.Observe(at)
	}); n != 0 {
		t.Errorf("%v allocations for a packet", n)
	}
}

// TestConcurrent takes while a worker keeps, for the race detector.
func TestConcurrent(t *testing.T) {
	b, _ := randomPacket(t, newRand(t), VXLAN)
	s := newSource(t, Config{})
	done := make(chan bool)
	go func() {
		defer close(done)
		for range 20000 {
			s.settle(s.read(s.frame(b), 0), packet.Delivered)
		}
	}()
	kept, last := 0, uint64(0)
	take := func() {
		s.r.Take(func(r *Record) {
			if r.Serial <= last || len(r.Steps()) != 2 {
				t.Errorf("%+v after packet %d", r, last)
			}
			last = r.Serial
			kept++
		})
	}
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		take()
	}
	if kept+int(s.r.Missed()) != 20000 {
		t.Errorf("%d kept and %d missed of 20000", kept, s.r.Missed())
	}
}

func BenchmarkObserve(b *testing.B) {
	bytes, _ := randomPacket(b, newRand(b), VXLAN)
	s := newSource(b, Config{Filter: Filter{Drops: true}})
	f := s.frame(bytes)
	for b.Loop() {
		s.settle(s.read(f, 0), packet.Delivered)
	}
}
