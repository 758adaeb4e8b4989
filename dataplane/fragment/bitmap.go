package fragment

const (
	maxBlocks = (maxDatagram + blockLen - 1) / blockLen
	wordBits  = 64
)

// A bitmap has one bit for each block of the largest datagram.
type bitmap [(maxBlocks + wordBits - 1) / wordBits]uint64

func (b *bitmap) has(i int) bool { return i < maxBlocks && b[i/wordBits]>>(i%wordBits)&1 != 0 }

// any reports whether a bit of [from, to) is set.
func (b *bitmap) any(from, to int) bool {
	for w := from / wordBits; w*wordBits < to; w++ {
		if b[w]&span(w, from, to) != 0 {
			return true
		}
	}
	return false
}

// set sets the bits of [from, to).
func (b *bitmap) set(from, to int) {
	for w := from / wordBits; w*wordBits < to; w++ {
		b[w] |= span(w, from, to)
	}
}

// clear clears the bits of [0, to), and perhaps some behind.
func (b *bitmap) clear(to int) { clear(b[:(to+wordBits-1)/wordBits]) }

// span returns the bits of word w that lie in [from, to), some of which do.
func span(w, from, to int) uint64 {
	low := max(from-w*wordBits, 0)
	high := max((w+1)*wordBits-to, 0)
	if low >= wordBits {
		return 0
	}
	return ^uint64(0) << low & (^uint64(0) >> high)
}
