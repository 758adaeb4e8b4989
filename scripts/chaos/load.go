package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

const (
	streamRate  = 1000 // datagrams a second of one numbered stream
	streamSlice = 2000 // datagrams until a stream begins anew
	streamQuiet = 500 * time.Millisecond
	connections = 60 // that stay
	connectGap  = 5 * time.Millisecond
	// connectTime bounds the beginning of a connection: SYNs are sent again after 1, 3, 7 and 15 s.
	connectTime = 20 * time.Second
	// stallTime is after how long without progress a connection counts as lost.
	stallTime = 60 * time.Second
)

// traffic is what the load noticed.
type traffic struct {
	Sent       uint64        `json:"datagramsSent"`
	Received   uint64        `json:"datagramsReceived"` // different ones, unchanged
	Duplicates uint64        `json:"duplicates"`
	Reordered  uint64        `json:"reordered"`
	Changed    uint64        `json:"changed"`   // datagrams and bytes of connections that arrived other than they were sent
	Exchanges  uint64        `json:"exchanges"` // messages sent and echoed over connections that stay
	Lost       uint64        `json:"connectionsLost"`
	Stall      time.Duration `json:"longestStall"` // of a connection that stays, ns
	Begun      uint64        `json:"connectionsBegun"`
	Refused    uint64        `json:"connectionsRefused"` // that could not begin
	LastError  string        `json:"lastError,omitempty"`
}

// since is what came since before; the stall is that of the whole time.
func (t traffic) since(before traffic) traffic {
	t.Sent -= before.Sent
	t.Received -= before.Received
	t.Duplicates -= before.Duplicates
	t.Reordered -= before.Reordered
	t.Changed -= before.Changed
	t.Exchanges -= before.Exchanges
	t.Lost -= before.Lost
	t.Begun -= before.Begun
	t.Refused -= before.Refused
	return t
}

// load is the background traffic, between the pods of all nodes.
type load struct {
	pairs  []lab.Pair
	places map[netip.Addr]string // pods' namespaces
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu  sync.Mutex
	sum traffic
}

func startLoad(ctx context.Context, l *lab.Lab, rate int) (*load, error) {
	w := &load{places: map[netip.Addr]string{}}
	for _, n := range l.Nodes() {
		for _, p := range n.Pods {
			w.places[p.Addr] = p.Namespace
		}
	}
	for _, p := range l.PodPairs() {
		if !p.Local {
			w.pairs = append(w.pairs, p)
		}
	}
	ctx, w.cancel = context.WithCancel(ctx)
	echoes := map[netip.Addr]netip.AddrPort{}
	for addr, namespace := range w.places {
		at, err := w.serve(ctx, namespace, addr)
		if err != nil {
			w.stop()
			return nil, err
		}
		echoes[addr] = at
	}
	for i := range max(1, rate/streamRate) {
		w.all.Go(func() { w.stream(ctx, w.pairs[i%len(w.pairs)], streamGap(min(rate, streamRate))) })
	}
	for i := range connections {
		p := w.pairs[i%len(w.pairs)]
		w.all.Go(func() { w.stay(ctx, p, echoes[p.Addr]) })
	}
	w.all.Go(func() { w.comeAndGo(ctx, echoes) })
	return w, nil
}

// streamGap is the time from datagram to datagram that makes up for the silence at the end of each slice: the rate is that of the whole.
func streamGap(rate int) time.Duration {
	return time.Second/time.Duration(rate) - streamQuiet/streamSlice
}

// stop ends the traffic.
func (w *load) stop() traffic {
	w.cancel()
	w.all.Wait()
	return w.total()
}

func (w *load) total() traffic {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sum
}

func (w *load) note(f func(*traffic)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.sum)
}

// stream sends numbered datagrams, in slices with sockets of their own.
func (w *load) stream(ctx context.Context, p lab.Pair, gap time.Duration) {
	for ctx.Err() == nil {
		tx, rx, err := p.UDP()
		if err != nil {
			w.note(func(t *traffic) { t.LastError = err.Error() })
			sleep(ctx, time.Second)
			continue
		}
		r, err := bench.Sequence{Count: streamSlice, Size: 200, Interval: gap, Quiet: streamQuiet}.Run(ctx, tx, rx)
		tx.Close()
		rx.Close()
		if ctx.Err() != nil {
			return // a slice that was cut off says nothing of what it had not read yet
		}
		w.note(func(t *traffic) {
			t.Sent += uint64(r.Sent)
			t.Received += uint64(r.Received)
			t.Duplicates += uint64(r.Duplicates)
			t.Reordered += uint64(r.Reordered)
			t.Changed += uint64(r.Corrupt)
			if err != nil {
				t.LastError = err.Error()
			}
		})
	}
}

// serve echoes what connections bring to a pod.
func (w *load) serve(ctx context.Context, namespace string, addr netip.Addr) (netip.AddrPort, error) {
	var l net.Listener
	err := lab.In(namespace, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return netip.AddrPort{}, err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	w.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.all.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (w *load) dial(ctx context.Context, namespace string, to netip.AddrPort) (c net.Conn, err error) {
	dialer := net.Dialer{Timeout: connectTime}
	err = lab.In(namespace, func() (err error) {
		c, err = dialer.DialContext(ctx, "tcp4", to.String())
		return err
	})
	return c, err
}

// stay exchanges messages over one connection for as long as it holds, and then over another one.
func (w *load) stay(ctx context.Context, p lab.Pair, to netip.AddrPort) {
	for ctx.Err() == nil {
		c, err := w.dial(ctx, p.From, to)
		if err != nil {
			sleep(ctx, time.Second)
			continue
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		err = w.talk(ctx, c)
		stop()
		c.Close()
		if ctx.Err() == nil {
			w.note(func(t *traffic) { t.Lost++; t.LastError = fmt.Sprintf("%s to %s: %v", p.From, to, err) })
		}
	}
}

func (w *load) talk(ctx context.Context, c net.Conn) error {
	message, echo := make([]byte, 3000), make([]byte, 3000)
	for ctx.Err() == nil {
		crand.Read(message)
		start := time.Now()
		if err := exchange(c, message, echo); err != nil {
			return err
		}
		stall := time.Since(start)
		w.note(func(t *traffic) {
			t.Exchanges++
			t.Stall = max(t.Stall, stall)
			if !bytes.Equal(message, echo) {
				t.Changed++
			}
		})
		sleep(ctx, 20*time.Millisecond)
	}
	return nil
}

func exchange(c net.Conn, message, echo []byte) error {
	if err := c.SetDeadline(time.Now().Add(stallTime)); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(c, echo)
	return err
}

// comeAndGo begins a new connection again and again, for one message.
func (w *load) comeAndGo(ctx context.Context, echoes map[netip.Addr]netip.AddrPort) {
	for i := 0; ctx.Err() == nil; i++ {
		p := w.pairs[i%len(w.pairs)]
		w.all.Go(func() {
			err := w.visit(ctx, p.From, echoes[p.Addr])
			if ctx.Err() != nil {
				return
			}
			w.note(func(t *traffic) {
				if t.Begun++; err != nil {
					t.Refused++
				}
			})
		})
		sleep(ctx, connectGap)
	}
}

func (w *load) visit(ctx context.Context, namespace string, to netip.AddrPort) error {
	c, err := w.dial(ctx, namespace, to)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	message, echo := []byte("a connection for one message"), make([]byte, 28)
	if err := exchange(c, message, echo); err != nil {
		return err
	}
	if !bytes.Equal(message, echo) {
		w.note(func(t *traffic) { t.Changed++ })
		return errors.New("changed")
	}
	return nil
}
