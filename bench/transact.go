package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

const maxTransact = 1 << 16 // bytes

// Transact says what a TCP request/response trial does: one request at a time, the next when the last is answered. Zero values:
// Size 1.
type Transact struct {
	Size     int  // of requests and of responses, bytes, to 64 KiB
	Connect  bool // a connection for each
	Duration time.Duration
}

// TransactResult counts whole transactions. Latency is from the request, or the connecting, to the response or the end of the
// connection; one transaction waits for another, so a stall is in it once only.
type TransactResult struct {
	Count   uint64        `json:"count"`
	Elapsed time.Duration `json:"elapsed"` // ns in JSON
	Latency Latency       `json:"latency"`
	CPU     CPUTime       `json:"cpu"`
}

// Rate is transactions a second.
func (r TransactResult) Rate() float64 { return float64(r.Count) / r.Elapsed.Seconds() }

// Run makes one trial.
func (t Transact) Run(ctx context.Context, ends Ends) (r TransactResult, err error) {
	t.Size = max(t.Size, 1)
	if t.Size > maxTransact || t.Duration <= 0 {
		return r, fmt.Errorf("transact: %d bytes for %v: must be 1 to %d, and last", t.Size, t.Duration, maxTransact)
	}
	c, err := openTCP(ends)
	if err != nil {
		return r, fmt.Errorf("transact: %w", err)
	}
	defer func() { err = errors.Join(err, c.close()) }()
	defer quietRuntime()()
	if r, err = t.run(ctx, c); err != nil {
		err = fmt.Errorf("transact: %w", err)
	}
	return r, err
}

func (t Transact) run(ctx context.Context, c *conns) (r TransactResult, err error) {
	var halt atomic.Bool
	defer context.AfterFunc(ctx, func() { halt.Store(true) })()
	if !t.Connect {
		if err := c.dial(tcpWait); err != nil {
			return r, err
		}
	}
	before, err := readCPU()
	if err != nil {
		return r, err
	}
	if err := c.far.serve(t); err != nil {
		return r, err
	}
	r, err = t.ask(c, &halt)
	for _, fd := range c.client {
		err = errors.Join(err, unix.Shutdown(fd, unix.SHUT_WR))
	}
	err = errors.Join(err, c.far.finish(), ctx.Err())
	after, cpuErr := readCPU()
	r.CPU = after.since(before)
	return r, errors.Join(err, cpuErr)
}

// ask is the client, on its thread in its namespace: it connects there.
func (t Transact) ask(c *conns, halt *atomic.Bool) (r TransactResult, err error) {
	h, at := newHistogram(), c.ends.Client
	err = <-at.start(func() error {
		return at.in(func() error {
			if err := at.pin(); err != nil { // the namespace may have a thread of its own
				return err
			}
			begin := time.Now()
			for last := begin; r.Elapsed < t.Duration && !halt.Load(); r.Count++ {
				if err := t.once(c); err != nil {
					return err
				}
				now := time.Now()
				record(h, now.Sub(last))
				last, r.Elapsed = now, now.Sub(begin)
			}
			return nil
		})
	})
	r.Latency = summarize(h)
	return r, err
}

func record(h *hdrhistogram.Histogram, d time.Duration) { h.RecordValue(int64(min(d, maxLatency))) }

func (t Transact) once(c *conns) error {
	if !t.Connect {
		return t.exchange(c.client[0])
	}
	fd, err := dialTCP(c.ends.Client, c.ends.Server, c.port)
	if err != nil {
		return err
	}
	err = t.exchange(fd)
	if err == nil {
		// The server closes first, and keeps the TIME_WAIT that would use up the client's ports.
		err = readFull(fd, make([]byte, 1), tcpWait)
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	return errors.Join(err, unix.Close(fd))
}

func (t Transact) exchange(fd int) error {
	var b [1 << 10]byte
	for left := t.Size; left > 0; {
		n, err := rawWrite(fd, b[:min(left, len(b))])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("request: %w", err)
		}
		left -= n
	}
	for left := t.Size; left > 0; {
		n := min(left, len(b))
		if err := readFull(fd, b[:n], tcpWait); err != nil {
			return fmt.Errorf("response: %w", err)
		}
		left -= n
	}
	return nil
}

// readFull gives io.EOF iff the stream ends before the first byte. It waits at most about wait, or as long as the socket's timeout: that
// begins anew after each signal, and the Go runtime sends one every 10 ms to a thread that it knows to be running.
func readFull(fd int, b []byte, wait time.Duration) error {
	var interrupted time.Time // first
	for got := 0; got < len(b); {
		n, err := rawRead(fd, b[got:])
		switch {
		case errors.Is(err, unix.EINTR):
			if interrupted.IsZero() {
				interrupted = time.Now()
			} else if time.Since(interrupted) > wait {
				return unix.EAGAIN
			}
		case err != nil:
			return err
		case n == 0 && got == 0:
			return io.EOF
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		got += max(n, 0)
	}
	return nil
}
