package pmtu

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestWatch holds random histories against a model that keeps all of them.
func TestWatch(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	seen := map[Liveness]int{}
	for range 2000 {
		var w Watch
		var sent []time.Duration
		answered := false
		now, heard, want := time.Duration(rng.IntN(1000)), time.Duration(-1<<40), Unproven
		for range 60 {
			now += time.Duration(rng.IntN(40)) // 0 too: a burst
			if rng.IntN(30) == 0 {
				now += 500 // this process stood still
			}
			const answers, quiet = 70, 150
			switch rng.IntN(5) {
			case 0, 1:
				w.Sent(now)
				sent = append(sent, now)
			case 2:
				heard = now
			case 3:
				if rng.IntN(3) == 0 {
					w.Answered(now)
					answered, sent, want, heard = true, nil, Up, now
				}
			}
			if answered && len(slices.Compact(slices.Clone(sent))) >= 3 && now-sent[0] >= answers {
				if ago := now - heard; ago < answers || want == OneWay && ago < quiet {
					want = OneWay
				} else {
					want = Silent
				}
			}
			if got := w.Judge(now, heard, Patience{Answers: answers, Quiet: quiet}); got != want {
				t.Fatalf("at %d: %s, want %s: sent %v, answered %t, heard %d", now, got, want, sent, answered, heard)
			}
			seen[want]++
		}
	}
	for _, s := range []Liveness{Unproven, Up, OneWay, Silent} {
		if seen[s] < 1000 {
			t.Errorf("%s was seen %d times", s, seen[s])
		}
	}
}
