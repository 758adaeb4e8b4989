package bench

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// localTCP is a server's side in this process.
type localTCP struct {
	place    Place
	listener int // -1 for none
	opened   time.Time
	accepted []int
	counters []counter // of bytes, by connection
	threads  []<-chan error
}

// counter has a cache line of its own.
type counter struct {
	atomic.Uint64
	_ [56]byte
}

func (l *localTCP) open() (port int, err error) {
	l.opened = time.Now()
	err = l.place.in(func() (err error) {
		if l.listener, err = unix.Socket(l.place.domain(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		err = errors.Join(unix.Bind(l.listener, l.place.sockaddr(0)), unix.Listen(l.listener, MaxConnections), timeouts(l.listener, tcpWait))
		if err != nil {
			return err
		}
		name, err := unix.Getsockname(l.listener)
		port = portOf(name)
		return err
	})
	return port, err
}

func (l *localTCP) drain(connections int) error {
	l.counters = make([]counter, connections)
	for i := range connections {
		fd, err := l.accept(tcpPoll)
		if err != nil {
			return err
		}
		l.threads = append(l.threads, l.place.start(func() error { return drainTCP(fd, &l.counters[i].Uint64) }))
	}
	return nil
}

// accept takes a connection whose calls wait at most d.
func (l *localTCP) accept(d time.Duration) (int, error) {
	fd, err := accept(l.listener)
	if err != nil {
		return -1, err
	}
	l.accepted = append(l.accepted, fd)
	return fd, timeouts(fd, d)
}

func (l *localTCP) received() (bytes uint64, at time.Duration, err error) {
	for i := range l.counters {
		bytes += l.counters[i].Load()
	}
	return bytes, time.Since(l.opened), nil
}

func (l *localTCP) serve(t Transact) error {
	if t.Connect {
		l.threads = append(l.threads, l.place.start(func() error { return t.answerEach(l.listener) }))
		return nil
	}
	fd, err := l.accept(tcpWait)
	if err == nil {
		l.threads = append(l.threads, l.place.start(func() error { return t.answer(fd) }))
	}
	return err
}

// finish ends the listening, and waits for the ends of the connections, which are up to the client.
func (l *localTCP) finish() error {
	err := unix.Shutdown(l.listener, unix.SHUT_RDWR)
	for _, done := range l.threads {
		err = errors.Join(err, <-done)
	}
	l.threads = nil
	return err
}

// close ends a trial that nobody finished, too.
func (l *localTCP) close() error {
	if len(l.threads) > 0 {
		for _, fd := range l.accepted {
			unix.Shutdown(fd, unix.SHUT_RDWR) // no error that would matter: it may have ended by itself
		}
		l.finish()
	}
	failed := closeAll(append(l.accepted, l.listener))
	l.accepted, l.listener = nil, -1
	return failed
}

// drainTCP reads to the end of the stream.
func drainTCP(fd int, received *atomic.Uint64) error {
	b := make([]byte, 2*tcpChunk)
	for {
		n, err := unix.Read(fd, b)
		switch {
		case err == nil && n == 0:
			return nil
		case err == nil:
			received.Add(uint64(n))
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("read: %w", err)
		}
	}
}

// answerEach answers the one request of each connection and closes it, until the listening ends.
func (t Transact) answerEach(listener int) error {
	b := make([]byte, t.Size)
	for {
		fd, err := accept(listener)
		if errors.Is(err, unix.EINVAL) { // no longer listening
			return nil
		}
		if err != nil {
			return err
		}
		if err = readFull(fd, b, tcpWait); err == nil {
			_, err = rawWrite(fd, b)
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

// answer answers a connection's requests until it ends.
func (t Transact) answer(fd int) error {
	b := make([]byte, t.Size)
	for {
		err := readFull(fd, b, tcpWait)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			_, err = rawWrite(fd, b)
		}
		if err != nil {
			return err
		}
	}
}
