package encap

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

const (
	// partials is how many datagrams can be incomplete at a time, 64 KiB each. A new one takes the place of the
	// oldest: that has most likely lost a fragment.
	partials = 32
	// partialLife is the longest that a datagram waits for its fragments. It is far shorter than in the kernel (30 s and 60 s):
	// at the rates of a tunnel 16 bits of identification come again within a second (RFC 4963), and the datagrams' checksums
	// find most but not all that went wrong.
	partialLife = time.Second
	// maxSpans bounds the disjoint parts of one datagram that are there. Fragments of the least that an IPv4 link carries by
	// custom, 576 bytes, in the worst order are 60.
	maxSpans = 64

	maxIPData = 65535 // bytes behind the IP header, more than there can be
)

// A reassembler puts fragments together (RFC 791, RFC 8200 section 4.5). All its memory is bounded and taken up front; what was
// never used costs none. It is used by one goroutine.
type reassembler struct {
	all    []partial
	memory []byte
}

// A partial is a datagram of which not all is there. The zero value is none.
type partial struct {
	used    bool
	src     netip.Addr
	id      uint32
	born    time.Duration
	spoilt  packet.Verdict // why nothing can become of it; None for none
	tos     uint8          // of the first fragment seen
	ecn     uint8          // the set of ECN codepoints seen, 1<<codepoint
	foreign bool           // to another port
	have    []span         // in order, with gaps between them
	end     int            // length of the datagram; 0 while the last fragment is not there
}

// A span is the bytes [from, to) of a datagram.
type span struct{ from, to int }

func newReassembler() reassembler {
	r := reassembler{all: make([]partial, partials), memory: make([]byte, partials*maxIPData)}
	for i := range r.all {
		r.all[i].have = make([]span, 0, maxSpans)
	}
	return r
}

// add takes a fragment of a datagram to this node, which Parse accepted as one. When all of its datagram is there it returns
// the IP header and the data behind that, valid until the next call. The verdict says that the fragment is lost:
//   - DropFragmentOverlap: it overlaps another, or contradicts the end, and the datagram is lost with it (RFC 5722); a repeated
//     one is lost alone
//   - DropFragmentMemory: its datagram is in more pieces than can be
//   - DropECN: a congestion mark, beside fragments that cannot carry one (RFC 3168 section 5.3)
//   - DropExtension: UDP is not what the fragments begin with
//
// lost is told of datagrams that did not become whole: DropFragmentOrphan, those that made room: DropFragmentMemory.
// A datagram to another port than the tunnel's is never whole.
func (r *reassembler) add(f *packet.Frame, port uint16, now time.Duration, lost func(packet.Verdict)) (ip outerIP, data []byte, v packet.Verdict) {
	d, memory := r.find(f, now, lost)
	if v := d.place(f, port); v != packet.None {
		return ip, nil, v
	}
	copy(memory[f.FragmentOffset:], f.FragmentData())
	if !d.complete() {
		return ip, nil, packet.None
	}
	d.used = false
	ip = outerIP{src: f.Src, dst: f.Dst, tos: d.mergedTOS(), payload: d.end}
	return ip, memory[:d.end], packet.None
}

// find returns the datagram of a fragment, a new one if it is the first that is seen.
func (r *reassembler) find(f *packet.Frame, now time.Duration, lost func(packet.Verdict)) (*partial, []byte) {
	at := 0
	for i := range r.all {
		d := &r.all[i]
		if d.used && now-d.born >= partialLife {
			d.giveUp(packet.DropFragmentOrphan, lost)
		}
		switch oldest := &r.all[at]; {
		case d.used && d.src == f.Src && d.id == f.FragmentID:
			return d, r.memoryOf(i)
		case oldest.used && (!d.used || d.born < oldest.born):
			at = i
		}
	}
	d := &r.all[at]
	if d.used {
		d.giveUp(packet.DropFragmentMemory, lost)
	}
	*d = partial{used: true, src: f.Src, id: f.FragmentID, born: now, tos: f.TOS(), have: d.have[:0]}
	return d, r.memoryOf(at)
}

func (r *reassembler) memoryOf(i int) []byte { return r.memory[i*maxIPData : (i+1)*maxIPData] }

// giveUp ends a datagram. The fragments of a spoilt one have been told of.
func (d *partial) giveUp(v packet.Verdict, lost func(packet.Verdict)) {
	d.used = false
	if d.spoilt == packet.None && !d.foreign {
		lost(v)
	}
}

// place notes where the fragment lies, if it fits.
func (d *partial) place(f *packet.Frame, port uint16) packet.Verdict {
	data := f.FragmentData()
	s := span{f.FragmentOffset, f.FragmentOffset + len(data)}
	switch {
	case d.foreign || d.spoilt != packet.None:
		return d.spoilt
	case len(data) == 0 || s.to > maxIPData:
		return packet.DropIPHeader
	case d.repeats(s, f.MoreFragments):
		return packet.DropFragmentOverlap
	}
	const mixed = 1<<packet.ECNCE | 1<<packet.ECNNotECT
	d.ecn |= 1 << (f.TOS() & packet.ECNMask)
	switch {
	case d.ecn&mixed == mixed:
		d.spoilt = packet.DropECN
	case !d.insert(s, f.MoreFragments):
		d.spoilt = packet.DropFragmentOverlap
	case len(d.have) == maxSpans:
		d.spoilt = packet.DropFragmentMemory
	case s.from == 0 && len(data) != len(f.L4Bytes()):
		d.spoilt = packet.DropExtension
	case s.from == 0:
		_, dst := f.Ports()
		d.foreign = dst != port
	}
	return d.spoilt
}

// repeats reports whether all of the fragment is there already.
func (d *partial) repeats(s span, more bool) bool {
	inside := slices.ContainsFunc(d.have, func(h span) bool { return h.from <= s.from && s.to <= h.to })
	return inside && (more || s.to == d.end)
}

// insert adds a fragment's bytes; it reports false when they overlap others or contradict the end.
func (d *partial) insert(s span, more bool) bool {
	if d.end > 0 && (!more || s.to > d.end) || !more && len(d.have) > 0 && d.have[len(d.have)-1].to > s.to {
		return false
	}
	i := 0 // of the first span behind
	for i < len(d.have) && d.have[i].from < s.from {
		i++
	}
	if i > 0 && d.have[i-1].to > s.from || i < len(d.have) && d.have[i].from < s.to {
		return false
	}
	if !more {
		d.end = s.to
	}
	switch left, right := i > 0 && d.have[i-1].to == s.from, i < len(d.have) && d.have[i].from == s.to; {
	case left && right:
		d.have[i-1].to = d.have[i].to
		d.have = slices.Delete(d.have, i, i+1)
	case left:
		d.have[i-1].to = s.to
	case right:
		d.have[i].from = s.from
	default:
		d.have = slices.Insert(d.have, i, s)
	}
	return true
}

func (d *partial) complete() bool {
	return d.spoilt == packet.None && !d.foreign && d.end > 0 && len(d.have) == 1 && d.have[0] == span{0, d.end}
}

// mergedTOS is that of the datagram: marked when one of its fragments is.
func (d *partial) mergedTOS() uint8 {
	if d.ecn&(1<<packet.ECNCE) != 0 {
		return d.tos | packet.ECNCE
	}
	return d.tos
}
