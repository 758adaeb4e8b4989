package pmtu

import "time"

// A Liveness is what is known of a path besides its MTU: whether packets get there and back.
type Liveness uint8

// The states of a path.
const (
	Unproven Liveness = iota // no probe was answered yet: the peer may be one that answers none
	Up                       // probes are answered
	OneWay                   // they are not, although the peer is heard: what this node sends is lost, or its answers alone
	Silent                   // they are not, and nothing else comes from the peer
)

// String returns the state as it is shown.
func (l Liveness) String() string { return [...]string{"unproven", "up", "one-way", "silent"}[l] }

// Dead says that the path worked once and does not now.
func (l Liveness) Dead() bool { return l == OneWay || l == Silent }

// A Watch tells from probes and their answers whether a path is alive. Times are monotonic. The zero value is ready.
type Watch struct {
	proven  bool
	waiting bool
	since   time.Duration // when the first probe was sent after the last answer; valid iff waiting
	state   Liveness
	changed time.Duration // when state became what it is
}

// Sent notes a probe.
func (w *Watch) Sent(now time.Duration) {
	if !w.waiting {
		w.waiting, w.since = true, now
	}
}

// Answered notes an answer to any of the probes.
func (w *Watch) Answered(now time.Duration) {
	w.proven, w.waiting = true, false
	w.become(Up, now)
}

// Judge returns the state now. heard is when the peer was heard last, by whatever it sent; patience is how long probes may go
// unanswered on a path that is alive.
func (w *Watch) Judge(now, heard, patience time.Duration) Liveness {
	switch {
	case !w.proven || !w.waiting || now-w.since < patience:
	case now-heard < patience:
		w.become(OneWay, now)
	default:
		w.become(Silent, now)
	}
	return w.state
}

// Next returns when Judge may find the path dead, false while every probe is answered.
func (w *Watch) Next(patience time.Duration) (time.Duration, bool) {
	return w.since + patience, w.waiting && w.proven && !w.state.Dead()
}

// State returns what Judge found last, and since when.
func (w *Watch) State() (Liveness, time.Duration) { return w.state, w.changed }

func (w *Watch) become(s Liveness, now time.Duration) {
	if s != w.state {
		w.state, w.changed = s, now
	}
}
