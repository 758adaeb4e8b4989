package lpm

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"unsafe"

	"github.com/tulle-net/tulle/dataplane/word"
)

// A hashed table searches among the lengths, not along them: markers, the beginnings of longer prefixes, say that it has to go on
// among the longer ones, and what is found if there is nothing (Waldvogel, Varghese, Turner and Plattner, "Scalable High Speed IP Routing
// Lookups", SIGCOMM 1997). Prefixes of one length take one access to memory, of three lengths two, of all 128 eight at most.
type hashed struct {
	levels   []level // by length, ascending; the prefix of length 0 is not among them
	slots    []slot  // the last one is always free
	buckets  uint64  // homes are every other slot, so that both of a home are in one cache line
	secret   [3]uint64
	entries  int
	fallback int32 // of the prefix of length 0, plus 1; 0 for none
}

type level struct {
	hi, lo uint64 // mask
	length uint8
}

// A slot is a prefix or a marker.
type slot struct {
	hi, lo uint64
	length uint8 // 0: free
	found  int32 // index of the longest prefix that contains this one, or is it, plus 1; 0 for none
	_      [8]byte
}

const slotLen = int(unsafe.Sizeof(slot{})) // half a cache line

const (
	// spread is how many slots there are for each entry: then one in thirty is not in its home.
	spread = 4
	// tail is how many slots there are behind the last home's.
	tail = 64
)

func (h *hashed) lookup(hi, lo uint64) int32 {
	found := h.fallback
	for from, to := 0, len(h.levels); from < to; {
		middle := (from + to) / 2
		l := &h.levels[middle]
		s := h.find(hi&l.hi, lo&l.lo, l.length)
		if s == nil {
			to = middle
			continue
		}
		found, from = s.found, middle+1
	}
	return found
}

// find returns the slot of a prefix or marker, or nil.
func (h *hashed) find(hi, lo uint64, length uint8) *slot {
	at := h.home(hi, lo, length)
	// Which of a home's two slots it is, is nothing that a CPU can foresee, and a wrong guess costs it all that it loads ahead. So there is
	// no branch: one is added if the first is another one.
	d := h.slots[at].differs(hi, lo, length)
	at += (d | -d) >> 63
	for {
		s := &h.slots[at]
		if s.differs(hi, lo, length) == 0 {
			return s
		}
		if s.length == 0 {
			return nil
		}
		at++
	}
}

// differs is 0 if the slot is of these.
func (s *slot) differs(hi, lo uint64, length uint8) uint64 {
	return (s.hi ^ hi) | (s.lo ^ lo) | uint64(s.length^length)
}

// home is the first of the two slots where the search for a prefix begins.
func (h *hashed) home(hi, lo uint64, length uint8) uint64 {
	v := word.Mix(hi^h.secret[0], lo^h.secret[1]^uint64(length))
	bucket, _ := bits.Mul64(word.Mix(v, h.secret[2]), h.buckets)
	return 2 * bucket
}

// fill puts the prefixes with these indexes in, shorter ones first, so that what contains a marker is there before it.
func (h *hashed) fill(prefixes []netip.Prefix, byLength *[129][]int32) {
	for _, i := range byLength[0] {
		h.fallback = i + 1
	}
	count := 0
	for length, indexes := range byLength[1:] {
		count += len(indexes)
		if len(indexes) > 0 {
			h.levels = append(h.levels, levelOf(length+1))
		}
	}
	if len(h.levels) == 0 {
		return
	}
	h.secret = [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}
	h.grow(count/2 + 1)
	for number, l := range h.levels {
		for _, i := range byLength[l.length] {
			a := prefixes[i].Addr()
			hi, lo := word.Halves(&a)
			h.mark(number, hi, lo)
			h.put(slot{hi: hi, lo: lo, length: l.length, found: i + 1})
		}
	}
}

// levelOf is the level of a length, 1 to 128.
func levelOf(length int) level {
	l := level{hi: ^uint64(0), length: uint8(length)}
	if length < 64 {
		l.hi <<= 64 - length
	} else {
		l.lo = ^uint64(0) << (128 - length)
	}
	return l
}

// mark puts the markers in that lead a lookup to a prefix of a level.
func (h *hashed) mark(number int, hi, lo uint64) {
	for from, to := 0, len(h.levels); ; {
		middle := (from + to) / 2
		switch {
		case middle == number:
			return
		case middle > number:
			to = middle
			continue
		}
		from = middle + 1
		l := &h.levels[middle]
		if h.find(hi&l.hi, lo&l.lo, l.length) == nil {
			h.put(slot{hi: hi & l.hi, lo: lo & l.lo, length: l.length, found: h.above(middle, hi, lo)})
		}
	}
}

// above is what is found for an address among the levels below number, of which all prefixes are there.
func (h *hashed) above(number int, hi, lo uint64) int32 {
	for i := number - 1; i >= 0; i-- {
		l := &h.levels[i]
		if s := h.find(hi&l.hi, lo&l.lo, l.length); s != nil {
			return s.found
		}
	}
	return h.fallback
}

// put takes a free slot for an entry.
func (h *hashed) put(s slot) {
	h.entries++
	if h.entries*spread > int(2*h.buckets) {
		h.grow(h.entries)
	}
	h.place(s)
}

// place takes the first free slot from the entry's home on.
func (h *hashed) place(s slot) {
	at := h.home(s.hi, s.lo, s.length)
	for h.slots[at].length != 0 {
		at++
	}
	h.slots[at] = s
	if at == uint64(len(h.slots)-1) {
		h.slots = append(h.slots, slot{})
	}
}

// grow makes room for twice as many entries.
func (h *hashed) grow(entries int) {
	old := h.slots
	h.buckets = uint64(entries * spread)
	h.slots = make([]slot, 2*h.buckets+tail)
	for i := range old {
		if old[i].length != 0 {
			h.place(old[i])
		}
	}
}
