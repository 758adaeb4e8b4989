package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience bounds how long a set may take that has begun, either way.
	patience = 5 * time.Second
	// maxConns bounds how many clients are served at once; more wait.
	maxConns = 64
)

// A Server holds one set. Listen makes it, Run runs it once.
type Server struct {
	listener *net.UnixListener
	lock     *os.File

	mu   sync.Mutex // guards set, and is held while copies of it are sent
	set  Set
	full bool
}

// Listen makes the socket path, for root and this user only. It fails while another holder serves it.
func Listen(path string) (*Server, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the holder's lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another holder serves %s", path)
	}
	listener, err := listen(path)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("the holder's socket: %w", err)
	}
	return &Server{listener: listener, lock: lock}, nil
}

func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed
		return nil, err
	}
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
}

// Run serves until ctx ends, and lets go of what it holds.
func (s *Server) Run(ctx context.Context) error {
	defer s.lock.Close()
	defer s.replace(Set{}, false)
	var clients sync.WaitGroup
	defer clients.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { s.listener.Close() })()
	places := make(chan struct{}, maxConns)
	for {
		conn, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return nil
		}
		clients.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := s.serve(conn); !errors.Is(err, io.EOF) && ctx.Err() == nil {
				slog.Warn("holder: a client was refused", "error", err)
			}
		})
	}
}

// serve answers one client until it hangs up (io.EOF) or does what it must not.
func (s *Server) serve(c *net.UnixConn) error {
	if !Trusted(c) {
		return errors.New("neither root's nor of the holder's own user")
	}
	r := newReceiver(c)
	within := func() error { return c.SetDeadline(time.Now().Add(patience)) }
	for {
		op, set, err := r.receive(within)
		if err == nil {
			if err = within(); err == nil {
				err = s.carryOut(c, op, set)
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				send(c, opRefused, Set{Meta: []byte(err.Error())}) // as far as it still listens
			}
			return err
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			return err
		}
	}
}

func (s *Server) carryOut(c *net.UnixConn, op operation, set Set) error {
	if op != opKeep && len(set.Meta)+len(set.Files) > 0 {
		set.Close()
		return fmt.Errorf("operation %d with a set", op)
	}
	switch op {
	case opKeep:
		s.replace(set, true)
		slog.Debug("holder: keeps a set", "descriptors", len(set.Files), "bytes", len(set.Meta))
		return send(c, opDone, Set{})
	case opDrop:
		s.replace(Set{}, false)
		slog.Debug("holder: let go of its set")
		return send(c, opDone, Set{})
	case opTake:
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.full {
			return send(c, opEmpty, Set{})
		}
		return send(c, opSet, s.set)
	}
	return fmt.Errorf("unknown operation %d", op)
}

// replace makes set the one that is held, and closes those of the one before.
func (s *Server) replace(set Set, full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set.Close()
	s.set, s.full = set, full
}
