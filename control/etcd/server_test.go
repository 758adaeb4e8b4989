package etcd

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tulle-net/tulle/scripts/need"
)

// program builds etcd once for all tests.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tulle-etcd")
	if err != nil {
		return "", err
	}
	return need.Etcd(context.Background(), dir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// A server is an etcd of its own on loopback. It is stopped and started by the test.
type server struct {
	t       *testing.T
	dir     string
	client  string // URL
	peer    string
	args    []string
	process *exec.Cmd
	log     bytes.Buffer
}

func startServer(t *testing.T) *server { return startWith(t, "http") }

// startWith starts one whose clients come by the scheme.
func startWith(t *testing.T, scheme string, args ...string) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir(), client: scheme + "://" + freeAddr(t), peer: "http://" + freeAddr(t), args: args}
	s.start()
	t.Cleanup(func() {
		s.stop()
		if t.Failed() && testing.Verbose() {
			t.Logf("etcd: %s", s.log.String())
		}
	})
	return s
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *server) start() {
	s.t.Helper()
	path, err := program()
	if err != nil {
		s.t.Fatal(err)
	}
	args := append(need.EtcdArgs(filepath.Join(s.dir, "data"), s.client, s.peer), s.args...)
	s.process = exec.Command(path, args...)
	s.process.Stdout, s.process.Stderr = &s.log, &s.log
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	await(s.t, "etcd answers", func() bool {
		c, err := net.DialTimeout("tcp", s.client[strings.Index(s.client, "://")+3:], time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (s *server) stop() {
	if s.process != nil {
		s.process.Process.Kill()
		s.process.Wait()
		s.process = nil
	}
}

// wipe stops it and takes all its data away.
func (s *server) wipe() {
	s.t.Helper()
	s.stop()
	if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
		s.t.Fatal(err)
	}
}

// admin is a client of the test's own.
func (s *server) admin() *clientv3.Client {
	s.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.client}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1500 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("not within 30 s: %s", what)
}
