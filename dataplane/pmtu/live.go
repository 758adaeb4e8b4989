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

// beats is how many probes in a row, sent at different times, have to be lost on a path that is dead. Time alone proves nothing: this process
// may have stood still.
const beats = 3

// Patience says how long a Watch waits.
type Patience struct {
	Answers time.Duration // may be missing for so long on a path that is alive
	// Quiet is for how long nothing may come from a peer that is heard after all: between two of its probes when it has nothing else to send.
	Quiet time.Duration
}

// A Watch tells from probes and their answers whether a path is alive. Times are monotonic. The zero value is ready.
type Watch struct {
	proven  bool
	lost    int           // probes since the last answer, sent at different times
	since   time.Duration // when the first of them was sent; valid iff lost > 0
	last    time.Duration // when the last one was; valid iff lost > 0
	state   Liveness
	changed time.Duration // when state became what it is
}

// Sent notes a probe.
func (w *Watch) Sent(now time.Duration) {
	switch {
	case w.lost == 0:
		w.since = now
	case now == w.last:
		return
	}
	w.lost, w.last = w.lost+1, now
}

// Answered notes an answer to any of the probes.
func (w *Watch) Answered(now time.Duration) {
	w.proven, w.lost = true, 0
	w.become(Up, now)
}

// Judge returns the state now. heard is when the peer was heard last, by whatever it sent. A path that is found one-way stays so until the
// peer has been quiet for long, so that a peer with little to say is not taken for silent between two packets.
func (w *Watch) Judge(now, heard time.Duration, p Patience) Liveness {
	quiet := p.Answers
	if w.state == OneWay {
		quiet = max(quiet, p.Quiet)
	}
	switch {
	case !w.proven || w.lost < beats || now-w.since < p.Answers:
	case now-heard < quiet:
		w.become(OneWay, now)
	default:
		w.become(Silent, now)
	}
	return w.state
}

// Next returns when Judge may find the path dead, false while it cannot.
func (w *Watch) Next(p Patience) (time.Duration, bool) {
	return w.since + p.Answers, w.lost >= beats && w.proven && !w.state.Dead()
}

// State returns what Judge found last, and since when.
func (w *Watch) State() (Liveness, time.Duration) { return w.state, w.changed }

func (w *Watch) become(s Liveness, now time.Duration) {
	if s != w.state {
		w.state, w.changed = s, now
	}
}
