package dataplane

import (
	"testing"
	"time"
)

// looks returns how many of n waits begin with a look that finds something, or finds nothing.
func (b *busyPoll) looks(n int, found bool) (looks int) {
	for range n {
		if b.wanted() {
			looks++
			b.learn(found)
		}
	}
	return looks
}

func TestBusyPoll(t *testing.T) {
	b := busyPoll{budget: time.Microsecond, luck: firstLuck}
	if n := b.looks(1000, true); n != 1000 {
		t.Errorf("%d of 1000 waits looked though each look finds something", n)
	}
	b.looks(30, false)
	if n := b.looks(32*luckRetry, false); n != 32 {
		t.Errorf("%d looks in %d waits that find nothing, want one in %d", n, 32*luckRetry, luckRetry)
	}
	b.looks(10*luckRetry, true)
	if n := b.looks(1000, true); n != 1000 {
		t.Errorf("%d of 1000 waits looked after packets came back", n)
	}
	for range 1000 { // every second look finds something: worth it
		b.looks(1, true)
		b.looks(1, false)
	}
	if n := b.looks(1, true); n != 1 {
		t.Error("no look, though every second one found something")
	}
	off := busyPoll{luck: luckScale}
	if n := off.looks(100, true); n != 0 {
		t.Errorf("%d looks without a budget", n)
	}
}

// A poller that looks finds what one that sleeps finds: what is ready, what comes while it looks, wake-ups, and nothing once the
// time is up.
func TestPollerLooks(t *testing.T) {
	for _, budget := range []time.Duration{0, time.Millisecond, time.Second} {
		t.Run(budget.String(), func(t *testing.T) {
			port := newMemPort(t)
			p, err := newPoller([numSides]Port{TAP: port}, budget)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			check := func(what string, timeout time.Duration, want readiness) {
				t.Helper()
				got, err := p.wait(timeout)
				if err != nil || got != want {
					t.Errorf("%s: %+v, %v; want %+v", what, got, err, want)
				}
			}
			readable := readiness{sides: [numSides]bool{TAP: true}}
			if budget < time.Second {
				check("nothing", 0, readiness{})
			}
			port.signal(true)
			check("ready", -1, readable)
			check("still ready", -1, readable)
			port.signal(false)
			signalled := make(chan struct{})
			time.AfterFunc(5*time.Millisecond, func() { port.signal(true); close(signalled) })
			check("later", -1, readable)
			<-signalled
			port.signal(false)
			p.wake()
			check("woken", -1, readiness{woken: true})
			if (budget > 0) != (p.busy.luck > firstLuck) {
				t.Errorf("luck is %d after looks that found something", p.busy.luck)
			}
		})
	}
}

// TestBusyPollRests demands that nothing is looked for once the CPU was lost for long three times in a short time, for a second.
func TestBusyPollRests(t *testing.T) {
	now := time.Now()
	b := busyPoll{budget: time.Microsecond, luck: luckScale}
	for i := range 100 {
		b.lost(longLoss-1, now)
		b.lost(2*longLoss, now.Add(time.Duration(i)*(lossTime+1)))
	}
	if !b.wanted() {
		t.Error("nothing is looked for after losses that were short or far between")
	}
	for range manyLosses {
		b.lost(longLoss, now)
	}
	if b.looks(1000, true) != 0 {
		t.Error("looked after losses")
	}
	b.flooded()
	if b.looks(1, true) != 1 {
		t.Error("nothing is looked for in a flood")
	}
	for range manyLosses {
		b.lost(longLoss, now)
	}
	b.until = now.Add(-time.Nanosecond)
	if b.looks(1000, true) != 1000 {
		t.Error("nothing is looked for after the rest")
	}
}
