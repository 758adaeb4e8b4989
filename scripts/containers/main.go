// Command containers runs unmodified container runtimes on two nodes of the lab: containerd with runc, and podman with CNI. Their
// containers ping each other, send each other 100 MB, are reached at a port of their node, and go without a trace.
//
// It owns the run and its verdict, not the lab (scripts/lab). Everything but the installation of packages happens in a mount and a PID
// namespace of the run's own, with its own /run, /opt, /etc/cni and /var/lib: whatever ends the run, SIGKILL included, the kernel removes
// processes, mounts, network namespaces and files. What it cannot remove, cgroups, is looked for before and after. Interfaces:
// mount_namespaces(7), pid_namespaces(7). The exit code is 0 iff all went well, 1 if not, 2 on wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

const (
	// inside is set for the process in the namespaces.
	inside   = "TULLE_CONTAINERS_INSIDE"
	lockPath = "/run/tulle-containers.lock"
	// limit is how long the run may take, the installation of packages not counted.
	limit = 5 * time.Minute
	// stopWait is how long an interrupted run may take to say what it leaves.
	stopWait = 30 * time.Second
)

func main() {
	tulle := flag.String("tulle", "bin/tulle", "the binary to try; tulle-cni lies beside it")
	flag.Parse()
	if err := check(*tulle); err != nil {
		fmt.Fprintln(os.Stderr, "containers:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := outside
	if os.Getenv(inside) != "" {
		run = isolated
	}
	if err := run(ctx, *tulle); err != nil {
		if os.Getenv(inside) == "" && errors.As(err, new(*exec.ExitError)) {
			os.Exit(1) // said already
		}
		fmt.Printf("✗ %v\n", err)
		os.Exit(1)
	}
}

func check(tulle string) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if os.Geteuid() != 0 {
		return lab.ErrNotRoot
	}
	for _, path := range []string{tulle, pluginBeside(tulle)} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("-tulle: %w: build it with: make build", err)
		}
	}
	return nil
}

func pluginBeside(tulle string) string { return filepath.Join(filepath.Dir(tulle), "tulle-cni") }

// outside installs what is needed and runs this program again in namespaces of its own.
func outside(ctx context.Context, _ string) error {
	lock, err := os.OpenFile(lockPath, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: another run is on its way: wait for its end: %w", lockPath, err)
	}
	if err := install(ctx); err != nil {
		return err
	}
	if err := removeCgroups(); err != nil {
		return fmt.Errorf("what an earlier run left: %w", err)
	}
	return errors.Join(again(ctx), removeCgroups())
}

// install gets the packages. busybox has to be the static one: containers have no libraries.
func install(ctx context.Context) error {
	for _, p := range [][2]string{{"containerd", "containerd"}, {"runc", "runc"}, {"podman", "podman"}, {portmap, "containernetworking-plugins"},
		{"busybox", "busybox-static"}, {"iptables", "iptables"}, {"nft", "nftables"}, {"ip", "iproute2"}} {
		if _, err := need.Debian(ctx, p[0], p[1]); err != nil {
			return err
		}
	}
	return nil
}

func again(ctx context.Context) error {
	runtime.LockOSThread() // the child gets Pdeathsig when its parent's thread ends
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopWait
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd.Run()
}

// isolated is the run. It is process 1 of its namespace: with it everything else ends.
func isolated(ctx context.Context, tulle string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it takes longer than %v", limit))
	defer cancel()
	start := time.Now()
	installed, err := ownFiles(tulle)
	if err != nil {
		return err
	}
	t := &trial{tulle: installed}
	if err := t.run(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return err
	}
	fmt.Printf("all passed, elapsed %v\n", time.Since(start).Round(100*time.Millisecond))
	return nil
}
