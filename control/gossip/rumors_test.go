package gossip

import (
	"math/rand/v2"
	"testing"

	"github.com/tulle-net/tulle/control/claim"
)

func rumorOf(n byte, length int) *claim.Record {
	r := &claim.Record{Raw: make([]byte, length)}
	r.ID[0], r.Raw[0] = n, n
	return r
}

// TestRumorsReachAll spreads a record of equal length from each of many nodes at once, and a newer one from each a round
// later, and demands that nearly every node hears the newest of every other: chance may pass one over, and the next
// push/pull brings it.
func TestRumorsReachAll(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	const nodes, fanout, limit = 30, 3, 1400
	told, heard := make([]rumors, nodes), make([]map[byte]byte, nodes)
	hear := func(at int, raw []byte) {
		if old, ok := heard[at][raw[0]]; !ok || old < raw[1] {
			heard[at][raw[0]] = raw[1]
			r := rumorOf(raw[0], len(raw))
			r.Raw = raw
			told[at].spread(r, nodes)
		}
	}
	for i := range nodes {
		heard[i] = map[byte]byte{}
	}
	for round := range 60 {
		for i := range nodes {
			if round < 2 {
				r := rumorOf(byte(i), 250)
				r.Raw[1] = byte(round + 1)
				hear(i, r.Raw)
			}
			for range fanout {
				to := (i + 1 + rng.IntN(nodes-1)) % nodes // not itself
				for _, raw := range told[i].take(3, limit) {
					hear(to, raw)
				}
			}
		}
	}
	missing := 0
	for i, h := range heard {
		for j := range nodes {
			if h[byte(j)] != 2 {
				missing++
			}
		}
		if len(told[i].of) != 0 {
			t.Errorf("node %d still spreads %d records", i, len(told[i].of))
		}
	}
	if missing > nodes*nodes/100 {
		t.Errorf("%d of %d did not hear the newest", missing, nodes*nodes)
	}
}

// TestRumorsFit demands that a packet's limit is kept and that nothing is sent more often than it should.
func TestRumorsFit(t *testing.T) {
	var r rumors
	for i := range byte(10) {
		r.spread(rumorOf(i, 100), 9)
	}
	sent := map[byte]int{}
	for messages := r.take(5, 350); len(messages) > 0; messages = r.take(5, 350) {
		if len(messages) > 3 {
			t.Fatalf("%d messages of 105 bytes in 350", len(messages))
		}
		for _, m := range messages {
			sent[m[0]]++
		}
	}
	for i := range byte(10) {
		if sent[i] != rumorMult {
			t.Errorf("record %d was sent %d times, want %d", i, sent[i], rumorMult)
		}
	}
	r.spread(rumorOf(1, 500), 9)
	if m := r.take(5, 350); m != nil {
		t.Errorf("a record that does not fit was sent: %d bytes", len(m[0]))
	}
}
