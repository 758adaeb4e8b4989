package dataplane

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onThread runs a test on a thread of its own, which ends with it, and skips where the kernel has no slices.
func onThread(t *testing.T) (attr func() unix.SchedAttr) {
	runtime.LockOSThread() // never unlocked
	attr = func() unix.SchedAttr {
		a, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return *a
	}
	if attr().Runtime == 0 {
		t.Skip("this kernel has one time slice for all threads (before Linux 6.12)")
	}
	return attr
}

// TestSchedule demands that a worker is of SCHED_BATCH while many frames come and not while few do, always with its slice and with nothing
// else changed, and as before in the end.
func TestSchedule(t *testing.T) {
	attr := onThread(t)
	before := attr()
	var s schedule
	end := s.begin()
	now := time.Duration(0)
	for i, c := range []struct {
		rate   int
		policy uint32
	}{
		{0, unix.SCHED_NORMAL}, {batchRate - 1000, unix.SCHED_NORMAL}, {batchRate + 1000, unix.SCHED_BATCH}, {quietRate + 1000, unix.SCHED_BATCH},
		{quietRate - 1000, unix.SCHED_NORMAL}, {quietRate + 1000, unix.SCHED_NORMAL}, {10 * batchRate, unix.SCHED_BATCH}, {0, unix.SCHED_NORMAL},
	} {
		for range 20 {
			now += time.Millisecond
			s.note(c.rate/1000, now)
		}
		if many := s.note(0, now); many != (c.policy == unix.SCHED_BATCH) {
			t.Errorf("step %d, %d frames a second: many %t", i, c.rate, many)
		}
		want := before
		want.Policy, want.Runtime = c.policy, uint64(workerSlice)
		if got := attr(); got != want {
			t.Errorf("step %d, %d frames a second: %+v, want %+v", i, c.rate, got, want)
		}
	}
	s.note(batchRate, now+rateTime)
	end()
	if got := attr(); got != before {
		t.Errorf("left %+v, want %+v", got, before)
	}
}

// TestScheduleOfOthers demands that a policy that somebody chose for the daemon is left alone.
func TestScheduleOfOthers(t *testing.T) {
	attr := onThread(t)
	if err := setSchedule(unix.SCHED_BATCH, 0); err != nil {
		t.Fatal(err)
	}
	before := attr()
	var s schedule
	end := s.begin()
	for i := range 100 {
		s.note(0, time.Duration(i)*time.Second)
	}
	if got := attr(); got != before {
		t.Errorf("%+v, was %+v", got, before)
	}
	end()
	if got := attr(); got != before {
		t.Errorf("left %+v, was %+v", got, before)
	}
}
