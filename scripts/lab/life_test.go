package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// role starts this test binary in another role.
func role(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleVariable+"="+strings.Join(args, ","), "GORACE=atexit_sleep_ms=0")
	return cmd
}

// nothingLeft checks that no trace of a lab in dir exists on the machine.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if found, _ := filepath.Glob(netnsDir + "/tulle-*"); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(b, []byte(netnsDir+"/tulle-")) {
		t.Errorf("left: mounts in %s", netnsDir)
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		if b, _ := os.ReadFile(path); bytes.Contains(b, []byte(dir)) {
			t.Errorf("left: process %s: %q", path, b)
		}
	}
	if _, err := os.Lstat(dir); err == nil {
		entries, _ := os.ReadDir(dir)
		t.Errorf("left: %s with %v", dir, entries)
	}
}

func labDir(t *testing.T) string { return filepath.Join(t.TempDir(), "lab") }

func TestDownRemovesAll(t *testing.T) {
	dir := labDir(t)
	c := fakeConfig(dir, StoreGossip)
	c.Ephemeral = true
	l, err := Up(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	// Somebody left a process in a pod; another of the same binary runs outside.
	inside, outside := exec.Command(c.Executable, "node", "--run-dir", t.TempDir()), exec.Command(c.Executable, "node")
	inside.Env = append(os.Environ(), c.Env...)
	outside.Env, outside.Dir = inside.Env, t.TempDir()
	outside.Args = append(outside.Args, "--run-dir", ".")
	if err := errors.Join(In("tulle-n2-p1", inside.Start), outside.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { outside.Process.Kill(); outside.Wait() }()
	if err := l.SignalNode(2, syscall.SIGSTOP); err != nil {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() { done <- inside.Wait() }()
	began := time.Now()
	if err, d := l.Down(), time.Since(began); err != nil || d > termGrace {
		t.Errorf("down after %v: %v, want it before a stopped daemon is sent SIGKILL", d, err)
	}
	time.AfterFunc(time.Second, func() { inside.Process.Kill() })
	if err := <-done; err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("a process in a pod ended with %v, want SIGTERM", err)
	}
	nothingLeft(t, dir)
	if p, err := identify(outside.Process.Pid); err != nil || !p.alive() {
		t.Errorf("a process outside the lab was ended: %v", err)
	}
	if err := errors.Join(l.Down(), Down(dir, nil)); err != nil {
		t.Errorf("down again: %v", err)
	}
}

// Whenever the maker is killed, the record covers what exists.
func TestKilledDuringUp(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range 16 {
		dir := labDir(t)
		cmd := role(t, "up", dir, []string{"ephemeral", "lasting"}[i%2], []string{StoreGossip, StoreFile}[i/2%2])
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		delay := 15*time.Millisecond + time.Duration(random.Int64N(int64(120*time.Millisecond)))
		time.Sleep(delay)
		cmd.Process.Kill()
		cmd.Wait()
		stdin.Close()
		made, _ := filepath.Glob(netnsDir + "/tulle-*")
		t.Logf("killed after %v: %d namespaces", delay, len(made))
		if err := Down(dir, nil); err != nil {
			t.Errorf("down after a kill at %v: %v", delay, err)
		}
		nothingLeft(t, dir)
	}
}

func TestKilledDuringDown(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 6 {
		dir := labDir(t)
		if out, err := role(t, "up", dir, "lasting", StoreGossip).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		cmd := role(t, "down", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		delay := time.Duration(random.Int64N(int64(60 * time.Millisecond)))
		time.Sleep(delay)
		cmd.Process.Kill()
		cmd.Wait()
		left, _ := filepath.Glob(netnsDir + "/tulle-*")
		t.Logf("killed after %v: %d namespaces left", delay, len(left))
		if err := Down(dir, nil); err != nil {
			t.Errorf("down after a kill at %v: %v", delay, err)
		}
		nothingLeft(t, dir)
	}
}

// The next Up, in any directory, clears an ephemeral lab whose owner was killed; a lasting one it refuses to touch.
func TestUpAfterKilledOwner(t *testing.T) {
	dir := labDir(t)
	cmd := role(t, "up", dir, "ephemeral", StoreGossip)
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if _, err := io.ReadFull(stdout, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	up(t, Config{Nodes: 1, Kernel: kernelNodes(1)})
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
}

func TestUpRefusesLastingLab(t *testing.T) {
	dir := labDir(t)
	if out, err := role(t, "up", dir, "lasting", StoreGossip).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, d := range []string{dir, labDir(t)} {
		_, err := Up(testContext(t), Config{Dir: d, Nodes: 1, Kernel: kernelNodes(1)})
		if err == nil || !strings.Contains(err.Error(), "a lab is already up (3 nodes") ||
			!strings.HasSuffix(err.Error(), "tulle lab down --dir "+dir) {
			t.Errorf("got %v", err)
		}
	}
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if n := l.Nodes(); len(n) != 3 || !n[0].Alive || !n[1].Alive || n[2].Alive {
		t.Errorf("got %+v", n)
	}
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, dir)
}

func TestUpWaitsForLiveOwner(t *testing.T) {
	first, err := Up(testContext(t), Config{Dir: t.TempDir(), Nodes: 1, Kernel: kernelNodes(1), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := Up(ctx, Config{Dir: labDir(t), Nodes: 1, Kernel: kernelNodes(1)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lab beside the first: %v", err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		first.Down()
	}()
	var progress bytes.Buffer
	second, err := Up(testContext(t), Config{Dir: labDir(t), Nodes: 1, Kernel: kernelNodes(1), Ephemeral: true, Progress: &progress})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Down()
	if want := fmt.Sprintf("waiting for the lab of process %d in %s\n", os.Getpid(), first.Dir()); !strings.HasPrefix(progress.String(), want) {
		t.Errorf("progress %q, want %q first", progress.String(), want)
	}
}

func TestUpRefusesForeignNamespace(t *testing.T) {
	// The lab below holds the machine's lock meanwhile; the namespace is made while no lab can be.
	lock, err := acquire(testContext(t), upWait, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	made := os.Mkdir(netnsDir, 0o755) == nil
	var ino uint64
	err = makeNamespace("tulle-n2", func(i uint64) error { ino = i; return nil })
	lock.release()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := removeNamespace("tulle-n2", ino); err != nil {
			t.Error(err)
		}
		if made {
			os.Remove(netnsDir)
		}
	}()
	dir := labDir(t)
	_, err = Up(testContext(t), Config{Dir: dir, Nodes: 2, Kernel: kernelNodes(2)})
	if err == nil || !strings.Contains(err.Error(), "namespace tulle-n2 exists") || !strings.Contains(err.Error(), "remove it with") {
		t.Errorf("got %v", err)
	}
	// Neither may a record made elsewhere take it: the inode is not the recorded one.
	if err := removeNamespace("tulle-n2", ino+1); err != nil || !namespaceExists("tulle-n2") {
		t.Errorf("a foreign namespace was removed (%v)", err)
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("left: %s", dir)
	}
}

func TestUpFails(t *testing.T) {
	t.Run("daemon ends", func(t *testing.T) {
		dir := labDir(t)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "crash"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		_, err := Up(testContext(t), fakeConfig(dir, StoreGossip))
		if err == nil || !strings.Contains(err.Error(), ": daemon ended") || !strings.Contains(err.Error(), "crash was asked for") {
			t.Errorf("got %v", err)
		}
		if err := os.Remove(filepath.Join(dir, "crash")); err != nil {
			t.Error(err)
		}
		// The directory was there before: it stays, empty.
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
		nothingLeft(t, dir)
	})
	for _, c := range []Config{{}, {Nodes: 251}, {Nodes: 1, Pods: -1}, {Nodes: 1, MTU: 100}, {Nodes: 1, Kernel: kernelNodes(2)},
		{Nodes: 1, Kernel: kernelNodes(1), Store: "kube"},
		{Nodes: 1}, {Nodes: 1, Executable: "/nonexistent"}, {Nodes: 1, Executable: "/etc/passwd"},
		{Nodes: 1, Kernel: kernelNodes(1), Dir: "/" + strings.Repeat("d", maxDir)}} {
		if _, err := Up(testContext(t), c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

func TestUpCancelled(t *testing.T) {
	// At once, when the links are up, and when the first daemon is.
	for _, at := range []string{"", "links are up", "node n1"} {
		dir := labDir(t)
		ctx, cancel := context.WithCancel(context.Background())
		c := fakeConfig(dir, StoreGossip)
		c.Progress = trigger{at, cancel}
		if at == "" {
			cancel()
		}
		_, err := Up(ctx, c)
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("at %q: %v", at, err)
		}
		nothingLeft(t, dir)
	}
}

// trigger calls f when a line with text is written.
type trigger struct {
	text string
	f    func()
}

func (w trigger) Write(b []byte) (int, error) {
	if w.text != "" && bytes.Contains(b, []byte(w.text)) {
		w.f()
	}
	return len(b), nil
}

// Whenever somebody who adds and removes nodes is killed, the record covers what exists, and the lab can go on.
func TestKilledDuringChange(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range 16 {
		dir := labDir(t)
		if out, err := role(t, "up", dir, "lasting", []string{StoreGossip, StoreFile}[i%2]).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		cmd := role(t, "churn", dir)
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		delay := 15*time.Millisecond + time.Duration(random.Int64N(int64(200*time.Millisecond)))
		time.Sleep(delay)
		cmd.Process.Kill()
		cmd.Wait()
		l, err := Open(dir)
		if err != nil || out.Len() > 0 {
			t.Fatalf("%v; %s", err, out.String())
		}
		var states []string
		for _, n := range l.record().Nodes {
			states = append(states, fmt.Sprintf("%s started=%t wired=%t leaving=%t", n.name(), n.Daemon.PID != 0, n.Wired, n.Leaving))
		}
		t.Logf("killed after %v: %s", delay, strings.Join(states, ", "))
		if i%3 > 0 {
			goOn(t, l)
		}
		if err := Down(dir, nil); err != nil {
			t.Errorf("down after a kill at %v: %v", delay, err)
		}
		nothingLeft(t, dir)
	}
}

// goOn adds a node beside those that are whole and those that are not, and removes all but two.
func goOn(t *testing.T, l *Lab) {
	t.Helper()
	if _, err := l.AddNode(testContext(t)); err != nil {
		t.Error(err)
	}
	for _, n := range l.Nodes() {
		if n.Number == 1 || n.Number == 3 {
			continue
		}
		if err := l.RemoveNode(testContext(t), n.Number, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(netnsDir + "/tulle-n[24-9]*"); len(left) > 0 || len(l.Nodes()) != 2 {
		t.Errorf("left: %v, %+v", left, l.Nodes())
	}
}
