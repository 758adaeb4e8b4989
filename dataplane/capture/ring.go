package capture

import "sync/atomic"

// A ring holds records between one worker that writes and one goroutine that reads. A record is published some time after it was
// reserved, so that what is found out about its packet can still be added. It never blocks: what does not fit is refused.
type ring struct {
	buf      []byte // a power of two
	reserved uint64 // the writer's own; positions only grow, modulo len(buf) they are offsets
	head     atomic.Uint64
	tail     atomic.Uint64
}

func newRing(size int) ring { return ring{buf: make([]byte, size)} }

func (r *ring) offset(position uint64) int { return int(position & uint64(len(r.buf)-1)) }

// reserve returns room for a record of n bytes, a multiple of recordAlign, and its position; nil when there is none. What is left at the end of
// buf and too short becomes a record of its own, which says nothing.
func (r *ring) reserve(n int) ([]byte, uint64) {
	free := len(r.buf) - int(r.reserved-r.tail.Load())
	at, skip := r.offset(r.reserved), 0
	if left := len(r.buf) - at; left < n {
		skip = left
	}
	if skip+n > free {
		return nil, 0
	}
	if skip > 0 {
		putSkip(r.buf[at:], skip)
		r.reserved += uint64(skip)
	}
	position := r.reserved
	r.reserved += uint64(n)
	return r.at(position, n), position
}

// at returns a record that is reserved and not yet published.
func (r *ring) at(position uint64, n int) []byte {
	o := r.offset(position)
	return r.buf[o : o+n : o+n]
}

// publish hands everything in front of a position over to the reader. It reports whether the ring got half full by that.
func (r *ring) publish(position uint64) (half bool) {
	tail, before := r.tail.Load(), r.head.Load()
	r.head.Store(position)
	mark := uint64(len(r.buf) / 2)
	return position-tail >= mark && before-tail < mark
}

// readable returns the records that can be read in one piece: whole ones, of at most limit bytes unless the first one is larger.
func (r *ring) readable(limit int) []byte {
	tail := r.tail.Load()
	o := r.offset(tail)
	all := r.buf[o : o+min(int(r.head.Load()-tail), len(r.buf)-o)]
	if len(all) <= limit {
		return all
	}
	n := recordSize(all)
	for n < limit {
		next := recordSize(all[n:])
		if n+next > limit {
			break
		}
		n += next
	}
	return all[:n]
}

// consume gives n bytes back to the writer.
func (r *ring) consume(n int) { r.tail.Add(uint64(n)) }
