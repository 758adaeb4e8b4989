package packet_test

import (
	"testing"
	"unsafe"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Slots of random sizes lie one behind the other: aligned, apart, and inside the arena.
func TestSlotsDoNotOverlap(t *testing.T) {
	r := newRand(t)
	b := packet.NewBatch(1 << 18)
	for range 200 {
		b.Reset()
		origin := address(b.Slot(0))
		last := origin
		for {
			n := r.IntN(9000)
			slot := b.Slot(n)
			if slot == nil {
				break
			}
			claim := packet.Headroom + r.IntN(n+1)
			start := address(slot)
			if start < last || (start-origin)%64 != 0 || len(slot) < packet.Headroom+n || cap(slot) != len(slot) {
				t.Fatalf("slot of %d bytes: %d+%d (capacity %d), the one before ends at %d", n, start-origin, len(slot), cap(slot), last-origin)
			}
			last = start + uintptr(claim)
			if start+uintptr(len(slot)) > origin+1<<18 {
				t.Fatalf("slot %d+%d leaves the arena", start-origin, len(slot))
			}
			b.Claim(claim)
		}
		if last == origin {
			t.Fatal("no slot handed out")
		}
	}
}

func TestBatchOfOneSlot(t *testing.T) {
	b := packet.NewBatch(0)
	for range 3 {
		slot := b.Slot(packet.MaxFrame)
		if slot == nil {
			t.Fatal("an empty batch has no slot for the largest frame")
		}
		if again := b.Slot(packet.MaxFrame); address(again) != address(slot) {
			t.Fatal("a slot is free until it is claimed")
		}
		b.Claim(len(slot))
		if b.Slot(packet.MaxFrame) != nil {
			t.Fatal("a second slot in an arena for one")
		}
		b.Reset()
	}
}

func TestAppendResetsFrame(t *testing.T) {
	b := packet.NewBatch(0)
	f := appendFrame(b, plainTCP([]byte("x")).bytes(t))
	f.Parse()
	f.Sent, f.Refused, f.SentBytes, f.Truncated, f.SegmentHint, f.OuterTOS, f.VNet.GSOSize = 1, 2, 3, true, 4, 5, 6
	b.Reset()
	g := appendFrame(b, []byte{1, 2, 3})
	if g != f {
		t.Error("Reset does not reuse frames")
	}
	if len(b.Frames) != 1 || b.Frames[0] != g || g.Len() != 3 || g.Start() != packet.Headroom || g.Segments != 1 {
		t.Errorf("frames %v, frame %+v", b.Frames, g)
	}
	if g.EtherType != 0 || g.Payload != 0 || g.Src.IsValid() || g.Sent+g.Refused+g.SentBytes+g.SegmentHint != 0 || g.Truncated || g.OuterTOS != 0 || g.VNet != (packet.VNet{}) {
		t.Errorf("stale fields: %+v", g)
	}
}

// A frame keeps its place while others are added: growth must not move it.
func TestFramesStayPut(t *testing.T) {
	b := packet.NewBatch(1 << 20)
	var all []*packet.Frame
	for i := range 1000 {
		all = append(all, appendFrame(b, []byte{byte(i), byte(i >> 8)}))
	}
	for i, f := range all {
		if b.Frames[i] != f || f.Bytes()[0] != byte(i) || f.Bytes()[1] != byte(i>>8) {
			t.Fatalf("frame %d is %p with %x", i, b.Frames[i], b.Frames[i].Bytes())
		}
	}
}

func TestBatchAllocates(t *testing.T) {
	b, out := packet.NewBatch(1<<20), packet.Batch{}
	data := plainTCP(make([]byte, 100)).bytes(t)
	fill := func() {
		b.Reset()
		out.Reset()
		for range 1000 {
			f := appendFrame(b, data)
			if f.Parse() == packet.None {
				out.Add(f)
			}
		}
	}
	fill()
	if n := testing.AllocsPerRun(20, fill); n != 0 {
		t.Errorf("%v allocations for a batch of a size seen before", n)
	}
	if len(out.Frames) != 1000 {
		t.Errorf("%d frames", len(out.Frames))
	}
}

func TestPrependAndStrip(t *testing.T) {
	b := packet.NewBatch(0)
	f := load(b, []byte("frame"))
	if _, ok := f.Prepend(packet.Headroom + 1); ok {
		t.Error("Prepend beyond the headroom")
	}
	if _, ok := f.Prepend(-1); ok {
		t.Error("Prepend of a negative length")
	}
	header, ok := f.Prepend(packet.Headroom)
	if !ok || len(header) != packet.Headroom || f.Start() != 0 {
		t.Fatalf("Prepend of the whole headroom: %d bytes, %v", len(header), ok)
	}
	if f.Strip(-1) || f.Strip(f.Len()+1) {
		t.Error("Strip of an impossible length")
	}
	if !f.Strip(packet.Headroom) || string(f.Bytes()) != "frame" || !f.Strip(5) || f.Len() != 0 {
		t.Errorf("Strip leaves %q", f.Bytes())
	}
}
