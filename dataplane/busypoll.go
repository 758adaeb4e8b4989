package dataplane

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A busyPoll decides whether a worker that has nothing to do looks for packets for a while before it sleeps. A thread that
// sleeps takes 10 to 20 us to wake on another CPU, which is more than a packet's way through the engine; a thread that looks in vain
// burns as much CPU. So it looks only as long as that finds something often enough.
//
// Where others compute on all CPUs there is nothing to spare: a thread that gives its CPU away gets it back after their slice, while one
// that sleeps is woken before them. So nothing is looked for while a CPU that was given away was lost for long again and again.
type busyPoll struct {
	budget time.Duration // of one look; 0 turns it off
	luck   int           // share of looks that found something, recent ones count most, in 1/luckScale
	idle   int           // waits since the last look

	losses int       // of the CPU for long, since first
	first  time.Time // of them
	until  time.Time // nothing is looked for
}

const (
	luckScale = 256
	luckStep  = 8   // a look moves luck by 1/luckStep of the way
	luckFloor = 64  // with less the worker sleeps at once,
	luckRetry = 32  // but for each of so many waits
	firstLuck = 128 // at the start

	longLoss   = time.Millisecond       // is no neighbour that has a packet to see to,
	manyLosses = 3                      // of them within
	lossTime   = 100 * time.Millisecond // are somebody who computes:
	restTime   = 300 * time.Millisecond // then nothing is looked for so long
)

// wanted reports whether the next wait is to begin with a look.
func (b *busyPoll) wanted() bool {
	if b.budget <= 0 {
		return false
	}
	b.idle++
	if !b.until.IsZero() {
		if time.Now().Before(b.until) {
			return false
		}
		b.until = time.Time{}
	}
	if b.luck < luckFloor && b.idle < luckRetry {
		return false
	}
	b.idle = 0
	return true
}

// learn notes whether a look found something.
func (b *busyPoll) learn(found bool) {
	target := 0
	if found {
		target = luckScale
	}
	b.luck += (target - b.luck) / luckStep
}

// lost notes for how long the CPU was given away, at a time.
func (b *busyPoll) lost(d time.Duration, now time.Time) {
	if d < longLoss {
		return
	}
	if now.Sub(b.first) > lossTime {
		b.losses, b.first = 0, now
	}
	if b.losses++; b.losses == manyLosses {
		b.until = now.Add(restTime)
	}
}

// flooded forgets losses: whoever took the CPU is likely to be who sends so many packets.
func (b *busyPoll) flooded() { b.losses, b.until = 0, time.Time{} }

// look polls without sleeping until something is ready or for at most the budget, and returns the number of events. Between
// two tries it gives the CPU to whoever else is runnable. The system calls are raw: the runtime's bookkeeping costs more than
// they do, and none of them blocks.
func (p *poller) look(budget time.Duration) int {
	start := time.Now()
	for last := start; ; {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), 0, 0, 0)
		now := time.Now()
		p.busy.lost(now.Sub(last), now)
		last = now
		if errno == 0 && n > 0 {
			return int(n)
		}
		if now.Sub(start) >= budget {
			return 0
		}
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}
