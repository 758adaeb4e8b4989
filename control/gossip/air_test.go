package gossip

import (
	"context"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// An air carries datagrams and streams between nodes in memory, with a delay and a loss. Inside a bubble of testing/synctest the
// delays are of the bubble's clock.
type air struct {
	mu    sync.Mutex
	ports map[netip.AddrPort]*airPort
	slow  map[netip.AddrPort]bool

	packets, packetBytes, streams, streamBytes, lost atomic.Int64
}

// What a slow node does to each datagram from and to it, and to each stream: it is late by up to slowDelay, and some are lost.
const (
	usualDelay = time.Millisecond
	slowDelay  = time.Second
	slowLoss   = 0.1
)

type airPort struct {
	air     *air
	at      netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    chan struct{}
	once    sync.Once
}

func newAir() *air {
	return &air{ports: map[netip.AddrPort]*airPort{}, slow: map[netip.AddrPort]bool{}}
}

// listen is Config.listen.
func (a *air) listen(_ context.Context, at netip.AddrPort, _ *log.Logger) (memberlist.NodeAwareTransport, error) {
	p := &airPort{air: a, at: at, packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 1024), down: make(chan struct{})}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ports[at] = p
	return p, nil
}

// way returns the port at the address, nil for none, and how long something takes there.
func (a *air) way(from netip.AddrPort, to string) (p *airPort, late time.Duration, slow bool) {
	at, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, 0, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p, slow = a.ports[at], a.slow[from] || a.slow[at]
	late = usualDelay/2 + rand.N(usualDelay)
	if slow {
		late = rand.N(slowDelay)
	}
	return p, late, slow
}

func (p *airPort) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return p.at.Addr().AsSlice(), int(p.at.Port()), nil
}

func (p *airPort) WriteTo(b []byte, addr string) (time.Time, error) {
	return p.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (p *airPort) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	p.air.packets.Add(1)
	p.air.packetBytes.Add(int64(len(b)))
	other, late, slow := p.air.way(p.at, to.Addr)
	if other == nil || slow && rand.Float64() < slowLoss {
		return time.Now(), nil
	}
	from := net.UDPAddrFromAddrPort(p.at)
	time.AfterFunc(late, func() {
		select {
		case other.packets <- &memberlist.Packet{Buf: b, From: from, Timestamp: time.Now()}:
		default:
			p.air.lost.Add(1)
		}
	})
	return time.Now(), nil
}

func (p *airPort) PacketCh() <-chan *memberlist.Packet { return p.packets }
func (p *airPort) StreamCh() <-chan net.Conn           { return p.streams }

func (p *airPort) Shutdown() error {
	p.once.Do(func() {
		p.air.mu.Lock()
		defer p.air.mu.Unlock()
		delete(p.air.ports, p.at)
		close(p.down)
	})
	return nil
}

func (p *airPort) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return p.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (p *airPort) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	other, late, _ := p.air.way(p.at, to.Addr)
	time.Sleep(min(late, timeout))
	if other == nil || late > timeout {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("i/o timeout")}
	}
	p.air.streams.Add(1)
	here, there := net.Pipe()
	_ = here.SetDeadline(time.Now().Add(streamTimeout)) // a pipe has no buffer: memberlist writes the label before it sets a deadline
	select {
	case other.streams <- &airConn{there, p.air, p.at}:
		return &airConn{here, p.air, other.at}, nil
	case <-other.down:
	case <-p.down:
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: io.ErrClosedPipe}
}

// An airConn is one end of a stream.
type airConn struct {
	net.Conn
	air  *air
	peer netip.AddrPort
}

func (c *airConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

func (c *airConn) Write(b []byte) (int, error) {
	c.air.streamBytes.Add(int64(len(b)))
	return c.Conn.Write(b)
}
