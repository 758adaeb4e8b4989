package holder

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// raw is a client without manners.
func raw(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func message(op operation, meta, files uint32, part string) []byte {
	return append([]byte{version, byte(op), 0, 0, byte(meta >> 24), byte(meta >> 16), byte(meta >> 8), byte(meta),
		byte(files >> 24), byte(files >> 16), byte(files >> 8), byte(files)}, part...)
}

// TestRefused sends what is no message, with descriptors beside: the set stays, no descriptor does.
func TestRefused(t *testing.T) {
	path := serve(t)
	kept := files(t, 3, "kept")
	kept.Meta = []byte("kept")
	if err := dial(t, path).Keep(*kept); err != nil {
		t.Fatal(err)
	}
	other := files(t, maxRights, "other").Files
	for _, c := range []struct {
		name     string
		messages [][]byte
		files    int // with each message
	}{
		{"nothing but descriptors", [][]byte{{}}, 3},
		{"one byte", [][]byte{{version}}, 1},
		{"cut header", [][]byte{message(opKeep, 0, 0, "")[:headerLen-1]}, 0},
		{"another version", [][]byte{append([]byte{version + 1}, message(opKeep, 0, 0, "")[1:]...)}, 0},
		{"reserved bits", [][]byte{{version, byte(opKeep), 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}}, 0},
		{"unknown operation", [][]byte{message(99, 0, 0, "")}, 0},
		{"an answer", [][]byte{message(opSet, 1, 1, "x")}, 1},
		{"take with a set", [][]byte{message(opTake, 1, 2, "x")}, 2},
		{"drop with a set", [][]byte{message(opDrop, 0, 2, "")}, 2},
		{"too many descriptors", [][]byte{message(opKeep, 0, MaxFiles+1, "")}, 5},
		{"too many bytes", [][]byte{message(opKeep, MaxMeta+1, 0, "x")}, 0},
		{"more bytes than said", [][]byte{message(opKeep, 1, 0, "xy")}, 0},
		{"more descriptors than said", [][]byte{message(opKeep, 0, 1, "")}, 2},
		{"nothing of what is left", [][]byte{message(opKeep, 1, 0, "")}, 0},
		{"other numbers", [][]byte{message(opKeep, 4, 4, "x"), message(opKeep, 4, 3, "x")}, 1},
		{"another operation in between", [][]byte{message(opKeep, 4, 4, "x"), message(opDrop, 0, 0, "")}, 1},
		{"too long", [][]byte{message(opKeep, maxMessage, 0, strings.Repeat("x", maxMessage))}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := raw(t, path)
			for _, m := range c.messages {
				var oob []byte
				if c.files > 0 {
					oob = unix.UnixRights(other[:c.files]...)
				}
				if _, _, err := conn.WriteMsgUnix(m, oob, nil); err != nil {
					t.Fatal(err)
				}
			}
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			if op, _, err := newReceiver(conn).receive(func() error { return nil }); err == nil && op != opRefused {
				t.Errorf("answered with %d", op)
			}
			demand(t, path, "kept", kept.Meta, 3)
		})
	}
}

// TestRandomRefused sends random messages. Whatever they are, the set is the one before or one that was sent whole.
func TestRandomRefused(t *testing.T) {
	path := serve(t)
	kept := files(t, 2, "kept")
	kept.Meta = []byte("kept")
	if err := dial(t, path).Keep(*kept); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		conn := raw(t, path)
		for range 1 + random.IntN(3) {
			m := message(operation(random.IntN(9)), uint32(1+random.IntN(5)), uint32(1+random.IntN(5)), "")
			m = append(m, make([]byte, random.IntN(7))...)
			if random.IntN(4) == 0 {
				m[random.IntN(len(m))] ^= 1 << random.IntN(8)
			}
			// Never a whole set: it says that a descriptor is left, and has none.
			conn.Write(m)
		}
		conn.Close()
	}
	demand(t, path, "kept", kept.Meta, 2)
}

// TestDiesInTheMiddle is a daemon that ends between two messages of a set.
func TestDiesInTheMiddle(t *testing.T) {
	path := serve(t)
	kept := files(t, 2, "kept")
	kept.Meta = []byte("kept")
	if err := dial(t, path).Keep(*kept); err != nil {
		t.Fatal(err)
	}
	conn, half := raw(t, path), files(t, 4, "half")
	if _, _, err := conn.WriteMsgUnix(message(opKeep, 2, 8, "x"), unix.UnixRights(half.Files...), nil); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	demand(t, path, "kept", kept.Meta, 2)
}

// TestForeign is a user who is neither root nor the holder's own, even where the socket's mode lets everybody connect.
func TestForeign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else for a while")
	}
	path := serve(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket's mode: %v, %v", info.Mode(), err)
	}
	kept := files(t, 2, "kept")
	if err := dial(t, path).Keep(*kept); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(path); dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []os.FileMode{0o600, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		fd, err := connectAs(65534, path)
		if mode == 0o600 {
			if !errors.Is(err, unix.EACCES) {
				t.Errorf("mode %o: %v", mode, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "foreign")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.Write(message(opTake, 0, 0, ""))
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if op, s, err := newReceiver(conn.(*net.UnixConn)).receive(func() error { return nil }); err == nil {
			t.Errorf("a foreign user was answered with operation %d and %d descriptors", op, len(s.Files))
		}
	}
	demand(t, path, "kept", nil, 2)
}

// connectAs connects with another user's credentials, those of a thread that ends after.
func connectAs(uid int, path string) (fd int, err error) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			unix.Close(fd)
		}
	})
	wg.Wait()
	return fd, err
}
