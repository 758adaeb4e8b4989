package gossip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/control/claim"
	"github.com/tulle-net/tulle/control/gossip/gate"
)

// sectionKeys is the part of a push/pull's state that holds the cluster keys. It goes encrypted with one of them, like all else: a node
// that was away and has an old one hears of the new one with the first answer.
const sectionKeys = 3

// keyRounds is for how many rounds a node that has a new key exchanges everything with others.
const keyRounds = 8

var errPlain = errors.New("gossip runs without a cluster key: there is nothing to rotate")

// openKeys reads the cluster keys.
func (s *Store) openKeys() error {
	if s.config.Key == nil {
		return nil
	}
	kept, err := loadKeys(s.config.StateDir)
	if err != nil {
		return err
	}
	var stale bool
	if s.keys, stale = newKeyring(kept, s.config.Key); stale {
		s.config.Log.Warn("gossip: the key file holds a cluster key that was rotated since: the keys in the state directory count; tulle keys export gives the file's new content")
	}
	s.ring, err = gate.NewKeyring(s.keys.ring())
	return err
}

// A Key is a cluster key as it is shown.
type Key struct {
	Tag     string        // names it without telling it
	Number  uint64        // of the rotation that made it; 0: from the key file
	Used    bool          // this node seals with it
	Left    time.Duration // until it opens nothing any more; valid iff it was used before the used one
	Old     bool
	With    int      // live nodes that have it as the newest, this one too
	Without []string // names of the others
}

// Keys lists the cluster keys, newest first. Safe for concurrent use.
func (s *Store) Keys() ([]Key, error) {
	if s.ring == nil {
		return nil, errPlain
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Key
	used := s.keys.at(s.keys.used)
	for i, c := range slices.Backward(s.keys.keys) {
		k := Key{Tag: tagText(c.tag()), Number: c.Number, Used: i == used, Old: i < used}
		if k.Old {
			k.Left = max(0, s.keys.keys[used].Grace-c.Retired)
		}
		k.Without = s.withoutKey(c.tag())
		k.With = s.liveLocked() + 1 - len(k.Without)
		all = append(all, k)
	}
	return all, nil
}

// ExportKey returns the key that this node seals with, for the key file of a new node. Safe for concurrent use.
func (s *Store) ExportKey() ([]byte, error) {
	if s.ring == nil {
		return nil, errPlain
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.keys.keys[s.keys.at(s.keys.used)].Key), nil
}

// withoutKey names the live nodes whose newest key is another one.
func (s *Store) withoutKey(tag uint64) (names []string) {
	for _, r := range s.known {
		if (r == s.self || s.lives.alive(r)) && r.KeyTag() != tag {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Rotate makes a new cluster key and begins to spread it. The keys before it open messages for grace after it is used.
func (s *Store) Rotate(ctx context.Context, grace time.Duration) error {
	if s.ring == nil {
		return errPlain
	}
	return s.between(ctx, func() error {
		if err := s.mayRotate(); err != nil {
			return err
		}
		c := clusterKey{Key: make([]byte, keyBytes), Grace: grace.Truncate(time.Second)}
		rand.Read(c.Key) // never fails
		s.mu.Lock()
		c.Number = s.keys.newest().Number + 1
		s.heardKeys = append(s.heardKeys, c)
		s.mu.Unlock()
		return s.takeKeys()
	})
}

func (s *Store) mayRotate() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys.rotating() {
		return fmt.Errorf("a rotation is under way: %s have no new key yet: wait, or end their daemons", strings.Join(s.withoutKey(s.keys.newest().tag()), ", "))
	}
	if len(s.keys.keys) >= maxKeys {
		return fmt.Errorf("%d keys still open messages: wait until the grace of one is over (tulle keys list)", len(s.keys.keys))
	}
	if s.lives.cutOff {
		return errors.New("this node believes itself cut off from the others: they would not get the key")
	}
	if old := s.withoutKey(s.keys.used); len(old) > 0 {
		return fmt.Errorf("%s have another key, or run a version that knows of no rotation: wait, or update them first", strings.Join(old, ", "))
	}
	return nil
}

// takeKeys merges the keys that were heard: on disk first, then in use, then others are told that this node has them.
func (s *Store) takeKeys() error {
	s.mu.Lock()
	next := s.keys
	next.keys = slices.Clone(next.keys)
	news := false
	for _, c := range s.heardKeys {
		news = next.merge(c) || news
	}
	s.heardKeys = nil
	s.mu.Unlock()
	if !news {
		return nil
	}
	if err := s.setKeys(next); err != nil {
		return err
	}
	s.config.Log.Info("gossip: a new cluster key is here", "key", tagText(next.newest().tag()))
	if err := s.renew(0); err != nil {
		return err
	}
	s.announce()
	s.mu.Lock()
	s.flood = keyRounds
	s.mu.Unlock()
	select {
	case s.hurry <- struct{}{}:
	default:
	}
	return nil
}

// setKeys writes the keys to disk and uses them.
func (s *Store) setKeys(next keyring) error {
	if err := next.save(s.config.StateDir); err != nil {
		return err
	}
	s.mu.Lock()
	s.keys = next
	s.mu.Unlock()
	return s.ring.Set(next.ring())
}

// turnKeys is the keys' part of a turn.
func (s *Store) turnKeys(now time.Duration) error {
	if s.ring == nil {
		return nil
	}
	if err := s.takeKeys(); err != nil {
		return err
	}
	s.mu.Lock()
	next := s.keys
	passed := now - s.keysAt
	s.keysAt = now
	allHave := s.joined && !s.lives.cutOff && len(s.withoutKey(next.newest().tag())) == 0
	s.mu.Unlock()
	was := next.used
	changed := next.advance(passed, allHave)
	if next.used != was {
		s.config.Log.Info("gossip: all nodes have the new cluster key: it is used from now on", "key", tagText(next.used))
	}
	if !changed && (len(next.keys) == 1 || now-s.keysSaved < saveInterval) {
		s.mu.Lock()
		s.keys = next
		s.mu.Unlock()
		return nil
	}
	s.keysSaved = now
	return s.setKeys(next)
}

// hearKeys notes the keys in another node's state for the next turn.
func (s *Store) hearKeys(state []byte) {
	if s.ring == nil {
		return
	}
	keys := decodeKeys(claim.Section(state, sectionKeys))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range keys {
		if i := s.keys.at(c.tag()); i < 0 || s.keys.keys[i].Number < c.Number {
			s.heardKeys = append(s.heardKeys, c)
			s.dirty = true
		}
	}
	s.heardKeys = s.heardKeys[:min(len(s.heardKeys), maxKeys)]
	if len(s.heardKeys) > 0 {
		s.poke()
	}
}
