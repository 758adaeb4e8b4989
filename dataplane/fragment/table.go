package fragment

import (
	"hash/maphash"
	"math/bits"
)

// A table finds datagrams by key and knows the order in which they were used. All entries
// exist from the start; one in no bucket is unused.
type table struct {
	seed    maphash.Seed // drawn anew for each table: nobody can aim at one bucket
	buckets []*datagram
	newest  *datagram
	last    *datagram
}

func newTable(n int) table {
	t := table{seed: maphash.MakeSeed(), buckets: make([]*datagram, 1<<bits.Len(uint(n)))}
	all, seen := make([]datagram, n), make([]coverage, n)
	for i := range all {
		all[i].coverage = &seen[i]
		t.push(&all[i])
	}
	return t
}

func (t *table) bucket(k key) **datagram {
	return &t.buckets[maphash.Comparable(t.seed, k)&uint64(len(t.buckets)-1)]
}

// find returns the entry of that key; nil when there is none.
func (t *table) find(k key) *datagram {
	for d := *t.bucket(k); d != nil; d = d.bucket {
		if d.key == k {
			return d
		}
	}
	return nil
}

// oldest returns the entry that was not used for the longest time.
func (t *table) oldest() *datagram { return t.last }

// rename gives the entry a new key, which is in no other.
func (t *table) rename(d *datagram, k key) {
	for at := t.bucket(d.key); *at != nil; at = &(*at).bucket {
		if *at == d {
			*at = d.bucket
			break
		}
	}
	b := t.bucket(k)
	d.key, d.bucket, *b = k, *b, d
}

// touch makes the entry the one used last.
func (t *table) touch(d *datagram) {
	if t.newest == d {
		return
	}
	d.newer.older = d.older
	if d.older != nil {
		d.older.newer = d.newer
	} else {
		t.last = d.newer
	}
	t.push(d)
}

func (t *table) push(d *datagram) {
	d.newer, d.older = nil, t.newest
	if t.newest != nil {
		t.newest.newer = d
	} else {
		t.last = d
	}
	t.newest = d
}
