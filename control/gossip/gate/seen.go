package gate

import "sync"

// seenMost is how many messages seen remembers at least: at 25 packets a second ten minutes.
const seenMost = 16384

// seen remembers the nonces of messages that were opened. What is older than it remembers may be played again, and is old news then. The
// zero value is ready. Safe for concurrent use.
type seen struct {
	mu            sync.Mutex
	young, before map[[nonceSize]byte]struct{}
}

// first says whether the nonce was not here before.
func (s *seen) first(nonce [nonceSize]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, young := s.young[nonce]
	_, old := s.before[nonce]
	if young || old {
		return false
	}
	if s.young == nil || len(s.young) >= seenMost {
		s.young, s.before = map[[nonceSize]byte]struct{}{}, s.young
	}
	s.young[nonce] = struct{}{}
	return true
}
