package holder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve runs a holder for the test. At its end nothing of it is left: no descriptor, no goroutine.
func serve(t *testing.T) (path string) {
	t.Helper()
	before := descriptors(t)
	path = filepath.Join(t.TempDir(), "holder.sock")
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for range 100 {
			if descriptors(t) <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%d descriptors open after the test, %d before", descriptors(t), before)
	})
	return path
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries { // Go's own poller comes once and stays
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "anon_inode:") {
			n++
		}
	}
	return n
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// files makes n descriptors of memory with different content.
func files(t *testing.T, n int, what string) *Set {
	t.Helper()
	s := new(Set)
	t.Cleanup(s.Close)
	for i := range n {
		fd, err := unix.MemfdCreate("tulle-test", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		s.Files = append(s.Files, fd)
		if _, err := unix.Pwrite(fd, fmt.Appendf(nil, "%s %d", what, i), 0); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func content(t *testing.T, fd int) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// demand takes the set and compares.
func demand(t *testing.T, path, what string, meta []byte, n int) {
	t.Helper()
	c := dial(t, path)
	defer c.Close()
	got, err := c.Take()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if !bytes.Equal(got.Meta, meta) || len(got.Files) != n {
		t.Fatalf("%d bytes and %d descriptors, want %d and %d", len(got.Meta), len(got.Files), len(meta), n)
	}
	for i, fd := range got.Files {
		if c, want := content(t, fd), fmt.Sprintf("%s %d", what, i); c != want {
			t.Fatalf("descriptor %d is %q, want %q", i, c, want)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Fatalf("descriptor %d is inherited by children", i)
		}
	}
}

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// TestRoundTrip keeps sets of many sizes, one in place of the other, and takes each twice.
func TestRoundTrip(t *testing.T) {
	path := serve(t)
	c := dial(t, path)
	if _, err := c.Take(); !errors.Is(err, ErrEmpty) {
		t.Errorf("take of nothing: %v", err)
	}
	for _, size := range []struct{ meta, files int }{{0, 0}, {1, 0}, {0, 1}, {10, 3}, {maxMessage - headerLen, maxRights}, {maxMessage - headerLen + 1, maxRights + 1},
		{300_000, 2}, {2, 600}, {MaxMeta, 1}} {
		meta := make([]byte, size.meta)
		rand.NewChaCha8([32]byte{byte(size.files)}).Read(meta)
		what := fmt.Sprint(size)
		s := files(t, size.files, what)
		s.Meta = meta
		if err := c.Keep(*s); err != nil {
			t.Fatal(err)
		}
		s.Close() // the daemon is dead
		demand(t, path, what, meta, size.files)
		demand(t, path, what, meta, size.files)
	}
	if err := c.Drop(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Take(); !errors.Is(err, ErrEmpty) {
		t.Errorf("take after drop: %v", err)
	}
}

// TestKeptOpen holds a socket: what is sent to it while nobody else has it is there after.
func TestKeptOpen(t *testing.T) {
	path := serve(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := dial(t, path).Keep(Set{Files: []int{fd}}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	conn, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 100 {
		if _, err := conn.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := dial(t, path).Take()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 100 {
		var b [10]byte
		if n, err := unix.Read(s.Files[0], b[:]); err != nil || n != 1 || b[0] != byte(i) {
			t.Fatalf("datagram %d: %v, %v", i, b[:max(n, 0)], err)
		}
	}
}

// closes says whether the holder closes its copies of a pipe's writing end while f runs: the reading end hears of it.
func closes(t *testing.T, path string, f func()) bool {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	err := dial(t, path).Keep(Set{Files: p[1:]})
	unix.Close(p[1])
	if err != nil {
		t.Fatal(err)
	}
	f()
	n, err := unix.Read(p[0], make([]byte, 1))
	return err == nil && n == 0
}

// TestCloses demands that what is replaced or dropped is closed by the time of the answer, and nothing else.
func TestCloses(t *testing.T) {
	path := serve(t)
	if !closes(t, path, func() { dial(t, path).Drop() }) {
		t.Error("open after drop")
	}
	if !closes(t, path, func() { dial(t, path).Keep(Set{}) }) {
		t.Error("open after another set was kept")
	}
	if closes(t, path, func() {
		if s, err := dial(t, path).Take(); err == nil {
			s.Close()
		}
	}) {
		t.Error("closed after take")
	}
}

// TestOne is a second holder for the same socket, which is refused and leaves the first one's alone, and one that comes after a kill.
func TestOne(t *testing.T) {
	path := serve(t)
	if _, err := Listen(path); err == nil {
		t.Fatal("two holders serve one socket")
	}
	if err := dial(t, path).Keep(Set{Meta: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(t.TempDir(), "left")
	if l, err := listen(left); err != nil {
		t.Fatal(err)
	} else {
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	s, err := Listen(left)
	if err != nil {
		t.Fatal(err)
	}
	s.listener.Close()
	s.lock.Close()
}

// TestLost tells a daemon that its holder is gone.
func TestLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "holder.sock")
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	c := dial(t, path)
	if err := c.Keep(Set{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	c.Lost()
	wg.Wait()
	if err := c.Keep(Set{}); err == nil {
		t.Error("kept by nobody")
	}
}

// TestManyClients keeps and takes at once: whoever takes gets one whole set.
func TestManyClients(t *testing.T) {
	path := serve(t)
	sets := []*Set{files(t, 400, "a"), files(t, 300, "b")}
	sets[0].Meta, sets[1].Meta = []byte("a"), []byte("b")
	if err := dial(t, path).Keep(*sets[0]); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, s := range sets {
		c := dial(t, path)
		wg.Go(func() {
			for range 50 {
				if err := c.Keep(*s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		c := dial(t, path)
		wg.Go(func() {
			for range 50 {
				s, err := c.Take()
				if err != nil {
					t.Error(err)
					return
				}
				if want := map[string]int{"a": 400, "b": 300}[string(s.Meta)]; len(s.Files) != want || content(t, s.Files[want-1]) != fmt.Sprintf("%s %d", s.Meta, want-1) {
					t.Errorf("set %s has %d descriptors", s.Meta, len(s.Files))
				}
				s.Close()
			}
		})
	}
	wg.Wait()
}
