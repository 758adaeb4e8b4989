package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/netns"
)

// The test binary is also the processes that the tests start: what role it has is in this variable.
const (
	roleVariable     = "TULLE_LAB_TEST_ROLE"
	isolatedVariable = "TULLE_LAB_TEST_ISOLATED"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "lab: these tests need root (namespaces and links): run them with sudo")
		os.Exit(2)
	}
	switch role, _, _ := strings.Cut(os.Getenv(roleVariable), ","); role {
	case "":
		if os.Getenv(isolatedVariable) == "" {
			fmt.Fprintln(os.Stderr, "lab: isolate the tests:", isolate())
			os.Exit(1)
		}
		os.Exit(m.Run())
	case "up":
		os.Exit(upRole())
	case "down":
		os.Exit(downRole())
	case "churn":
		os.Exit(churnRole())
	case "main thread":
		os.Exit(mainThreadRole())
	case "daemon":
		os.Exit(daemonRole())
	}
	fmt.Fprintln(os.Stderr, "lab test: no such role")
	os.Exit(2)
}

// isolate starts the test binary again with a /run of its own, and so with names and a lock of its own: some tests leave
// lasting labs for a moment, which no other package's tests should run into. It returns only on failure.
func isolate() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Copies of other labs' mounts would keep their namespaces alive.
	others, _ := filepath.Glob(netnsDir + "/*")
	for _, path := range others {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), isolatedVariable+"=1"))
}

func roleArgs() []string { return strings.Split(os.Getenv(roleVariable), ",")[1:] }

// upRole makes a lab in the directory given, says so on stdout, and waits to be killed. With the path of a flannelpeer it is a
// lab of such.
func upRole() int {
	args := roleArgs()
	c := fakeConfig(args[0], args[2])
	if len(args) > 3 {
		c.Kernel, c.Backend, c.FlannelPeer, c.Env = kernelNodes(c.Nodes), BackendUDP, args[3], nil
	}
	c.Ephemeral = args[1] == "ephemeral"
	if _, err := Up(context.Background(), c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("up")
	if c.Ephemeral {
		io.Copy(io.Discard, os.Stdin)
	}
	return 0
}

func downRole() int {
	if err := Down(roleArgs()[0], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func mainThreadRole() int {
	on := 0
	for range 100 {
		netns.OnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				on++
			}
			return nil
		})
	}
	if on > 0 {
		fmt.Printf("%d of 100 times on the main thread", on)
		return 1
	}
	return 0
}

// churnRole removes node 2 of the lab in the directory given, then adds and removes nodes without end.
func churnRole() int {
	for number := 2; ; {
		l, err := Open(roleArgs()[0])
		if err == nil {
			err = l.RemoveNode(context.Background(), number, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[number%2])
		}
		var n Node
		if err == nil {
			n, err = l.AddNode(context.Background())
			number = n.Number
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}
