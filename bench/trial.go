package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trial is one stream on its way: threads that share nothing but how many were sent, once that is known.
type trial struct {
	ends   Ends
	stream Stream
	tx     *sender
	rx     *sink
	mirror *mirror // iff the stream is echoed: rx is the client's then
	halt   atomic.Bool
	sent   atomic.Uint64
}

func (t *trial) run(ctx context.Context) (r UDPResult, err error) {
	id := rand.Uint32()
	t.tx.trial, t.tx.halt, t.rx.trial, t.rx.sent = id, &t.halt, id, &t.sent
	defer context.AfterFunc(ctx, func() { t.halt.Store(true) })()
	defer quietRuntime()()
	drops, err := socketDrops(t.rx.fd)
	if err != nil {
		return r, err
	}
	before, err := readCPU()
	if err != nil {
		return r, err
	}
	err = errors.Join(t.threads(), ctx.Err())
	after, cpuErr := readCPU()
	now, dropsErr := socketDrops(t.rx.fd)
	return UDPResult{Offered: t.stream.Rate, Elapsed: t.tx.elapsed, Sent: t.tx.next, Counts: t.rx.counts, Refused: t.tx.refused,
		SocketDrops: now - drops, Latency: summarize(t.rx.latency), CPU: after.since(before)}, errors.Join(err, cpuErr, dropsErr)
}

// threads runs sender, sink and mirror to their ends.
func (t *trial) threads() error {
	t.tx.begin = time.Now()
	t.rx.begin = t.tx.begin
	sinkAt := t.ends.Server
	var stop atomic.Bool
	reflected := make(<-chan error)
	if t.mirror != nil {
		sinkAt, t.mirror.stop = t.ends.Client, &stop
		reflected = t.ends.Server.start(t.mirror.run)
	}
	received := sinkAt.start(t.rx.run)
	err := <-t.ends.Client.start(t.tx.launch)
	t.sent.Store(t.tx.next + 1)
	err = errors.Join(err, <-received)
	if t.mirror != nil {
		stop.Store(true)
		err = errors.Join(err, <-reflected)
	}
	return err
}

// mirror sends back what comes, as it is.
type mirror struct {
	fd    int
	batch *batch
	stop  *atomic.Bool
}

func (m *mirror) run() error {
	for !m.stop.Load() {
		m.batch.reset()
		n, errno := m.batch.receive(m.fd)
		switch errno {
		case 0:
		case unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED:
			continue
		default:
			return fmt.Errorf("echo: receive: %w", errno)
		}
		for i := range n {
			m.batch.size(i, int(m.batch.msgs[i].len))
		}
		m.batch.send(m.fd, n) // what the kernel does not take is lost, as on the way
	}
	return nil
}

var runtimeQuiet struct {
	sync.Mutex
	users, procs, percent int
}

// quietRuntime collects garbage now and then not before the returned function has been called. Threads that wait in the kernel
// hold a P each, so there have to be more of those than the generators have threads.
func quietRuntime() (restore func()) {
	const threads = 8
	q := &runtimeQuiet
	q.Lock()
	defer q.Unlock()
	if q.users++; q.users == 1 {
		runtime.GC()
		q.procs, q.percent = runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), threads)), debug.SetGCPercent(-1)
	}
	return func() {
		q.Lock()
		defer q.Unlock()
		if q.users--; q.users == 0 {
			debug.SetGCPercent(q.percent)
			runtime.GOMAXPROCS(q.procs)
		}
	}
}

// socketDrops is how many datagrams a socket had no room for since it was made: SO_MEMINFO of socket(7), an array of 32-bit words
// of which linux/sock_diag.h calls this one SK_MEMINFO_DROPS.
func socketDrops(fd int) (uint64, error) {
	const drops = 8
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("read SO_MEMINFO: %w", errno)
	}
	return uint64(info[drops]), nil
}

// Together runs two streams at the same time.
func Together(ctx context.Context, a *UDP, one Stream, b *UDP, other Stream) (first, second UDPResult, err error) {
	done := make(chan error, 1)
	go func() {
		var err error
		second, err = b.Run(ctx, other)
		done <- err
	}()
	first, err = a.Run(ctx, one)
	return first, second, errors.Join(err, <-done)
}
