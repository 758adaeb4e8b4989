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

// touch loads before a batch looks up, in a loop that does nothing else.
func (t *Table) touch(tuples []Tuple) {
	var lines [4 * touchAtOnce]*slot
	for _, l := range lines[:t.lines(tuples, &lines)] {
		l[0].Load()
	}
}

// lines are the cache lines that Lookup will look at for at most touchAtOnce tuples, and how many. It goes in steps, of which those that load do
// nothing else and have no branches, as in touch: a CPU runs some hundred instructions ahead of a load that it waits for, and has as many loads under way as are
// among them.
func (t *Table) lines(tuples []Tuple, lines *[4 * touchAtOnce]*slot) (count int) {
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
	for i, a := range areas[:n] {
		one, other := entriesOf(ctrls[i])
		first, second := a.entry(homes[i], one), a.entry(homes[i], other)
		lines[count], lines[count+1] = first, second
		count += 2
		if a.size == slotLen6 {
			lines[count], lines[count+1] = first.second(), second.second()
			count += 2
		}
	}
	return count
}

// entriesOf are the first two entries of a home by its control word, each as its bit there: one entry in thirty is a later one. In place
// of one that is not there it is another.
func entriesOf(ctrl uint64) (first, second uint64) {
	entries := max(ctrl>>homeBits, 1)
	first = entries & -entries
	return first, max(entries^first, first)
}

// entry is the first of a home's entries, given by their bits.
func (a *area) entry(home, entries uint64) *slot {
	return a.slot(a.probeAt(home, bits.TrailingZeros64(entries)))
}

// second is the second cache line of an IPv6 slot.
func (w *slot) second() *slot { return (*slot)(unsafe.Add(unsafe.Pointer(w), slotLen4)) }
