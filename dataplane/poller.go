package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A poller waits for a worker's ports with epoll(7), level-triggered, and for a wake-up
// from other goroutines through an eventfd(2).
type poller struct {
	epoll  int
	event  *os.File // a File, so that a wake after close hits no foreign descriptor
	events [maxEvents]unix.EpollEvent
	pods   [maxEvents]uint32 // the numbers of the ports of pods that the last wait found
	busy   busyPoll
}

const (
	// wakeIndex marks the eventfd among the epoll events; the sides mark themselves, and ports of pods their number behind podIndex.
	wakeIndex = int32(numSides)
	podIndex  = wakeIndex

	// maxEvents bounds what one wait finds. The kernel goes round what is ready, so more ports wait no longer than their turn.
	maxEvents = 64
)

type readiness struct {
	woken bool
	sides [numSides]bool
	pods  int // of poller.pods
}

// newPoller polls the ports that are not nil, and looks for so long before it sleeps.
func newPoller(ports [numSides]Port, look time.Duration) (*poller, error) {
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		unix.Close(event)
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	p := &poller{epoll: epoll, event: os.NewFile(uintptr(event), "eventfd"), busy: busyPoll{budget: look, luck: firstLuck}}
	err = p.add(event, wakeIndex)
	for side, port := range ports {
		if port != nil && err == nil {
			err = p.add(port.FD(), int32(side))
		}
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *poller) add(fd int, index int32) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: index}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: fd %d: %w", fd, err)
	}
	return nil
}

// remove takes a descriptor out that add has put in. The kernel has done so by itself where it was closed.
func (p *poller) remove(fd int) { unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil) }

// wait blocks until something is ready, or for at most timeout; a negative one is none.
func (p *poller) wait(timeout time.Duration) (readiness, error) {
	var r readiness
	n := 0
	if p.busy.wanted() {
		n = p.look(p.busy.budget)
		p.busy.learn(n > 0)
	}
	if n == 0 {
		var err error
		if n, err = p.sleep(timeout); err != nil {
			return r, err
		}
	}
	for _, ev := range p.events[:n] {
		if ev.Fd < wakeIndex {
			r.sides[ev.Fd] = true
			continue
		}
		if ev.Fd > podIndex {
			p.pods[r.pods] = uint32(ev.Fd - podIndex)
			r.pods++
			continue
		}
		r.woken = true
		var b [8]byte
		p.event.Read(b[:]) // resets the counter
	}
	return r, nil
}

func (p *poller) sleep(timeout time.Duration) (int, error) {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(p.epoll, p.events[:], ms)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("epoll_wait: %w", err)
	}
	return max(n, 0), nil
}

// wake makes wait return. It may be called from any goroutine.
func (p *poller) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	p.event.Write(one[:]) // fails only after close
}

func (p *poller) close() {
	unix.Close(p.epoll)
	p.event.Close()
}
