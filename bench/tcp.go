package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxConnections is the most that a TCP trial may have: each has a thread at both ends.
	MaxConnections = 256
	tcpChunk       = 128 << 10              // bytes of one write
	tcpPoll        = 100 * time.Millisecond // SO_RCVTIMEO and SO_SNDTIMEO of a stream
	tcpWait        = 5 * time.Second        // for a connection, and for an answer
)

// TCP says what a TCP stream trial does. Zero values: Flows 1.
type TCP struct {
	Flows    int
	WarmUp   time.Duration // not counted: until the windows are open
	Duration time.Duration
}

// TCPResult counts what the server read while the trial lasted.
type TCPResult struct {
	Bytes       uint64        `json:"bytes"`
	Elapsed     time.Duration `json:"elapsed"`     // ns in JSON
	Retransmits uint64        `json:"retransmits"` // of the client, warm-up included
	CPU         CPUTime       `json:"cpu"`
}

// Gbps is the rate of payload in 10^9 bits a second.
func (r TCPResult) Gbps() float64 { return float64(r.Bytes) * 8 / r.Elapsed.Seconds() / 1e9 }

// farTCP is the server's side of one trial, in this process or in another.
type farTCP interface {
	open() (port int, err error)
	drain(connections int) error                           // accepts so many, and reads them
	received() (bytes uint64, at time.Duration, err error) // so far; at is by the server's clock
	serve(t Transact) error                                // answers requests
	finish() error                                         // the client is done
	close() error
}

func (e Ends) farTCP() farTCP {
	if e.Remote != nil {
		return remoteTCP{e.Remote}
	}
	return &localTCP{place: e.Server, listener: -1}
}

// conns are the client's connections of a trial, and the server that they are with.
type conns struct {
	ends   Ends
	far    farTCP
	port   int
	client []int
}

func openTCP(ends Ends) (*conns, error) {
	c := &conns{ends: ends, far: ends.farTCP()}
	var err error
	if c.port, err = c.far.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), c.far.close())
	}
	return c, nil
}

// dial makes a connection whose calls wait at most d.
func (c *conns) dial(d time.Duration) error {
	return c.ends.Client.in(func() error {
		fd, err := dialTCP(c.ends.Client, c.ends.Server, c.port)
		if err == nil {
			c.client = append(c.client, fd)
			err = timeouts(fd, d)
		}
		return err
	})
}

func (c *conns) close() error {
	failed := closeAll(c.client)
	return errors.Join(failed, c.far.close())
}

func closeAll(fds []int) (failed error) {
	for _, fd := range fds {
		if fd >= 0 {
			failed = errors.Join(failed, unix.Close(fd))
		}
	}
	return failed
}

// timeouts bounds each call on fd.
func timeouts(fd int, d time.Duration) error {
	t := unix.NsecToTimeval(int64(d))
	return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t))
}

// dialTCP connects in the caller's namespace.
func dialTCP(from, to Place, port int) (int, error) {
	fd, err := unix.Socket(from.domain(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(timeouts(fd, tcpWait), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err == nil {
		err = again(func() error { return unix.Connect(fd, to.sockaddr(port)) })
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("connect: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func accept(listener int) (fd int, err error) {
	err = again(func() error { fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); return err })
	if err != nil {
		return -1, fmt.Errorf("accept: %w", err)
	}
	return fd, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// again repeats a call that a signal interrupted: the Go runtime sends some. A connect that it interrupted goes on by itself.
func again(call func() error) error {
	for {
		err := call()
		if errors.Is(err, unix.EISCONN) {
			return nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EALREADY) {
			return err
		}
	}
}

// Run makes one trial: all of the client's connections write as much as they can. An error means that ctx ended or a connection
// failed.
func (t TCP) Run(ctx context.Context, ends Ends) (r TCPResult, err error) {
	t.Flows = max(t.Flows, 1)
	if t.Flows > MaxConnections || t.Duration <= 0 {
		return r, fmt.Errorf("tcp: %d flows for %v: must be 1 to %d, and last", t.Flows, t.Duration, MaxConnections)
	}
	c, err := openTCP(ends)
	if err != nil {
		return r, fmt.Errorf("tcp: %w", err)
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for range t.Flows {
		if err := c.dial(tcpPoll); err != nil {
			return r, fmt.Errorf("tcp: %w", err)
		}
	}
	if r, err = t.stream(ctx, c); err != nil {
		err = fmt.Errorf("tcp: %w", err)
	}
	return r, err
}

func (t TCP) stream(ctx context.Context, c *conns) (r TCPResult, err error) {
	if err := c.far.drain(t.Flows); err != nil {
		return r, err
	}
	var halt atomic.Bool
	var threads []<-chan error
	for _, fd := range c.client {
		threads = append(threads, c.ends.Client.start(func() error { return fillTCP(fd, &halt) }))
	}
	r, err = t.watch(ctx, c.far)
	halt.Store(true)
	for _, done := range threads {
		err = errors.Join(err, <-done)
	}
	err = errors.Join(err, c.far.finish())
	for _, fd := range c.client {
		info, infoErr := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if infoErr != nil {
			return r, errors.Join(err, infoErr)
		}
		r.Retransmits += uint64(info.Total_retrans)
	}
	return r, err
}

// watch waits for the warm-up and measures from then on.
func (t TCP) watch(ctx context.Context, far farTCP) (r TCPResult, err error) {
	if err := pause(ctx, t.WarmUp); err != nil {
		return r, err
	}
	before, err := readCPU()
	if err != nil {
		return r, err
	}
	bytes, start, err := far.received()
	if err := errors.Join(err, pause(ctx, t.Duration)); err != nil {
		return r, err
	}
	total, end, err := far.received()
	r.Bytes, r.Elapsed = total-bytes, end-start
	after, cpuErr := readCPU()
	r.CPU = after.since(before)
	return r, errors.Join(err, cpuErr)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// fillTCP writes until it is halted and ends the stream.
func fillTCP(fd int, halt *atomic.Bool) error {
	b := make([]byte, tcpChunk)
	for !halt.Load() {
		if _, err := unix.Write(fd, b); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("write: %w", err)
		}
	}
	return unix.Shutdown(fd, unix.SHUT_WR)
}
