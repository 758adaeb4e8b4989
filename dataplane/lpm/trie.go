package lpm

import (
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/word"
)

// A trie has a node of 256 entries for the first byte of addresses, and one more for each byte of each prefix that goes on behind it. An
// entry is the index of the longest prefix known so far, plus 1, or 0 for none; or, with below, where the node of the next byte begins.
type trie struct{ entries []uint32 }

const (
	fanout = 256
	below  = 1 << 31
)

func (t *trie) lookup(a uint32) uint32 {
	if len(t.entries) == 0 {
		return 0
	}
	e := t.entries[a>>24]
	for e&below != 0 {
		a <<= 8
		e = t.entries[e&^below+a>>24]
	}
	return e
}

// fill puts the prefixes with these indexes in, shorter ones first: longer ones take their places.
func (t *trie) fill(prefixes []netip.Prefix, byLength [][]int32) {
	for length, indexes := range byLength {
		for _, i := range indexes {
			a := prefixes[i].Addr()
			t.put(word.Of4(&a), length, uint32(i)+1)
		}
	}
}

func (t *trie) put(a uint32, length int, value uint32) {
	if len(t.entries) == 0 {
		t.entries = make([]uint32, fanout)
	}
	node := uint32(0)
	for ; length > 8; length -= 8 {
		node = t.descend(node + a>>24)
		a <<= 8
	}
	first := node + a>>24
	for i := range uint32(1) << (8 - length) {
		t.entries[first+i] = value
	}
}

// descend returns the node below an entry, and makes it if there is none.
func (t *trie) descend(at uint32) uint32 {
	e := t.entries[at]
	if e&below == 0 {
		node := uint32(len(t.entries))
		for range fanout {
			t.entries = append(t.entries, e)
		}
		t.entries[at] = below | node
		return node
	}
	return e &^ below
}
