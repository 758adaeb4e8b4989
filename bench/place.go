package bench

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Place is one end of a path.
type Place struct {
	Addr netip.Addr               // that the other end reaches it by
	In   func(func() error) error // runs a function in the namespace where sockets are to be made; nil for the caller's own
	CPU  int                      // that its threads are pinned to; negative for any
}

// Ends are the two places of a path: what is measured goes from Client to Server. With a Remote, Server is on another machine: only
// its address counts then, there are no one-way delays, and CPU times are the client's machine's.
type Ends struct {
	Client, Server Place
	Sources        []Place // where the sockets of UDP flows are made, in turn, such as several pods; Client if empty
	Remote         *Remote
}

// source is the place of flow number i.
func (e Ends) source(i int) Place {
	if len(e.Sources) == 0 {
		return e.Client
	}
	return e.Sources[i%len(e.Sources)]
}

func (p Place) in(f func() error) error {
	if p.In == nil {
		return f()
	}
	return p.In(f)
}

func (p Place) sockaddr(port int) unix.Sockaddr {
	if p.Addr.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: p.Addr.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: p.Addr.As16()}
}

func (p Place) domain() int {
	if p.Addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// CPUs lists the CPUs that this process may run on.
func CPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var cpus []int
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// start runs f on an OS thread of its own, pinned to the place's CPU, and sends its error. The thread ends with f, and its
// affinity with it.
func (p Place) start(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread would outlive f, pinned
			done <- <-p.start(f)
			runtime.UnlockOSThread()
			return
		}
		if err := p.pin(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return done
}

func (p Place) pin() error {
	// Sleeps of a paced sender are shorter than the 50 us that a thread may oversleep by default (prctl(2)).
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	if p.CPU < 0 {
		return nil
	}
	var set unix.CPUSet
	set.Set(p.CPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", p.CPU, err)
	}
	return nil
}

// sleep is nanosleep(2) without the Go scheduler, whose timers are less exact. A signal cuts it short.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	rawSleep(&ts)
}
