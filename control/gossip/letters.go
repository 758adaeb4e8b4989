package gossip

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/tulle-net/tulle/control/claim"
)

// maxOutbox bounds the letters that wait for the next turn: who asks more than once asks again.
const maxOutbox = 1024

// An outgoing letter is sealed and goes to a node's newest boot.
type outgoing struct {
	to  claim.NodeID
	raw []byte
}

// letter takes a letter that a node sent directly. A request is answered from what this node knows now.
func (s *Store) letter(raw []byte) {
	s.mu.Lock()
	self := s.id
	s.mu.Unlock()
	q, a, err := claim.OpenLetter(raw, self) // a signature takes too long for a lock
	if err != nil {
		s.refuse(refusedSignature, fmt.Sprintf("a letter sent here: %v", err))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.id != self: // another identity since: it was not for this one
		return
	case len(s.outbox) >= maxOutbox || len(s.answers) >= maxOutbox:
		return
	case a != nil:
		s.answers = append(s.answers, *a)
	case s.known[q.By] != nil: // others cannot be answered
		s.post(q.By, s.machine.Witness(*q, s.deadLocked(), s.now()).Seal(q.By, s.key))
	}
	s.dirty = true
	s.poke()
}

func (s *Store) post(to claim.NodeID, raw []byte) { s.outbox = append(s.outbox, outgoing{to, raw}) }

// deadLocked returns the known nodes that are not alive.
func (s *Store) deadLocked() map[claim.NodeID]bool {
	dead := map[claim.NodeID]bool{}
	for id, r := range s.known {
		if id != s.id && !s.lives.alive(r) {
			dead[id] = true
		}
	}
	return dead
}

// hearFences takes another node's fences as far as they are of this network.
func (s *Store) hearFences(f claim.Fences) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(f, func(block netip.Prefix, _ claim.Fence) bool { return !s.pools.Contain(block) })
	if s.machine.HearFences(f, s.now()) {
		s.dirty, s.unsaved = true, true
		s.poke()
	}
}

// decide lets the machine take its turn and sends its letters. It says whether the claim is to be confirmed.
func (s *Store) decide(situation claim.Situation) (confirm bool) {
	s.mu.Lock()
	for _, a := range s.answers {
		s.machine.Answered(a, situation.Now)
	}
	s.answers = nil
	confirm, letters := s.machine.Turn(situation)
	for _, l := range letters {
		if l.To == s.id {
			s.machine.Answered(s.machine.Witness(l.Request, situation.Dead, situation.Now), situation.Now)
			continue
		}
		s.post(l.To, l.Seal(s.key))
	}
	outbox := s.outbox
	s.outbox = nil
	names := map[claim.NodeID]string{}
	for _, o := range outbox {
		names[o.to] = s.known[o.to].Member()
	}
	s.mu.Unlock()
	s.deliver(outbox, names)
	return confirm
}

// deliver sends letters without waiting. Lost ones are sent again.
func (s *Store) deliver(outbox []outgoing, names map[claim.NodeID]string) {
	if len(outbox) == 0 {
		return
	}
	for _, m := range s.list.Members() {
		for o := range slices.Values(outbox) {
			if names[o.to] == m.Name {
				_ = s.list.SendBestEffort(m, o.raw)
			}
		}
	}
}
