package fragment_test

import (
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// stepLen bytes of fuzz input make one step: flags, pause, offset and length.
const stepLen = 6

// FuzzTracker drives the Tracker and the model with the same fragments: small and large
// tables, any places, any pauses.
func FuzzTracker(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 0))
	for range 20 {
		var seed []byte
		for _, p := range append(cut(r, false), cut(r, false)...) {
			seed = append(seed, encode(p, r)...)
		}
		f.Add(uint8(r.Uint32()), seed)
	}
	f.Fuzz(func(t *testing.T, size uint8, data []byte) {
		n := 1 + int(size%8)
		d := newPair(t, fragment.Limits{Datagrams: n, Held: 1 + int(size/8), Memory: 1, Wait: 3 * time.Second}, false)
		for ; len(data) >= stepLen; data = data[stepLen:] {
			d.step([stepLen]byte(data))
		}
	})
}

func encode(p part, r *rand.Rand) []byte {
	flags := byte(p.id) | p.host<<1&2
	if p.v6 {
		flags |= 4
	}
	if p.more {
		flags |= 8
	}
	step := []byte{flags | byte(r.Uint32())&0xf0, byte(r.Uint32())}
	step = binary.BigEndian.AppendUint16(step, uint16(p.offset/8))
	return binary.BigEndian.AppendUint16(step, uint16(p.length))
}

func (d *pair) step(b [stepLen]byte) {
	flags := b[0]
	p := part{id: uint32(flags & 1), host: flags >> 1 & 1, v6: flags&4 != 0, more: flags&8 != 0, proto: packet.ProtoUDP, detached: flags&16 != 0}
	p.offset = int(binary.BigEndian.Uint16(b[2:])) % 8192 * 8
	p.length = int(binary.BigEndian.Uint16(b[4:])) % 65000
	if pause := b[1]; pause >= 128 {
		d.now += time.Duration(pause-128) * time.Duration(pause-128) * 2 * time.Millisecond // up to 32 s
	}
	if flags&32 != 0 {
		d.recycle()
	}
	if flags&64 != 0 {
		d.expire()
	}
	if flags&128 != 0 {
		d.handOver()
	}
	d.judge(p, decisions[int(b[1])%len(decisions)])
}

// FuzzAdopt lets a Tracker adopt anything: it keeps its bounds, and goes on.
func FuzzAdopt(f *testing.F) {
	r := rand.New(rand.NewPCG(2, 0))
	for range 10 {
		d := newPair(f, fragment.Limits{Datagrams: 8, Held: 64, Memory: 1, Wait: 3 * time.Second}, false)
		for _, p := range append(cut(r, false), cut(r, true)...) {
			if r.IntN(3) > 0 {
				d.judge(p, decisions[r.IntN(len(decisions))])
			}
		}
		seed, err := json.Marshal(d.tracker.HandOver())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var h fragment.Handover
		if json.Unmarshal(text, &h) != nil {
			return
		}
		const most = 8
		tracker, now := fragment.New(fragment.Limits{Datagrams: 4, Held: most, Memory: 1, Wait: 3 * time.Second}), time.Minute
		if n := tracker.Adopt(h, now); n != tracker.Held() || n > min(most, len(h.Waiting)) {
			t.Fatalf("%d segments held of %d that waited", n, len(h.Waiting))
		}
		if at, ok := tracker.NextDeadline(); ok && (at < now || at > now+3*time.Second) {
			t.Fatalf("the next deadline is %v at %v", at, now)
		}
		again := tracker.HandOver()
		if len(again.Datagrams) > 4 {
			t.Fatalf("%d datagrams", len(again.Datagrams))
		}
		if n := tracker.Adopt(again, now); n != len(again.Waiting) {
			t.Fatalf("%d segments of %d adopted from one that is sound", n, len(again.Waiting))
		}
		b := packet.NewBatch(0)
		for _, d := range again.Datagrams {
			p := part{v6: d.Src.Is6(), id: d.ID, proto: max(d.Proto, packet.ProtoUDP), length: 16, more: true}
			first := p.frame(b, 1)
			first.Src, first.Dst, first.FragmentID = d.Src, d.Dst, d.ID
			if action, _ := tracker.Judge(first, now); action == fragment.Decide {
				tracker.Decided(packet.None)
			}
			b.Reset()
		}
		if lost := tracker.Expire(now + time.Hour); tracker.Held() != 0 {
			t.Fatalf("%d segments held for ever, %d given up", tracker.Held(), len(lost))
		}
	})
}
