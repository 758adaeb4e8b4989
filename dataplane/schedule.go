package dataplane

import (
	"time"

	"golang.org/x/sys/unix"
)

// workerSlice is how long a worker may run before another thread that wants its CPU does, the least that the kernel takes; its own choice is
// a millisecond or more. A worker that gives its CPU away loses its turn for as long as that: with a shorter one it gets back to its packets
// sooner, and a packet wakes it sooner where others compute.
const workerSlice = 100 * time.Microsecond

// A schedule is how the kernel runs a worker's thread. While few packets come, one that does takes the CPU for the worker from whoever has it.
// While many come it does not (SCHED_BATCH): who has it is likely to be who sends them, and each turn is worth more with what comes
// meanwhile.
type schedule struct {
	works  bool // the thread is scheduled as most are, and the kernel takes what is asked of it
	batch  bool // SCHED_BATCH now
	frames int  // read since
	since  time.Duration
}

const (
	batchRate = 50_000                // frames a second, from which on the worker is one of SCHED_BATCH,
	quietRate = 25_000                // until there are fewer than these
	rateTime  = 10 * time.Millisecond // over which they are counted, at least
)

// begin prepares the calling thread, and returns what undoes that.
func (s *schedule) begin() (end func()) {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL || setSchedule(unix.SCHED_NORMAL, workerSlice) != nil {
		return func() {}
	}
	s.works = true
	return func() { setSchedule(unix.SCHED_NORMAL, 0) }
}

// note counts the frames of a turn that began at a time, chooses by their rate, and says whether they are many.
func (s *schedule) note(frames int, now time.Duration) (many bool) {
	s.frames += frames
	took := now - s.since
	if took < rateTime {
		return s.batch
	}
	rate := float64(s.frames) / took.Seconds()
	s.frames, s.since = 0, now
	if want := rate >= batchRate || s.batch && rate >= quietRate; want != s.batch && s.works {
		s.works = s.choose(want) == nil
	}
	return s.batch
}

func (s *schedule) choose(batch bool) error {
	policy := uint32(unix.SCHED_NORMAL)
	if batch {
		policy = unix.SCHED_BATCH
	}
	s.batch = batch
	return setSchedule(policy, workerSlice)
}

// setSchedule sets the calling thread's policy and slice, 0 for the kernel's choice. Before Linux 6.12 the kernel has one slice for all threads, and
// takes no notice (kernel/sched/syscalls.c, __setparam_fair).
func setSchedule(policy uint32, slice time.Duration) error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return err
	}
	attr.Policy, attr.Runtime = policy, uint64(slice)
	return unix.SchedSetAttr(0, attr, 0)
}
