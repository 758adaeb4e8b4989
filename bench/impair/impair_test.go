package impair

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// frame is an IPv4 frame by its type, numbered twice, so that one bit makes no other frame of it.
func frame(number uint32) []byte {
	f := make([]byte, 64)
	f[12] = 0x08
	binary.BigEndian.PutUint32(f[ethernetHeader:], number)
	binary.BigEndian.PutUint32(f[ethernetHeader+4:], number)
	return f
}

// drain takes all that is due until the line is empty, each at the moment that wait says.
func drain(l *line, now time.Time) (frames [][]byte, at []time.Time) {
	for {
		w := l.wait(now)
		if w < 0 {
			return frames, at
		}
		now = now.Add(w)
		for f := l.next(now); f != nil; f = l.next(now) {
			l.sent(true)
			frames, at = append(frames, f), append(at, now)
		}
	}
}

// near says that a count of trials is within six standard deviations of what its probability lets expect.
func near(count uint64, trials int, probability float64) bool {
	n := float64(trials)
	return math.Abs(float64(count)-n*probability) <= 6*math.Sqrt(n*probability*(1-probability))
}

func TestRates(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const n = 200000
	spec := Spec{Seed: seed, Loss: 0.01, Duplicate: 0.05, Reorder: 0.25, Corrupt: 0.02}
	l, now := newLine(spec), time.Now()
	var got [][]byte
	for i := range uint32(n) {
		now = now.Add(10 * time.Microsecond)
		l.admit(frame(i), now)
		for f := l.next(now); f != nil; f = l.next(now) {
			l.sent(true)
			got = append(got, f)
		}
	}
	rest, _ := drain(l, now)
	got = append(got, rest...)
	s := l.stats
	kept := n - int(s.Lost)
	if !near(s.Lost, n, spec.Loss) || !near(s.Duplicated, kept, spec.Duplicate) || !near(s.Reordered, kept, spec.Reorder) ||
		!near(s.Corrupted, kept+int(s.Duplicated), spec.Corrupt) {
		t.Errorf("rates of %+v: %+v", spec, s)
	}
	if s.In != n || s.Out != uint64(len(got)) || s.In+s.Duplicated != s.Out+s.Lost || s.Held+s.Refused+s.Missed != 0 {
		t.Errorf("%+v does not add up for %d frames out", s, len(got))
	}
	// What each frame shows by itself.
	var changed, late uint64
	seen, highest := map[uint32]int{}, uint32(0)
	for _, f := range got {
		number := binary.BigEndian.Uint32(f[ethernetHeader:])
		if !bytes.Equal(f, frame(number)) {
			changed++
			continue
		}
		seen[number]++
		if seen[number] == 1 && number < highest {
			late++
		}
		highest = max(highest, number)
	}
	if changed != s.Corrupted {
		t.Errorf("%d changed frames seen, %d corrupted", changed, s.Corrupted)
	}
	// Overtaken are all that were held back but those that were corrupted, and the last ones.
	if float64(late) < 0.9*float64(s.Reordered) || late > s.Reordered {
		t.Errorf("%d frames overtaken, %d held back", late, s.Reordered)
	}
}

// Delay and jitter alone keep the order and the bounds.
func TestDelay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := Spec{Seed: rapid.Uint64().Draw(t, "seed"),
			Delay:  time.Duration(rapid.IntRange(0, 1e8).Draw(t, "delay")),
			Jitter: time.Duration(rapid.IntRange(0, 1e8).Draw(t, "jitter"))}
		l, start := newLine(spec), time.Unix(0, 0)
		const n = 50
		for i := range uint32(n) {
			l.admit(frame(i), start.Add(time.Duration(i)*time.Millisecond))
		}
		got, at := drain(l, start)
		if len(got) != n {
			t.Fatalf("%d of %d frames came out", len(got), n)
		}
		for i, f := range got {
			if !bytes.Equal(f, frame(uint32(i))) {
				t.Fatalf("frame %d is % x", i, f)
			}
			took := at[i].Sub(start.Add(time.Duration(i) * time.Millisecond))
			// A frame behind a late one waits for it: at most one whole jitter.
			if took < spec.Delay || took > spec.Delay+spec.Jitter {
				t.Fatalf("frame %d took %v with %+v", i, took, spec)
			}
		}
	})
}

// Whatever the spec: what comes out is what went in, with at most one bit changed behind the header, and the counts say so.
func TestNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.Float64Range(0, 1)
		spec := Spec{Seed: rapid.Uint64().Draw(t, "seed"), Loss: p.Draw(t, "loss"), Duplicate: p.Draw(t, "duplicate"),
			Reorder: p.Draw(t, "reorder"), Corrupt: p.Draw(t, "corrupt"), Jitter: time.Millisecond}
		l, now := newLine(spec), time.Now()
		in := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 80), 0, 40).Draw(t, "frames")
		for i, f := range in {
			if len(f) > 13 && i%2 == 0 {
				f[12], f[13] = 0x86, 0xdd
			}
			l.admit(f, now)
		}
		got, _ := drain(l, now)
		changed := uint64(0)
		for _, f := range got {
			nearest := math.MaxInt
			for _, original := range in {
				if len(original) == len(f) {
					nearest = min(nearest, distance(original, f))
				}
			}
			if nearest > 1 {
				t.Fatalf("% x came from nowhere", f)
			}
			changed += uint64(nearest)
		}
		s := l.stats
		adds := s.In == uint64(len(in)) && s.Out == uint64(len(got)) && s.In+s.Duplicated == s.Out+s.Lost
		if !adds || changed > s.Corrupted {
			t.Fatalf("%+v for %d in, %d out, %d changed", s, len(in), len(got), changed)
		}
	})
}

// distance counts the bits that differ; a change of the Ethernet header counts as many.
func distance(a, b []byte) (n int) {
	for i := range a {
		d := bits.OnesCount8(a[i] ^ b[i])
		if d > 0 && (i < ethernetHeader || !isIP(a)) {
			d += 1000
		}
		n += d
	}
	return n
}

// The same seed decides the same.
func TestSeed(t *testing.T) {
	run := func(seed uint64) (out []byte) {
		l, now := newLine(Spec{Seed: seed, Loss: 0.3, Duplicate: 0.3, Reorder: 0.3, Corrupt: 0.3}), time.Unix(0, 0)
		for i := range uint32(100) {
			l.admit(frame(i), now.Add(time.Duration(i)*time.Millisecond))
		}
		frames, _ := drain(l, now)
		return bytes.Join(frames, nil)
	}
	if !bytes.Equal(run(1), run(1)) {
		t.Error("two runs of one seed differ")
	}
	if bytes.Equal(run(1), run(2)) {
		t.Error("two seeds do not")
	}
}

func TestCheck(t *testing.T) {
	for _, s := range []Spec{{Loss: -0.1}, {Duplicate: 1.1}, {Reorder: math.NaN()}, {Corrupt: 2}, {Delay: -1}, {Jitter: -1}, {Hold: -1}} {
		if s.Check() == nil {
			t.Errorf("%+v: no error", s)
		}
	}
	if err := (Spec{Loss: 1, Duplicate: 1, Reorder: 1, Corrupt: 1}).Check(); err != nil {
		t.Error(err)
	}
}

// A line that holds all it may refuses more, and says so.
func TestFull(t *testing.T) {
	l, now := newLine(Spec{Delay: time.Hour}), time.Now()
	for i := range uint32(maxHeld + 3) {
		l.admit(frame(i), now)
	}
	if s := l.stats; s.Refused != 3 || s.Held != maxHeld {
		t.Errorf("%+v", s)
	}
}
