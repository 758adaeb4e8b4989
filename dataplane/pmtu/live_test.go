package pmtu

import (
	"math/rand/v2"
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
		var sent, answers []time.Duration
		now, heard, want := time.Duration(rng.IntN(1000)), time.Duration(-1<<40), Unproven
		for range 60 {
			now += time.Duration(rng.IntN(40))
			const patience = 70
			switch rng.IntN(5) {
			case 0, 1:
				w.Sent(now)
				sent = append(sent, now)
			case 2:
				heard = now
			case 3:
				if rng.IntN(3) == 0 {
					w.Answered(now)
					answers, sent, want, heard = append(answers, now), nil, Up, now
				}
			}
			if len(answers) > 0 && len(sent) > 0 && now-sent[0] >= patience {
				if want = Silent; now-heard < patience {
					want = OneWay
				}
			}
			if got := w.Judge(now, heard, patience); got != want {
				t.Fatalf("at %d: %s, want %s: sent %v, answered %v, heard %d", now, got, want, sent, answers, heard)
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
