package bench

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// streamWrite is how much a stream writes at once, bytes.
const streamWrite = 2000

// Streams are TCP connections on which something flows all the time, to be hashed at both ends. The zero value is ready; its methods may be
// called by one goroutine.
type Streams struct {
	stop  atomic.Bool
	group sync.WaitGroup
	mu    sync.Mutex // guards sum
	sum   StreamsResult
}

// StreamsResult is what became of Streams.
type StreamsResult struct {
	Connections int
	Bytes       int64         // that arrived
	Stall       time.Duration // the longest in which nothing came on one
	Lost        []error       // of connections that ended, or brought other bytes than were sent
}

// Start lets bytes flow from one end of a connection to the other, some each so often, until End. It closes neither.
func (s *Streams) Start(from *net.TCPConn, to net.Conn, every time.Duration) {
	s.mu.Lock()
	s.sum.Connections++
	s.mu.Unlock()
	s.group.Go(func() {
		sent, got := sha256.New(), sha256.New()
		var writer error
		var both sync.WaitGroup
		both.Go(func() { writer = s.write(from, sent, every) })
		reader := s.read(to, got)
		both.Wait()
		err := errors.Join(writer, reader)
		if err == nil && !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			err = fmt.Errorf("%s to %s: other bytes came than were sent", from.LocalAddr(), from.RemoteAddr())
		}
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.sum.Lost = append(s.sum.Lost, err)
		}
	})
}

// Stop lets the streams end by themselves.
func (s *Streams) Stop() { s.stop.Store(true) }

// End lets them end and waits until all has arrived; false means that it has not after so long.
func (s *Streams) End(wait time.Duration) (StreamsResult, bool) {
	s.Stop()
	ended := make(chan struct{})
	go func() { s.group.Wait(); close(ended) }()
	all := true
	select {
	case <-ended:
	case <-time.After(wait):
		all = false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum, all
}

func (s *Streams) write(c *net.TCPConn, sum hash.Hash, every time.Duration) error {
	b := make([]byte, streamWrite)
	random := rand.NewChaCha8([32]byte{byte(rand.Uint32())})
	for !s.stop.Load() {
		random.Read(b)
		sum.Write(b)
		if _, err := c.Write(b); err != nil {
			return err
		}
		time.Sleep(every)
	}
	return c.CloseWrite()
}

func (s *Streams) read(c net.Conn, sum hash.Hash) error {
	b, last := make([]byte, 1<<16), time.Now()
	for {
		n, err := c.Read(b)
		sum.Write(b[:n])
		now := time.Now()
		s.mu.Lock()
		s.sum.Bytes += int64(n)
		s.sum.Stall = max(s.sum.Stall, now.Sub(last))
		s.mu.Unlock()
		last = now
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
