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

// conns are the sockets of a trial.
type conns struct {
	ends           Ends
	listener, port int
	client, server []int
}

// listenTCP makes the server's listener.
func listenTCP(ends Ends) (*conns, error) {
	c := &conns{ends: ends, listener: -1}
	err := ends.Server.in(func() (err error) {
		if c.listener, err = unix.Socket(ends.Server.domain(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(c.listener, ends.Server.sockaddr(0)), unix.Listen(c.listener, MaxConnections), timeouts(c.listener, tcpWait)); err != nil {
			return err
		}
		name, err := unix.Getsockname(c.listener)
		c.port = portOf(name)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), c.close())
	}
	return c, nil
}

// timeouts bounds each call on fd.
func timeouts(fd int, d time.Duration) error {
	t := unix.NsecToTimeval(int64(d))
	return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t))
}

// open makes one connection; its calls wait at most d.
func (c *conns) open(d time.Duration) error {
	fd, err := c.dial()
	if err != nil {
		return err
	}
	c.client = append(c.client, fd)
	other, err := accept(c.listener)
	if err != nil {
		return err
	}
	c.server = append(c.server, other)
	return errors.Join(timeouts(fd, d), timeouts(other, d))
}

// dial connects in the client's namespace.
func (c *conns) dial() (fd int, err error) {
	err = c.ends.Client.in(func() error { fd, err = dialTCP(c.ends.Client, c.ends.Server, c.port); return err })
	return fd, err
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

func (c *conns) close() error {
	var failed error
	for _, fds := range [][]int{c.client, c.server, {c.listener}} {
		for _, fd := range fds {
			if fd >= 0 {
				failed = errors.Join(failed, unix.Close(fd))
			}
		}
	}
	return failed
}

// Run makes one trial: all of the client's connections write as much as they can. An error means that ctx ended or a connection
// failed.
func (t TCP) Run(ctx context.Context, ends Ends) (r TCPResult, err error) {
	t.Flows = max(t.Flows, 1)
	if t.Flows > MaxConnections || t.Duration <= 0 {
		return r, fmt.Errorf("tcp: %d flows for %v: must be 1 to %d, and last", t.Flows, t.Duration, MaxConnections)
	}
	c, err := listenTCP(ends)
	if err != nil {
		return r, fmt.Errorf("tcp: %w", err)
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for range t.Flows {
		if err := c.open(tcpPoll); err != nil {
			return r, fmt.Errorf("tcp: %w", err)
		}
	}
	if r, err = t.stream(ctx, c); err != nil {
		err = fmt.Errorf("tcp: %w", err)
	}
	return r, err
}

func (t TCP) stream(ctx context.Context, c *conns) (r TCPResult, err error) {
	var halt atomic.Bool
	received := make([]counter, t.Flows)
	var threads []<-chan error
	for i := range t.Flows {
		threads = append(threads, c.ends.Server.start(func() error { return drainTCP(c.server[i], &received[i].Uint64) }),
			c.ends.Client.start(func() error { return fillTCP(c.client[i], &halt) }))
	}
	r, err = t.watch(ctx, received)
	halt.Store(true)
	for _, done := range threads {
		err = errors.Join(err, <-done)
	}
	for _, fd := range c.client {
		info, infoErr := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if infoErr != nil {
			return r, errors.Join(err, infoErr)
		}
		r.Retransmits += uint64(info.Total_retrans)
	}
	return r, err
}

// counter has a cache line of its own.
type counter struct {
	atomic.Uint64
	_ [56]byte
}

// watch waits for the warm-up and measures from then on.
func (t TCP) watch(ctx context.Context, received []counter) (r TCPResult, err error) {
	total := func() (n uint64) {
		for i := range received {
			n += received[i].Load()
		}
		return n
	}
	if err := pause(ctx, t.WarmUp); err != nil {
		return r, err
	}
	before, err := readCPU()
	start, bytes := time.Now(), total()
	if err := errors.Join(err, pause(ctx, t.Duration)); err != nil {
		return r, err
	}
	r.Bytes, r.Elapsed = total()-bytes, time.Since(start)
	after, err := readCPU()
	r.CPU = after.since(before)
	return r, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
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
