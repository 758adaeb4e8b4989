package bench

import (
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTCP(t *testing.T) {
	for _, flows := range []int{0, 1, 20} {
		for _, six := range []bool{false, true} {
			r, err := TCP{Flows: flows, WarmUp: 10 * time.Millisecond, Duration: 100 * time.Millisecond}.Run(deadline(t, 10*time.Second), selfEnds(t, six))
			if err != nil || r.Bytes < 1<<20 || r.Elapsed < 100*time.Millisecond {
				t.Errorf("%d flows: %+v, %v", flows, r, err)
			}
			t.Logf("%d flows: %.1f Gb/s", flows, r.Gbps())
		}
	}
}

func TestTransact(t *testing.T) {
	for _, tr := range []Transact{{}, {Size: 5000}, {Connect: true}, {Connect: true, Size: 1 << 16}} {
		for _, six := range []bool{false, true} {
			tr.Duration = 100 * time.Millisecond
			r, err := tr.Run(deadline(t, 10*time.Second), selfEnds(t, six))
			if err != nil || r.Count < 10 || r.Latency.Count != int64(r.Count) || r.Latency.P50 <= 0 {
				t.Errorf("%+v: %+v, %v", tr, r, err)
			}
			t.Logf("%+v: %.0f/s, %v", tr, r.Rate(), r.Latency.P50)
		}
	}
}

// A read that nobody answers ends, though signals keep the socket's own timeout from passing.
func TestReadFull(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(fds[:])
	defer quietRuntime()()
	if err := timeouts(fds[0], 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	read := func() error { return readFull(fds[0], b, 50*time.Millisecond) }
	if err := read(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing comes: %v", err)
	}
	go func() {
		rawWrite(fds[1], []byte("12"))
		time.Sleep(20 * time.Millisecond)
		rawWrite(fds[1], []byte("34"))
	}()
	if err := read(); err != nil || string(b) != "1234" {
		t.Errorf("in two pieces: %q, %v", b, err)
	}
	rawWrite(fds[1], []byte("5"))
	unix.Shutdown(fds[1], unix.SHUT_WR)
	if err := read(); err != io.ErrUnexpectedEOF {
		t.Errorf("cut short: %v", err)
	}
	if err := read(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}
