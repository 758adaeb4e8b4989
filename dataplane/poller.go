package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A poller waits for a worker's ports with epoll(7), level-triggered, and for a wake-up
// from other goroutines through an eventfd(2).
type poller struct {
	epoll  int
	event  *os.File // a File, so that a wake after close hits no foreign descriptor
	events [int(numSides) + 1]unix.EpollEvent
}

// wakeIndex marks the eventfd among the epoll events; the sides mark themselves.
const wakeIndex = int32(numSides)

type readiness struct {
	woken bool
	sides [numSides]bool
}

func newPoller(tapFD, underlayFD int) (*poller, error) {
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		unix.Close(event)
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	p := &poller{epoll: epoll, event: os.NewFile(uintptr(event), "eventfd")}
	for index, fd := range []int{int(TAP): tapFD, int(Underlay): underlayFD, int(wakeIndex): event} {
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(index)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			p.close()
			return nil, fmt.Errorf("epoll_ctl: fd %d: %w", fd, err)
		}
	}
	return p, nil
}

// wait blocks until something is ready.
func (p *poller) wait() (readiness, error) {
	var r readiness
	n, err := unix.EpollWait(p.epoll, p.events[:], -1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return r, fmt.Errorf("epoll_wait: %w", err)
	}
	for _, ev := range p.events[:max(n, 0)] {
		if ev.Fd != wakeIndex {
			r.sides[ev.Fd] = true
			continue
		}
		r.woken = true
		var b [8]byte
		p.event.Read(b[:]) // resets the counter
	}
	return r, nil
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
