// Package lpm finds the longest of a set of prefixes that contains an address.
//
// IPv4 prefixes are written out in a trie of arrays of 256, one for each byte of the address: a lookup is one to four loads, of which
// all but the last come from the caches. IPv6 prefixes lie in a hash table, each under its length, and a lookup is a binary search over the
// lengths that there are (see hashed).
package lpm

import (
	"net/netip"

	"github.com/tulle-net/tulle/dataplane/word"
)

// None is what is found where no prefix contains the address.
const None = -1

// A Table is immutable: every method is safe for concurrent use. The zero Table is empty.
type Table struct {
	v4 trie
	v6 hashed
}

// New makes a table of prefixes, which have to be valid, masked and different. What a lookup finds is their index.
func New(prefixes []netip.Prefix) *Table {
	var byLength [2][129][]int32
	for i, p := range prefixes {
		family := p.Addr().BitLen() / 128
		byLength[family][p.Bits()] = append(byLength[family][p.Bits()], int32(i))
	}
	t := &Table{}
	t.v4.fill(prefixes, byLength[0][:33])
	t.v6.fill(prefixes, &byLength[1])
	return t
}

// Lookup returns the index of the longest prefix that contains an address, or None.
func (t *Table) Lookup(a netip.Addr) int {
	switch {
	case a.Is4():
		return int(t.v4.lookup(word.Of4(&a))) - 1
	case a.Is6():
		hi, lo := word.Halves(&a)
		return int(t.v6.lookup(hi, lo)) - 1
	}
	return None
}
