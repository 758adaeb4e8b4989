package fragment

import (
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A datagram is what is known of one, by its fragments.
type datagram struct {
	key     key
	expires time.Duration

	decided  bool
	verdict  packet.Verdict // of the first fragment; valid iff decided
	poisoned bool           // nothing of it may pass any more

	seen   int  // payload bytes seen
	reach  int  // end of the furthest fragment seen, bytes
	closed bool // the last fragment was seen: reach is the datagram's length
	*coverage

	held, heldLast *held // fragments that wait, in the order of arrival

	bucket       *datagram // the next one in the table's bucket
	newer, older *datagram // neighbours in the order of use
}

// A coverage is which blocks of a datagram were seen. It lies apart from the entry, so that an
// entry that was never used costs no resident memory for it.
type coverage struct {
	blocks bitmap
	starts bitmap // blocks that a fragment begins with
}

// reset makes the entry one of a datagram that nothing was seen of.
func (d *datagram) reset(now time.Duration) {
	used := blocksTo(d.reach)
	d.blocks.clear(used)
	d.starts.clear(used)
	d.expires = now + lifetime
	d.decided, d.verdict, d.poisoned = false, packet.None, false
	d.seen, d.reach, d.closed = 0, 0, false
}

// A fit says how a fragment goes with those seen before.
type fit uint8

const (
	fresh fit = iota
	repeated
	conflicting
)

// place says how the fragment goes with those marked before.
func (d *datagram) place(p piece) fit {
	switch {
	case d.poisoned, p.header+p.end() > maxDatagram:
		return conflicting
	case d.repeats(p):
		return repeated
	case d.closed && p.end() > d.reach, !p.more && p.end() < d.reach:
		return conflicting
	case d.blocks.any(p.offset/blockLen, blocksTo(p.end())):
		return conflicting
	}
	return fresh
}

// repeats reports whether a fragment of the same place was marked: one begins there, none
// begins inside, and it ends where this one does.
func (d *datagram) repeats(p piece) bool {
	from, to := p.offset/blockLen, blocksTo(p.end())
	last := d.closed && p.end() == d.reach
	if last == p.more || p.end() > d.reach || !d.starts.has(from) || d.starts.any(from+1, to) || !d.blocks.has(to-1) {
		return false
	}
	return last || !d.blocks.has(to) || d.starts.has(to)
}

// mark notes a fresh fragment.
func (d *datagram) mark(p piece, now time.Duration) {
	from := p.offset / blockLen
	d.blocks.set(from, blocksTo(p.end()))
	d.starts.set(from, from+1)
	d.seen += p.length
	d.reach = max(d.reach, p.end())
	d.closed = d.closed || !p.more
	if d.whole() {
		d.expires = min(d.expires, now+linger)
	}
}

// whole reports whether all fragments were seen, and nothing spoilt the datagram.
func (d *datagram) whole() bool { return d.closed && d.seen == d.reach && !d.poisoned }

// blocksTo returns the number of blocks in n bytes, the last one perhaps cut.
func blocksTo(n int) int { return (n + blockLen - 1) / blockLen }
