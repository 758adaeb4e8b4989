package tables

import (
	"sync/atomic"
	"time"
)

// activityStep is how old a note may be, so that workers seldom write what others read.
const activityStep = 10 * time.Millisecond

// An Activity is when a peer was last heard, and when traffic last went to it or came from it, on the engine's clock. It is the one part of the
// tables that workers write. Its methods are safe for concurrent use; the zero value is a peer of which nothing was heard.
type Activity struct {
	heard, carried atomic.Int64
}

// Hear notes a packet of the peer's that its source check let through. data says that it is traffic, and not ICMP.
func (a *Activity) Hear(now time.Duration, data bool) {
	if a == nil {
		return
	}
	note(&a.heard, now)
	if data {
		note(&a.carried, now)
	}
}

// Carry notes traffic to the peer.
func (a *Activity) Carry(now time.Duration) {
	if a != nil {
		note(&a.carried, now)
	}
}

func note(at *atomic.Int64, now time.Duration) {
	if last := at.Load(); last == 0 || int64(now)-last >= int64(activityStep) {
		at.Store(int64(now))
	}
}

// Heard returns when the peer was heard last, false when it never was.
func (a *Activity) Heard() (time.Duration, bool) { return noted(&a.heard) }

// Carried returns when traffic went to the peer or came from it, false when none did.
func (a *Activity) Carried() (time.Duration, bool) { return noted(&a.carried) }

func noted(at *atomic.Int64) (time.Duration, bool) {
	n := at.Load()
	return time.Duration(n), n != 0
}
