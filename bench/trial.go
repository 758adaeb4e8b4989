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
	client Place
	far    farUDP
	stream Stream
	tx     *sender
	rx     *sink // the client's, iff the stream is echoed
	halt   atomic.Bool
	sent   atomic.Uint64
}

func (t *trial) run(ctx context.Context) (r UDPResult, err error) {
	defer context.AfterFunc(ctx, func() { t.halt.Store(true) })()
	defer quietRuntime()()
	before, err := readCPU()
	if err != nil {
		return r, err
	}
	h, err := t.threads()
	err = errors.Join(err, ctx.Err())
	after, cpuErr := readCPU()
	return UDPResult{Offered: t.stream.Rate, Elapsed: t.tx.elapsed, Sent: t.tx.next, Counts: h.Counts, Refused: t.tx.refused,
		SocketDrops: h.SocketDrops, Latency: h.Latency, Late: summarize(t.tx.late), CPU: after.since(before)}, errors.Join(err, cpuErr)
}

// threads runs both sides to their ends.
func (t *trial) threads() (h heard, err error) {
	id, begin := rand.Uint32(), time.Now()
	t.tx.trial, t.tx.halt, t.tx.begin = id, &t.halt, begin
	if err := t.far.start(id, t.stream, begin); err != nil {
		return h, err
	}
	var near *listening
	if t.rx != nil {
		t.rx.trial, t.rx.sent, t.rx.begin = id, &t.sent, begin
		near, err = listen(t.client, t.rx)
	}
	if err == nil {
		err = <-t.client.start(t.tx.launch)
	}
	t.sent.Store(t.tx.next + 1)
	if near != nil {
		echoed, nearErr := near.finish()
		_, farErr := t.far.finish(t.tx.next)
		return echoed, errors.Join(err, nearErr, farErr)
	}
	h, farErr := t.far.finish(t.tx.next)
	return h, errors.Join(err, farErr)
}

// listening is a sink at work.
type listening struct {
	sink  *sink
	drops uint64 // of its socket, before
	done  <-chan error
}

func listen(at Place, k *sink) (*listening, error) {
	drops, err := socketDrops(k.fd)
	if err != nil {
		return nil, err
	}
	return &listening{k, drops, at.start(k.run)}, nil
}

// finish waits for the sink, which has been told how many were sent.
func (l *listening) finish() (heard, error) {
	err := <-l.done
	drops, dropsErr := socketDrops(l.sink.fd)
	return heard{l.sink.counts, drops - l.drops, summarize(l.sink.latency)}, errors.Join(err, dropsErr)
}

// localUDP is a server's side in this process.
type localUDP struct {
	place Place
	fd    int // -1 for none

	sent      *atomic.Uint64
	listening *listening   // iff the stream is not echoed
	stop      *atomic.Bool // of the mirror
	reflected <-chan error // iff the stream is echoed
}

func (u *localUDP) open() (port int, err error) {
	err = u.place.in(func() error {
		if u.fd, err = udpSocket(u.place); err != nil {
			return err
		}
		name, err := unix.Getsockname(u.fd)
		port = portOf(name)
		return err
	})
	return port, err
}

func (u *localUDP) start(trial uint32, s Stream, begin time.Time) (err error) {
	if s.Echo {
		u.stop = new(atomic.Bool)
		m := &mirror{fd: u.fd, batch: newBatch(sinkBatch, s.largest()+1, true), stop: u.stop}
		u.reflected = u.place.start(m.run)
		return nil
	}
	u.sent = new(atomic.Uint64)
	k := newSink(s, u.fd)
	k.trial, k.sent, k.begin = trial, u.sent, begin
	u.listening, err = listen(u.place, k)
	return err
}

func (u *localUDP) finish(sent uint64) (h heard, err error) {
	if u.reflected != nil {
		u.stop.Store(true)
		err = <-u.reflected
		u.reflected = nil
		return h, err
	}
	if u.listening == nil {
		return h, errors.New("finish a trial: none was started")
	}
	u.sent.Store(sent + 1)
	h, err = u.listening.finish()
	u.listening = nil
	return h, err
}

// close ends a trial that nobody finished, too.
func (u *localUDP) close() (err error) {
	if u.reflected != nil || u.listening != nil {
		_, err = u.finish(0)
	}
	if u.fd >= 0 {
		err = errors.Join(err, unix.Close(u.fd))
		u.fd = -1
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
