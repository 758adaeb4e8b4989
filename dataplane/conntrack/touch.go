package conntrack

import (
	"math/bits"
	"unsafe"
)

// touchAtOnce is how many loads Touch has under way, more than a CPU has.
const touchAtOnce = 64

// touchFrom is how many flows have more memory than the nearer caches of a CPU.
const touchFrom = 1 << 14

// Large says whether Touch is worth its time: some 20 ns for each tuple.
func (t *Table) Large() bool { return t.v4.flows()+t.v6.flows() >= touchFrom }

// Touch loads what Lookup will look at for the tuples, so that a batch of lookups in a table that is larger than the CPU's caches waits
// for memory a few times, and not for each.
func (t *Table) Touch(tuples []Tuple) {
	for len(tuples) > 0 {
		n := min(len(tuples), touchAtOnce)
		t.touch(tuples[:n])
		tuples = tuples[n:]
	}
}

// touch is in steps, of which those that load do nothing else and have no branches: a CPU runs some hundred instructions ahead of a load
// that it waits for, and has as many loads under way as are among them.
func (t *Table) touch(tuples []Tuple) {
	var (
		areas [touchAtOnce]*area
		homes [touchAtOnce]uint64
		ctrls [touchAtOnce]uint64
		n     int
	)
	for i := range tuples {
		var k key
		if a := t.setKey(&k, &tuples[i]); a != nil {
			areas[n], homes[n] = a, a.home(k.hash)
			n++
		}
	}
	for i, a := range areas[:n] {
		ctrls[i] = a.slot(homes[i])[wCtrl].Load()
	}
	var lines [2 * touchAtOnce][2]*slot
	for i, a := range areas[:n] {
		first, second := entriesOf(ctrls[i])
		lines[2*i], lines[2*i+1] = a.lines(homes[i], first), a.lines(homes[i], second)
	}
	for _, l := range lines[:2*n] {
		l[0][0].Load()
		l[1][0].Load()
	}
}

// entriesOf are the first two entries of a home by its control word, each as its bit there: one entry in thirty is a later one. In place
// of one that is not there it is another.
func entriesOf(ctrl uint64) (first, second uint64) {
	entries := max(ctrl>>homeBits, 1)
	first = entries & -entries
	return first, max(entries^first, first)
}

// lines are the first and the last cache line of the first of a home's entries, given by their bits: in IPv4 the same.
func (a *area) lines(home, entries uint64) [2]*slot {
	w := a.slot(a.probeAt(home, bits.TrailingZeros64(entries)))
	return [2]*slot{w, (*slot)(unsafe.Add(unsafe.Pointer(w), a.size-slotLen4))}
}
