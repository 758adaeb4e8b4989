package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// upRole makes a lab in the directory given, says so on stdout, and waits to be killed.
func upRole() int {
	args := roleArgs()
	c := fakeConfig(args[0])
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
		onThread(func() error {
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

// fakeConfig is a lab whose daemons are this test binary: they answer status and carry nothing. It tests how processes
// are handled and nothing else.
func fakeConfig(dir string) Config {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Config{Dir: dir, Nodes: 3, Pods: 2, Kernel: map[int]bool{3: true}, Executable: self,
		Env: []string{roleVariable + "=daemon", "GORACE=atexit_sleep_ms=0"}, Progress: os.Stderr}
}

// daemonRole is `tulle node` and `tulle status` as far as the lab knows them. The file "crash" in the lab's directory
// makes the daemon end at its start, "stubborn" makes it ignore SIGTERM.
func daemonRole() int {
	flags := map[string]string{}
	for i := 2; i+1 < len(os.Args); i += 2 {
		flags[os.Args[i]] = os.Args[i+1]
	}
	runDir := flags["--run-dir"]
	labDir := filepath.Dir(filepath.Dir(runDir))
	alive := filepath.Join(runDir, "alive")
	has := func(name string) bool { _, err := os.Stat(filepath.Join(labDir, name)); return err == nil }
	switch os.Args[1] {
	case "status":
		return fakeStatus(alive, filepath.Join(labDir, "peers.json"))
	case "node":
		if has("crash") {
			fmt.Fprintln(os.Stderr, "fake daemon: crash was asked for")
			return 1
		}
		if has("stubborn") {
			signal.Ignore(syscall.SIGTERM)
		}
		if err := os.WriteFile(alive, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		time.Sleep(10 * time.Minute)
	}
	return 2
}

func fakeStatus(alive, peers string) int {
	pid, err := os.ReadFile(alive)
	if err != nil {
		return 3
	}
	n, _ := strconv.Atoi(string(pid))
	if _, err := identify(n); errors.Is(err, os.ErrNotExist) {
		return 3
	}
	b, _ := os.ReadFile(peers)
	known := strings.TrimSuffix(strings.Repeat("{},", max(0, strings.Count(string(b), `"name"`)-1)), ",")
	fmt.Printf(`{"node":{"vtepMAC":"02:00:00:00:%02x:%02x"},"peers":[%s]}`, n>>8&0xff, n&0xff, known)
	return 0
}
