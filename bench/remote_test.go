package bench_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
)

// serving is a server in this process, and the address that it listens at.
func serving(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bench.Serve(ctx, l, -1) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) bench.Ends {
	t.Helper()
	ends, err := bench.Dial(within(t, 5*time.Second), addr, -1)
	if err != nil {
		t.Fatal(err)
	}
	return ends
}

// sockets counts this process's.
func sockets(t *testing.T) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

// A server somewhere else counts as one in this process does, and keeps nothing when its client is gone.
func TestRemote(t *testing.T) {
	addr := serving(t)
	before := sockets(t)
	ends := dial(t, addr)
	u, err := bench.OpenUDP(ends, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []bench.Stream{{}, {Flows: 3}, {Segments: 8}, {Latency: true, Echo: true}, {Latency: true}} {
		s.Rate, s.Duration, s.All = 2000, 100*time.Millisecond, true
		r, err := u.Run(within(t, 10*time.Second), s)
		if err != nil || r.Sent != 200 || r.Received != 200 || r.Foreign+r.Duplicates+r.Reordered > 0 || (r.Latency.Count == 200) != s.Echo {
			t.Errorf("%+v: %+v, %v", s, r, err)
		}
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if r, err := (bench.TCP{Flows: 3, Duration: 100 * time.Millisecond}).Run(within(t, 10*time.Second), ends); err != nil || r.Bytes == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, connect := range []bool{false, true} {
		r, err := bench.Transact{Connect: connect, Size: 100, Duration: 50 * time.Millisecond}.Run(within(t, 10*time.Second), ends)
		if err != nil || r.Count == 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	left, err := bench.OpenUDP(ends, 1) // the server's socket goes with the connection
	if err != nil {
		t.Fatal(err)
	}
	if err := ends.Remote.Close(); err != nil {
		t.Error(err)
	}
	if err := left.Close(); err == nil {
		t.Error("closed over a connection that is none, and no error")
	}
	for end := time.Now().Add(10 * time.Second); sockets(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d sockets, %d before", sockets(t), before)
		}
	}
}

// What a server does not do for others is an error at the client.
func TestRemoteRefuses(t *testing.T) {
	ends := dial(t, serving(t))
	defer ends.Remote.Close()
	u, err := bench.OpenUDP(ends, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for _, s := range []bench.Stream{{Rate: 1, Duration: time.Hour}, {Rate: 1e9, Duration: time.Microsecond}} {
		if _, err := u.Run(within(t, 5*time.Second), s); err == nil || !strings.Contains(err.Error(), "more than a server does for others") {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if _, err := bench.Dial(within(t, 5*time.Second), "127.0.0.1:1", -1); err == nil {
		t.Error("nobody listens, and no error")
	}
}
