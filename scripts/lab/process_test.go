package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTerminate(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "stubborn"), nil, 0o644)
	runDir := filepath.Join(dir, "n1", "run")
	os.MkdirAll(runDir, 0o755)
	cmd := role(t, "daemon")
	cmd.Args = append(cmd.Args, "node", "--run-dir", runDir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for i := 0; ; i++ {
		if _, err := os.Stat(filepath.Join(runDir, "alive")); err == nil {
			break
		} else if i > 500 {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	reused := process{PID: p.PID, Start: p.Start + 1}
	if err := reused.signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) || reused.alive() || !p.alive() {
		t.Errorf("a process that reused the pid: %v, alive %t", err, p.alive())
	}
	if err := terminate([]process{p, reused}, 100*time.Millisecond); err != nil || p.alive() {
		cmd.Process.Signal(syscall.SIGABRT)
		t.Errorf("%v, alive %t", err, p.alive())
	}
	if err := <-done; !strings.Contains(fmt.Sprint(err), "killed") {
		t.Errorf("ended with %v, want SIGKILL after SIGTERM was ignored", err)
	}
}

func TestIn(t *testing.T) {
	l := up(t, Config{Nodes: 1, Pods: 1, Kernel: kernelNodes(1)})
	own, err := inode()
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		var there uint64
		err := In("tulle-n1-p1", func() (err error) {
			there, err = inode()
			return err
		})
		if here, _ := inode(); err != nil || there == own || here != own {
			t.Fatalf("inside %d, outside %d, before %d: %v", there, here, own, err)
		}
	}
	var ln net.Listener
	address := net.JoinHostPort(l.Nodes()[0].Pods[0].Addr.String(), "80")
	if err := In("tulle-n1-p1", func() (err error) { ln, err = net.Listen("tcp", address); return err }); err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := In("tulle-nowhere", func() error { return nil }); err == nil {
		t.Error("no error for a namespace that does not exist")
	}
	if err := In("tulle-n1", func() error { return net.ErrClosed }); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// Alone on one P, a goroutine that is waited for runs where the waiter ran: on the main thread, which must stay out.
func TestMainThreadStaysOut(t *testing.T) {
	cmd := role(t, "main thread")
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
