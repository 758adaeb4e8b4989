package lpm

import (
	"net/netip"
	"runtime"

	"github.com/tulle-net/tulle/dataplane/word"
)

const (
	// touchAtOnce is how many loads Touch has under way, more than a CPU has.
	touchAtOnce = 64
	// touchFrom is how many bytes are more than the nearer caches of a CPU hold.
	touchFrom = 1 << 20
)

// Large says whether Touch is worth its time: some 10 ns for each address.
func (t *Table) Large() bool {
	return len(t.v4.entries)*4+len(t.v6.slots)*slotLen >= touchFrom
}

// Touch loads what Lookup will look at for the addresses, in IPv6 first, so that a batch of lookups in a table that is larger than the CPU's
// caches waits for memory a few times, and not for each. Its loops do little else: a CPU runs some hundred instructions ahead of a load that
// it waits for, and has as many loads under way as are among them.
func (t *Table) Touch(addrs []netip.Addr) {
	for len(addrs) > 0 {
		n := min(len(addrs), touchAtOnce)
		t.touch(addrs[:n])
		addrs = addrs[n:]
	}
}

func (t *Table) touch(addrs []netip.Addr) {
	var (
		v4     [touchAtOnce]uint32
		homes  [touchAtOnce]uint64
		n4, n6 int
		sum    uint64
	)
	for i := range addrs {
		a := &addrs[i]
		if a.Is4() {
			v4[n4] = word.Of4(a)
			n4++
		} else if a.Is6() && len(t.v6.levels) > 0 {
			homes[n6] = t.v6.begin(word.Halves(a))
			n6++
		}
	}
	for _, a := range v4[:n4] {
		sum += uint64(t.v4.lookup(a))
	}
	for _, home := range homes[:n6] {
		sum += t.v6.slots[home].hi
	}
	runtime.KeepAlive(sum)
}

// begin is the home in which a lookup looks first. There are levels.
func (h *hashed) begin(hi, lo uint64) uint64 {
	l := &h.levels[len(h.levels)/2]
	return h.home(hi&l.hi, lo&l.lo, l.length)
}
