package dataplane

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A busyPoll decides whether a worker that has nothing to do looks for packets for a while before it sleeps. A thread that
// sleeps takes 10 to 20 us to wake on another CPU, which is more than a packet's way through the engine; a thread that looks in vain
// burns as much CPU. So it looks only as long as that finds something often enough.
type busyPoll struct {
	budget time.Duration // of one look; 0 turns it off
	luck   int           // share of looks that found something, recent ones count most, in 1/luckScale
	idle   int           // waits since the last look
}

const (
	luckScale = 256
	luckStep  = 8   // a look moves luck by 1/luckStep of the way
	luckFloor = 64  // with less the worker sleeps at once,
	luckRetry = 32  // but for each of so many waits
	firstLuck = 128 // at the start
)

// wanted reports whether the next wait is to begin with a look.
func (b *busyPoll) wanted() bool {
	if b.budget <= 0 {
		return false
	}
	b.idle++
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

// workerSlice is how long a worker may run before another thread that wants its CPU does, the least that the kernel takes; its own choice is
// a millisecond or more. A worker that gives its CPU away loses its turn for as long as that: with a shorter one it gets back to its packets
// sooner, and a packet wakes it sooner where others compute.
const workerSlice = 100 * time.Microsecond

// setSlice sets the calling thread's, 0 for the kernel's choice. Before Linux 6.12 the kernel has one for all threads, and takes no notice
// (kernel/sched/syscalls.c, __setparam_fair).
func setSlice(d time.Duration) error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return err
	}
	attr.Runtime = uint64(d)
	return unix.SchedSetAttr(0, attr, 0)
}

// look polls without sleeping until something is ready or for at most the budget, and returns the number of events. Between
// two tries it gives the CPU to whoever else is runnable. The system calls are raw: the runtime's bookkeeping costs more than
// they do, and none of them blocks.
func (p *poller) look(budget time.Duration) int {
	for start := time.Now(); ; {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), 0, 0, 0)
		if errno == 0 && n > 0 {
			return int(n)
		}
		if time.Since(start) >= budget {
			return 0
		}
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}
