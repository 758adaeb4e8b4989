package gossip

import (
	"bytes"
	"crypto/ed25519"
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-net/tulle/control/claim"
)

// asker is a live peer of a quiet store that can sign, and the store's ID as the peer knows it.
func asker(t *testing.T, s *Store) (key ed25519.PrivateKey, id, self claim.NodeID) {
	t.Helper()
	s.key = testKeys[3]
	self = claim.IDOf(s.key.Public().(ed25519.PublicKey))
	s.id = self
	s.machine = claim.NewMachine(self, s.pools, 1, claim.Memory{}, 0)
	s.claimer, s.known = &s.machine.Claimer, s.machine.Known
	s.self = &claim.Record{ID: self, Name: "self", Endpoint: s.endpoint}
	s.machine.Self, s.known[self] = s.self, s.self
	id = claim.IDOf(testKeys[0].Public().(ed25519.PublicKey))
	r := plainRecord(func(r *claim.Record) { r.Claims = nil })
	r.ID = id
	s.known[id] = r
	s.lives.joined(id, r.Epoch, 0)
	return testKeys[0], id, self
}

func TestWitnessAnswersByLetter(t *testing.T) {
	s := quietStore(t)
	key, id, self := asker(t, s)
	s.add(7, "10.244.7.0/24", time.Hour)
	ask := func(block string, attempt uint64) claim.Answer {
		t.Helper()
		q := claim.Request{By: id, Attempt: attempt, Seq: 1, Claim: claim.Claim{Block: netip.MustParsePrefix(block)}}
		(&delegate{s}).NotifyMsg(q.Seal(key))
		if len(s.outbox) != 1 || s.outbox[0].to != id {
			t.Fatalf("%+v, refused: %+v", s.outbox, s.refusals)
		}
		_, a, err := claim.OpenLetter(s.outbox[0].raw, id)
		if err != nil || a.From != self || a.Attempt != attempt {
			t.Fatalf("%+v, %v", a, err)
		}
		s.outbox = nil
		return *a
	}
	if a := ask("10.244.3.0/24", 1); a.Verdict != claim.Yes {
		t.Errorf("a free block: %+v", a)
	}
	if a := ask("10.244.6.0/23", 2); a.Verdict != claim.No || a.Holder.Block != netip.MustParsePrefix("10.244.7.0/24") || a.Of != (claim.NodeID{7}) {
		t.Errorf("half of it is n7's: %+v", a)
	}
}

func TestDamagedLettersAreRefused(t *testing.T) {
	s := quietStore(t)
	key, id, self := asker(t, s)
	q := claim.Request{By: id, Attempt: 1, Seq: 1, Claim: claim.Claim{Block: netip.MustParsePrefix("10.244.3.0/24")}}
	good := q.Seal(key)
	flipped := bytes.Clone(good)
	flipped[40] ^= 1
	bad := [][]byte{
		good[:len(good)-1], good[:1], flipped, append(bytes.Clone(good), bytes.Repeat([]byte{0}, 300)...),
		claim.Answer{Attempt: 1, Verdict: claim.Yes}.Seal(claim.NodeID{9}, key), // to another node
	}
	for i, raw := range bad {
		s.letter(raw)
		if got := s.refusals[refusedSignature].count; got != uint64(i+1) || len(s.outbox)+len(s.answers) > 0 {
			t.Fatalf("letter %d: %d refusals, %+v, %+v", i, got, s.outbox, s.answers)
		}
	}
	delete(s.known, id)
	if s.letter(good); len(s.outbox) > 0 {
		t.Error("an unknown node is answered")
	}
	if s.letter(claim.Answer{Attempt: 1, Verdict: claim.Yes}.Seal(self, key)); len(s.answers) != 1 {
		t.Error("an answer to this node is lost")
	}
}

func TestMemorySurvivesARestart(t *testing.T) {
	other := plainRecord(func(*claim.Record) {})
	if err := other.Sign(testKeys[0]); err != nil {
		t.Fatal(err)
	}
	m := claim.Memory{
		Fences: claim.Fences{netip.MustParsePrefix("10.244.3.0/24"): {Number: 4, Served: 90 * time.Second}},
		Gone:   map[claim.NodeID]time.Duration{{8}: time.Hour},
		Known:  []*claim.Record{other},
	}
	var d diskState
	d.remember(m)
	got := d.memory()
	if len(got.Fences) != 1 || got.Fences[netip.MustParsePrefix("10.244.3.0/24")] != m.Fences[netip.MustParsePrefix("10.244.3.0/24")] || got.Gone[claim.NodeID{8}] != time.Hour ||
		len(got.Known) != 1 || got.Known[0].ID != m.Known[0].ID {
		t.Errorf("%+v, want %+v", got, m)
	}
}

// Of another node's fences those of another network are left out.
func TestForeignFences(t *testing.T) {
	s := quietStore(t)
	ours := netip.MustParsePrefix("10.244.3.0/24")
	s.hearFences(claim.Fences{ours: {Number: 1}, netip.MustParsePrefix("10.9.3.0/24"): {Number: 1}})
	if len(s.machine.Fences) != 1 || s.machine.Fences[ours].Number != 1 {
		t.Errorf("%v", s.machine.Fences)
	}
}
