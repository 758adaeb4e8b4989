package pmtu

import "time"

// A kind says what a round of probes is to find out.
type kind uint8

const (
	none  kind = iota
	beat       // does the path still pass the MTU?
	doubt      // it did not, once: what does it pass?
	step       // bisection: does it pass the middle?
	grow       // does it pass more than the MTU at all?
)

const (
	// maxProbes bounds a round: a doubt's copies, the whole ladder, and the lowest size twice.
	maxProbes = doubtCopies + len(ladder) + 2

	// doubtCopies probes must be lost, and the beat before them, for the MTU to shrink: at a
	// random loss of 10 % that happens to one beat in a million.
	doubtCopies = 5

	// stagger parts the two bursts of a round: what overflowed a queue for the first has
	// drained by then, and on a fast path the second is seldom needed.
	stagger = 10 * time.Millisecond
)

// ladder holds sizes of the inner IP packet that common paths pass: jumbo frames, Ethernet
// with and without VXLAN (50 bytes) or UDP (28) around, PPPoE, WireGuard, GRE, and the
// minimum of IPv6, with a few between.
var ladder = [...]int{8000, 6000, 4000, 2000, 1500, 1450, 1430, 1400, 1370, 1320, 1280, 1200, 1000, 800}

// A try is one probe of a round.
type try struct {
	size  int
	seq   uint16 // valid iff sent
	state tryState
}

type tryState uint8

const (
	open tryState = iota
	passed
	refused
)

// A round is a handful of probes that answer one question together.
type round struct {
	kind     kind
	size     int // an answer of this size or more settles the round
	base     int // the MTU when the round began
	tries    [maxProbes]try
	n        int           // tries in the round
	burst    int           // the first burst is tries[:burst]
	sent     int           // tries[:sent] are sent
	cleared  bool          // an answer from before the round settled it
	wait     time.Duration // for an answer
	begun    time.Duration // when the first burst is due, or was sent
	deadline time.Duration // for the answer to the last try; valid iff all are sent
}

// begin starts a round with wait as the time that an answer may take.
func (r *round) begin(k kind, size, mtu int, now, wait time.Duration) {
	*r = round{kind: k, size: size, base: mtu, begun: now, wait: wait}
}

func (r *round) add(size int) {
	r.tries[r.n] = try{size: size}
	r.n++
}

// split ends the first burst.
func (r *round) split() { r.burst = r.n }

// next returns when the round has something to send or is over.
func (r *round) next() time.Duration {
	switch {
	case r.sent < r.burst:
		return r.begun
	case r.sent < r.n:
		return r.begun + stagger
	}
	return r.deadline
}

func (r *round) sendable(now time.Duration) bool {
	return r.kind != none && r.sent < r.n && now >= r.next()
}

// send returns the next try to be sent. Times count from here: the caller may be late.
func (r *round) send(now time.Duration) *try {
	if r.sent == 0 {
		r.begun = now
	}
	r.sent++
	r.deadline = now + r.wait
	return &r.tries[r.sent-1]
}

// over reports whether all that could be learnt by now is.
func (r *round) over(now time.Duration) bool { return r.sent == r.n && now >= r.deadline }

// answered notes an answer and reports whether it settles the round. One from before the
// round settles a doubt: it was late, not lost.
func (r *round) answered(seq uint16, size int) bool {
	t := r.find(seq)
	if t == nil && r.kind != doubt || r.kind == none {
		return false
	}
	if t != nil {
		t.state = passed
	} else if size >= r.size {
		r.cleared = true
	}
	return size >= r.size || r.complete()
}

// refused notes a refusal and reports whether it settles the round.
func (r *round) refused(seq uint16) bool {
	t := r.find(seq)
	if t == nil || r.kind == none {
		return false
	}
	t.state = refused
	return r.complete()
}

func (r *round) find(seq uint16) *try {
	for i := range r.tries[:r.sent] {
		if r.tries[i].seq == seq {
			return &r.tries[i]
		}
	}
	return nil
}

// complete reports whether every try has its outcome, and so was sent.
func (r *round) complete() bool {
	for i := range r.tries[:r.n] {
		if r.tries[i].state == open {
			return false
		}
	}
	return true
}

// best returns the largest size that passed, 0 for none, and the smallest that did not and
// is larger.
func (r *round) best() (pass, fail int) {
	for _, t := range r.tries[:r.n] {
		if t.state == passed {
			pass = max(pass, t.size)
		}
	}
	fail = r.size
	for _, t := range r.tries[:r.n] {
		if t.size > pass {
			fail = min(fail, t.size)
		}
	}
	return pass, fail
}
