package holder

import (
	"net"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTrusted shows sockets whose other end is root's, this user's own, and a stranger's.
func TestTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to be somebody else")
	}
	for uid, want := range map[int]bool{0: true, 65534: false, 1: false} {
		if got := Trusted(socketOf(t, uid)); got != want {
			t.Errorf("user %d: trusted %v, want %v", uid, got, want)
		}
	}
}

// socketOf returns a socket whose other end was made by the user: credentials are a thread's, and the thread ends with the goroutine.
func socketOf(t *testing.T, uid int) *net.UnixConn {
	t.Helper()
	type made struct {
		fds [2]int
		err error
	}
	ready := make(chan made)
	go func() {
		runtime.LockOSThread() // for good
		var m made
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			m.err = errno
		} else {
			m.fds, m.err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		}
		ready <- m
	}()
	m := <-ready
	if m.err != nil {
		t.Fatal(m.err)
	}
	unix.Close(m.fds[1])
	f := os.NewFile(uintptr(m.fds[0]), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}
