package claim

import "net/netip"

// flaws are faults that tests put in, to see that they are found. The zero value, which every node has, is the protocol.
type flaws struct {
	noWitnesses       bool
	tenureReversed    bool
	fenceIgnored      bool
	neverYields       bool
	overlapByEquality bool
	diskTrusted       bool // after a rollback
}

func (f flaws) overlap(a, b netip.Prefix) bool {
	if f.overlapByEquality {
		return a.IsValid() && a == b
	}
	return a.Overlaps(b)
}

func (f flaws) dead(fences Fences, c Claim) bool { return !f.fenceIgnored && fences.Dead(c) }
