package fragment_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// A pair drives a Tracker and the model side by side.
type pair struct {
	t       testing.TB
	tracker *fragment.Tracker
	model   model
	batch   *packet.Batch
	now     time.Duration
	mark    byte
	roomy   bool // no fragment may be refused for memory
	seen    map[fragment.Action]int
	dropped map[packet.Verdict]int
}

func newPair(t testing.TB, l fragment.Limits, roomy bool) *pair {
	return &pair{
		t: t, now: time.Second, tracker: fragment.New(l), model: model{limits: l}, batch: packet.NewBatch(1 << 20), roomy: roomy,
		seen: map[fragment.Action]int{}, dropped: map[packet.Verdict]int{},
	}
}

// judge gives both the part, and the verdict when they ask for it.
func (d *pair) judge(p part, decision packet.Verdict) {
	d.t.Helper()
	d.batch.Reset()
	d.mark++
	f := p.frame(d.batch, d.mark)
	action, v := d.tracker.Judge(f, d.now)
	full := v == packet.DropFragmentMemory
	inUse := len(d.model.waiting) + len(d.model.lost) + d.model.out
	wantAction, want := d.model.judge(p, d.mark, d.now, !full)
	if action != wantAction || v != want {
		d.t.Fatalf("%v: fragment %+v: action %d, verdict %v, want %d, %v\n%+v", d.now, p, action, v, wantAction, want, d.model.current)
	}
	if full && (d.roomy || inUse == 0) || action == fragment.Held && inUse >= d.model.limits.Held {
		d.t.Fatalf("%v: action %d, verdict %v with %d of %d frames in use", d.now, action, v, inUse, d.model.limits.Held)
	}
	d.seen[action]++
	d.dropped[v]++
	if action == fragment.Decide {
		released := d.tracker.Decided(decision)
		wanted := d.model.decide(decision)
		if len(released) != len(wanted) {
			d.t.Fatalf("%v: %d frames released, want %d", d.now, len(released), len(wanted))
		}
		for i, w := range wanted {
			d.same(released[i], w)
		}
	}
	d.check()
}

// same compares a frame that was held with the one that was read.
func (d *pair) same(f *packet.Frame, want *modelHeld) {
	d.t.Helper()
	b := packet.NewBatch(0)
	orig := want.part.frame(b, want.mark)
	body := want.bytes
	if want.part.detached {
		body = body[packet.EthernetLen:]
	} else {
		copy(body, orig.Bytes()[:packet.EthernetLen])
	}
	shift := f.Start() - orig.Start()
	switch {
	case !bytes.Equal(f.Bytes(), body), !(f.Detached && want.handedOver) && (f.SrcMAC() != orig.SrcMAC() || f.DstMAC() != orig.DstMAC()):
		d.t.Fatalf("held frame %x, want %x", f.Bytes(), body)
	case f.L2 != orig.L2+shift, f.L3 != orig.L3+shift, f.L4 != orig.L4+shift, f.Start() < packet.Headroom:
		d.t.Fatalf("held frame's offsets %d %d %d of %d, want %d %d %d of %d", f.L2, f.L3, f.L4, f.Start(), orig.L2, orig.L3, orig.L4, orig.Start())
	case f.Src != orig.Src, f.Dst != orig.Dst, f.FragmentID != orig.FragmentID, f.Detached != orig.Detached:
		d.t.Fatalf("held frame %+v, want %+v", f, orig)
	case want.handedOver: // and parsed again, so that what the bytes say differs from what frame made of them
	case f.FragmentOffset != orig.FragmentOffset, f.MoreFragments != orig.MoreFragments, f.Hash != orig.Hash, f.SegmentHint != orig.SegmentHint:
		d.t.Fatalf("held frame %+v, want %+v", f, orig)
	}
}

func (d *pair) expire() {
	d.t.Helper()
	lost, wanted := d.tracker.Expire(d.now), d.model.expire(d.now)
	if len(lost) != len(wanted) {
		d.t.Fatalf("%v: %d frames lost, want %d", d.now, len(lost), len(wanted))
	}
	for i, w := range wanted {
		if lost[i].Verdict != w.verdict {
			d.t.Fatalf("%v: frame %d lost as %v, want %v", d.now, i, lost[i].Verdict, w.verdict)
		}
		d.same(lost[i].Frame, w)
		d.dropped[w.verdict]++
	}
	d.check()
}

func (d *pair) recycle() {
	d.tracker.Recycle()
	d.model.out = 0
}

// handOver lets another Tracker go on, by way of JSON.
func (d *pair) handOver() {
	d.t.Helper()
	d.expire()
	d.recycle()
	text, err := json.Marshal(d.tracker.HandOver())
	if err != nil {
		d.t.Fatal(err)
	}
	if n := d.tracker.Held(); n != 0 {
		d.t.Fatalf("%v: %d segments held by the one that handed over", d.now, n)
	}
	var h fragment.Handover
	if err := json.Unmarshal(text, &h); err != nil {
		d.t.Fatal(err)
	}
	d.tracker = fragment.New(d.model.limits)
	d.tracker.Adopt(h, d.now)
	for _, w := range d.model.waiting {
		w.handedOver = true
	}
	d.seen[handedOver] += len(d.model.waiting)
	d.model.current = nil
	d.check()
}

// handedOver is no Action: fragments that waited in a Tracker and wait in another one now.
const handedOver fragment.Action = 100

func (d *pair) check() {
	d.t.Helper()
	if got, want := d.tracker.Held(), len(d.model.waiting)+len(d.model.lost); got != want {
		d.t.Fatalf("%v: %d segments held, want %d", d.now, got, want)
	}
	at, ok := d.tracker.NextDeadline()
	if wantAt, wantOK := d.model.deadline(); at != wantAt || ok != wantOK {
		d.t.Fatalf("%v: next deadline %v, %v, want %v, %v", d.now, at, ok, wantAt, wantOK)
	}
}

var decisions = []packet.Verdict{packet.None, packet.Delivered, packet.Encapsulated, packet.DropNoRoute, packet.DropReject, packet.EchoAnswered}

// cut splits a random datagram into parts.
func cut(r *rand.Rand, large bool) []part {
	p := part{v6: r.IntN(2) == 0, host: byte(r.IntN(3)), id: uint32(r.IntN(3)), proto: uint8(6 + 11*r.IntN(2)), detached: r.IntN(3) == 0}
	size := 1 + r.IntN(200)
	if large || r.IntN(4) == 0 {
		size = 1 + r.IntN(65600)
	}
	most := 1 + r.IntN(max(size/8, 1))
	var parts []part
	for p.offset < size {
		p.length = min(8*(1+r.IntN(most)), size-p.offset, 65400)
		p.more = p.end() < size
		if p.offset > 65528 {
			break
		}
		parts = append(parts, p)
		p.offset = p.end()
	}
	return parts
}

// spoil changes some parts and repeats others.
func spoil(r *rand.Rand, parts []part) []part {
	for range r.IntN(3) {
		p := parts[r.IntN(len(parts))]
		switch r.IntN(6) {
		case 0:
			p.more = !p.more
		case 1:
			p.length += r.IntN(17) - 8
		case 2:
			p.offset += 8 * (r.IntN(3) - 1)
		case 3:
			p.offset = 8 * r.IntN(8192)
		}
		p.offset, p.length = min(max(p.offset, 0), 65528), min(max(p.length, 0), 65400)
		parts = append(parts, p)
	}
	return parts
}

// Datagrams in any order, with duplicates, overlaps and pauses, some of them at once.
func (d *pair) random(r *rand.Rand, datagrams int, large bool) {
	for range datagrams {
		parts := cut(r, large)
		if r.IntN(2) == 0 {
			parts = append(parts, cut(r, large)...)
		}
		if r.IntN(2) == 0 {
			parts = spoil(r, parts)
		}
		if r.IntN(3) > 0 {
			r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		}
		for _, p := range parts {
			d.pause(r)
			d.judge(p, decisions[r.IntN(len(decisions))])
		}
	}
}

func (d *pair) pause(r *rand.Rand) {
	if r.IntN(4) == 0 {
		d.recycle()
	}
	if r.IntN(8) == 0 {
		d.now += time.Duration(r.Int64N(int64(time.Second)))
	}
	if r.IntN(400) == 0 {
		d.now += time.Duration(r.Int64N(int64(40 * time.Second)))
	}
	if r.IntN(8) == 0 {
		d.expire()
	}
	if r.IntN(100) == 0 {
		d.handOver()
	}
}

func TestAgainstModel(t *testing.T) {
	r := newRand(t)
	for _, c := range []struct {
		name   string
		limits fragment.Limits
		roomy  bool
	}{
		{"roomy", fragment.Limits{Datagrams: 100, Held: 1 << 14, Memory: 64 << 20, Wait: 3 * time.Second}, true},
		{"few datagrams", fragment.Limits{Datagrams: 3, Held: 1 << 14, Memory: 64 << 20, Wait: 3 * time.Second}, true},
		{"few held", fragment.Limits{Datagrams: 100, Held: 5, Memory: 1 << 20, Wait: 3 * time.Second}, false},
		{"little memory", fragment.Limits{Datagrams: 100, Held: 1 << 14, Memory: 1, Wait: 20 * time.Second}, false},
		{"one", fragment.Limits{Datagrams: 1, Held: 1, Memory: 1, Wait: time.Second}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newPair(t, c.limits, c.roomy)
			if c.name == "little memory" {
				for id := range uint32(200) { // 2 KiB each, of 128
					d.judge(part{id: 100 + id, proto: packet.ProtoUDP, offset: 8, length: 1480, more: true}, packet.None)
				}
				d.random(r, 200, true)
			}
			d.random(r, 700, false)
			t.Logf("actions %v, verdicts %v", d.seen, d.dropped)
			for _, a := range []fragment.Action{fragment.Decide, fragment.Pass, fragment.Drop, fragment.Held, handedOver} {
				if d.seen[a] == 0 {
					t.Errorf("action %d never came up", a)
				}
			}
			for _, v := range []packet.Verdict{packet.DropIPHeader, packet.DropFragmentOverlap, packet.DropFragmentOrphan, packet.DropNoRoute} {
				if d.dropped[v] == 0 {
					t.Errorf("%v never came up", v)
				}
			}
			if (d.dropped[packet.DropFragmentMemory] == 0) != (c.name == "roomy") {
				t.Errorf("%d of %v", d.dropped[packet.DropFragmentMemory], packet.DropFragmentMemory)
			}
		})
	}
}
