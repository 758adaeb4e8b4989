package gossip

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// A clusterKey is one that opens messages. The newest by (number, tag) is the one that everybody is to seal with, which each node does as
// soon as all live nodes say that they have it.
type clusterKey struct {
	Number  uint64        // grows with each rotation; 0: from the key file
	Key     []byte        // 32 bytes
	Grace   time.Duration // how long the keys before this one open messages after it is used
	Retired time.Duration // for how long this node has not sealed with it any more, over restarts; valid iff an older one than the used
}

// tag names a key without telling it.
func (k clusterKey) tag() uint64 {
	sum := sha256.Sum256(append([]byte("tulle cluster key\x00"), k.Key...))
	return binary.BigEndian.Uint64(sum[:8])
}

// tagText is how a key is named to people.
func tagText(tag uint64) string { return fmt.Sprintf("%016x", tag) }

// keyring is what a node knows of cluster keys. Merging takes in what others have, so that nodes that can talk come to the same keys. Not
// safe for concurrent use.
type keyring struct {
	keys    []clusterKey // newest last
	used    uint64       // tag of the key that seals
	dropped []uint64     // tags of keys whose grace is over: they do not come back
}

// maxKeys bounds the keys of a ring, maxDropped the memory of those that went.
const (
	maxKeys    = 8
	maxDropped = 64
)

// newKeyring begins with what is on disk, and the key of the file, which is the used one if the ring does not know it: an operator gave it.
// stale says that the file has a key that was rotated away.
func newKeyring(kept keyring, file []byte) (k keyring, stale bool) {
	k = kept
	own := clusterKey{Key: file}
	tag := own.tag()
	switch {
	case slices.Contains(k.dropped, tag):
		return k, true
	case len(k.keys) > 0 && k.at(tag) < 0:
		own.Number = k.newest().Number + 1
		own.Grace = k.newest().Grace
		fallthrough
	case len(k.keys) == 0:
		k.keys = append(slices.Clone(k.keys), own)
		k.used = tag
	}
	k.sort()
	return k, tag != k.newest().tag()
}

func (k *keyring) sort() {
	slices.SortFunc(k.keys, func(a, b clusterKey) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.tag(), b.tag()))
	})
}

func (k *keyring) at(tag uint64) int {
	return slices.IndexFunc(k.keys, func(c clusterKey) bool { return c.tag() == tag })
}

func (k *keyring) newest() clusterKey { return k.keys[len(k.keys)-1] }

// rotating says whether the newest key is not used yet.
func (k *keyring) rotating() bool { return k.used != k.newest().tag() }

// merge takes a key in, and says whether it changed anything.
func (k *keyring) merge(c clusterKey) (news bool) {
	tag := c.tag()
	if len(c.Key) != keyBytes || c.Number > 1<<62 || c.Grace < 0 || slices.Contains(k.dropped, tag) {
		return false
	}
	if i := k.at(tag); i >= 0 {
		if c.Number <= k.keys[i].Number {
			return false
		}
		k.keys[i].Number, k.keys[i].Grace = c.Number, c.Grace
	} else if len(k.keys) >= maxKeys {
		return false
	} else {
		c.Retired = 0
		k.keys = append(k.keys, c)
	}
	k.sort()
	return true
}

// advance lets time pass: it uses the newest key if all have it, and drops those whose grace is over. It says whether keys came into use or
// went.
func (k *keyring) advance(passed time.Duration, allHave bool) (changed bool) {
	if allHave && k.rotating() {
		k.used, changed = k.newest().tag(), true
	}
	used := k.at(k.used)
	kept := k.keys[:0:0]
	for i, c := range k.keys {
		if i < used {
			c.Retired += passed
		}
		if i < used && c.Retired >= k.keys[used].Grace {
			k.dropped = append(k.dropped, c.tag())
			k.dropped = k.dropped[max(0, len(k.dropped)-maxDropped):]
			changed = true
			continue
		}
		kept = append(kept, c)
	}
	k.keys = kept
	return changed
}

// ring returns the keys for the gate: the used one first.
func (k *keyring) ring() (keys [][]byte) {
	for _, c := range slices.Backward(k.keys) {
		if c.tag() == k.used {
			keys = slices.Insert(keys, 0, c.Key)
		} else {
			keys = append(keys, c.Key)
		}
	}
	return keys
}

const keyBytes = 32

// encode is the section of a state that holds the keys: number, grace in seconds and key, each after the other.
func (k *keyring) encode() (b []byte) {
	for _, c := range k.keys {
		b = binary.AppendUvarint(b, c.Number)
		b = binary.AppendUvarint(b, uint64(c.Grace/time.Second))
		b = append(b, c.Key...)
	}
	return b
}

// decodeKeys is encode's inverse. What is damaged ends the list.
func decodeKeys(b []byte) (keys []clusterKey) {
	for len(b) > 0 && len(keys) < maxKeys {
		number, n := binary.Uvarint(b)
		if n <= 0 {
			break
		}
		grace, m := binary.Uvarint(b[n:])
		if m <= 0 || grace > 1<<31 || len(b) < n+m+keyBytes {
			break
		}
		b = b[n+m:]
		keys = append(keys, clusterKey{Number: number, Grace: time.Duration(grace) * time.Second, Key: slices.Clone(b[:keyBytes])})
		b = b[keyBytes:]
	}
	return keys
}
