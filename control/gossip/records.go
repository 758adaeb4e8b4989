package gossip

import (
	"crypto/ed25519"
	"fmt"

	"github.com/tulle-net/tulle/control/claim"
)

// hear takes a record that came by gossip and passes it on if it is news.
func (s *Store) hear(raw []byte, where string) *claim.Record {
	old := s.knownAs(raw)
	r := s.take(raw, where)
	if r == nil || r == old {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[r.ID] == r {
		s.rumors.spread(r, len(s.known))
	}
	return r
}

// take verifies a record from the network and merges it. It returns nil for one that is refused; where says in words
// who sent it.
func (s *Store) take(raw []byte, where string) *claim.Record {
	if r := s.knownAs(raw); r != nil {
		return r
	}
	r, err := s.open(raw)
	if err != nil {
		s.refuse(refusedSignature, fmt.Sprintf("%s: %v", where, err))
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.ID == s.id {
		s.machine.Hear(r, s.now())
		return r
	}
	if _, ok := s.known[r.ID]; !ok && len(s.known) >= claim.MaxRecords {
		s.refusals.add(refusedLimit, fmt.Sprintf("%s: %s: %d nodes are known already", where, r, claim.MaxRecords), s.now())
		return nil
	}
	before := s.known[r.ID]
	if s.machine.Hear(r, s.now()) {
		s.news++
		s.dirty, s.unsaved = true, s.unsaved || !sameClaim(before, r)
		s.poke()
	}
	return r
}

// sameClaim says whether a node's next record changes nothing of what the others have to remember.
func sameClaim(before, r *claim.Record) bool {
	if before == nil {
		return false
	}
	was, _ := before.ConfirmedClaim()
	is, _ := r.ConfirmedClaim()
	return was.Block == is.Block && was.Fence == is.Fence
}

// open decodes and verifies a record.
func (s *Store) open(raw []byte) (*claim.Record, error) {
	if s.config.open != nil {
		return s.config.open(raw)
	}
	return claim.OpenRecord(raw)
}

// knownAs returns the record in the map of which raw is the encoding, or an older one of the same boot: neither has to be verified, which
// is most of what a record costs, and when much is new older ones come behind newer ones all the time.
func (s *Store) knownAs(raw []byte) *claim.Record {
	if len(raw) < 1+ed25519.PublicKeySize {
		return nil
	}
	id := claim.IDOf(raw[1 : 1+ed25519.PublicKeySize])
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.known[id]
	if r == nil || string(r.Raw) == string(raw) {
		return r
	}
	if id != s.id && claim.SupersededBy(raw, r) {
		s.outdated++
		return r
	}
	return nil
}
