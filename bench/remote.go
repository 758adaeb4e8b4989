package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/rpc"
	"sync"
	"time"
)

// longestRemote bounds what a server keeps for a trial of somebody else.
const longestRemote = 10 * time.Minute

// Serve plays the server of trials for those who Dial, on the address that they reach it by, until ctx ends. Whoever connects can have
// it receive and echo traffic of their own: it is for networks whose users are trusted.
func Serve(ctx context.Context, l net.Listener, cpu int) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var users sync.WaitGroup
	defer users.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		users.Go(func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			serveOne(c, cpu)
		})
	}
}

// serveOne serves one client and closes what that leaves open.
func serveOne(c net.Conn, cpu int) {
	place := Place{Addr: addrOf(c.LocalAddr()), CPU: cpu}
	s := &Service{place: place, udp: map[int]*localUDP{}}
	server := rpc.NewServer()
	if err := server.RegisterName("Bench", s); err != nil {
		panic(err) // the methods are not those of net/rpc
	}
	server.ServeConn(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.udp {
		u.close()
	}
	if s.tcp != nil {
		s.tcp.close()
	}
}

func addrOf(a net.Addr) netip.Addr { return a.(*net.TCPAddr).AddrPort().Addr().Unmap() }

// Service is what net/rpc calls: the server's side of one client's trials.
type Service struct {
	place Place
	mu    sync.Mutex
	udp   map[int]*localUDP // by port
	tcp   *localTCP
}

// UDPCall names a socket and what to do with it.
type UDPCall struct {
	Port   int
	Trial  uint32
	Stream Stream
	Sent   uint64
}

// UDPReply is what a server knows of a trial.
type UDPReply struct {
	Port        int
	Counts      Counts
	SocketDrops uint64
}

// TCPCall says what to do with connections.
type TCPCall struct {
	Connections int
	Transact    Transact
}

// TCPReply is what came over them.
type TCPReply struct {
	Port  int
	Bytes uint64
	At    time.Duration
}

// socket finds the one that a call is about.
func (s *Service) socket(c UDPCall) (*localUDP, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.udp[c.Port]; u != nil {
		return u, nil
	}
	return nil, fmt.Errorf("no UDP socket at port %d", c.Port)
}

// OpenUDP makes a socket.
func (s *Service) OpenUDP(_ UDPCall, r *UDPReply) (err error) {
	u := &localUDP{place: s.place, fd: -1}
	if r.Port, err = u.open(); err != nil {
		return errors.Join(err, u.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.udp[r.Port] = u
	return nil
}

// StartUDP begins a trial.
func (s *Service) StartUDP(c UDPCall, _ *UDPReply) error {
	u, err := s.socket(c)
	if err != nil {
		return err
	}
	if u.listening != nil || u.reflected != nil {
		return errors.New("start a trial: one is under way")
	}
	if err := c.Stream.normalize(); err != nil {
		return err
	}
	if c.Stream.Duration > longestRemote || c.Stream.Rate > 1e8 {
		return fmt.Errorf("stream: %.0f/s for %v: more than a server does for others", c.Stream.Rate, c.Stream.Duration)
	}
	c.Stream.Latency = c.Stream.Latency && c.Stream.Echo // another clock's times mean nothing here
	return u.start(c.Trial, c.Stream, time.Now())
}

// FinishUDP ends it.
func (s *Service) FinishUDP(c UDPCall, r *UDPReply) error {
	u, err := s.socket(c)
	if err != nil {
		return err
	}
	h, err := u.finish(c.Sent)
	r.Counts, r.SocketDrops = h.Counts, h.SocketDrops
	return err
}

// CloseUDP closes a socket.
func (s *Service) CloseUDP(c UDPCall, _ *UDPReply) error {
	u, err := s.socket(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.udp, c.Port)
	s.mu.Unlock()
	return u.close()
}

// ListenTCP begins a trial and ends the one before.
func (s *Service) ListenTCP(_ TCPCall, r *TCPReply) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp != nil {
		s.tcp.close()
	}
	s.tcp = &localTCP{place: s.place, listener: -1}
	r.Port, err = s.tcp.open()
	return err
}

func (s *Service) listener() (*localTCP, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tcp == nil || s.tcp.listener < 0 {
		return nil, errors.New("no TCP listener")
	}
	return s.tcp, nil
}

// DrainTCP accepts connections and reads them.
func (s *Service) DrainTCP(c TCPCall, _ *TCPReply) error {
	l, err := s.listener()
	if err != nil {
		return err
	}
	if c.Connections < 1 || c.Connections > MaxConnections {
		return fmt.Errorf("%d connections: must be 1 to %d", c.Connections, MaxConnections)
	}
	return l.drain(c.Connections)
}

// ReceivedTCP says how much has been read.
func (s *Service) ReceivedTCP(_ TCPCall, r *TCPReply) error {
	l, err := s.listener()
	if err == nil {
		r.Bytes, r.At, err = l.received()
	}
	return err
}

// ServeTCP answers requests.
func (s *Service) ServeTCP(c TCPCall, _ *TCPReply) error {
	l, err := s.listener()
	if err != nil {
		return err
	}
	if c.Transact.Size < 1 || c.Transact.Size > maxTransact {
		return fmt.Errorf("transactions of %d bytes: must be 1 to %d", c.Transact.Size, maxTransact)
	}
	return l.serve(c.Transact)
}

// FinishTCP waits for the ends of the connections.
func (s *Service) FinishTCP(_ TCPCall, _ *TCPReply) error {
	l, err := s.listener()
	if err != nil {
		return err
	}
	return l.finish()
}

// CloseTCP ends the trial.
func (s *Service) CloseTCP(_ TCPCall, _ *TCPReply) error {
	l, err := s.listener()
	if err != nil {
		return err
	}
	return l.close()
}

// Remote is a process that Serves, elsewhere.
type Remote struct{ client *rpc.Client }

// Dial reaches a server, and gives the ends of the path to it: what is measured takes the addresses of this connection.
func Dial(ctx context.Context, addr string, cpu int) (Ends, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return Ends{}, err
	}
	return Ends{Client: Place{Addr: addrOf(c.LocalAddr()), CPU: cpu}, Server: Place{Addr: addrOf(c.RemoteAddr())},
		Remote: &Remote{rpc.NewClient(c)}}, nil
}

// Close ends the connection; the server lets go of all that was for it.
func (r *Remote) Close() error { return r.client.Close() }

type remoteUDP struct {
	*Remote
	port *int
}

func (u remoteUDP) call(method string, c UDPCall) (r UDPReply, err error) {
	c.Port = *u.port
	if err = u.client.Call("Bench."+method, c, &r); err != nil {
		err = fmt.Errorf("server: %w", err)
	}
	return r, err
}

func (u remoteUDP) open() (int, error) {
	r, err := u.call("OpenUDP", UDPCall{})
	*u.port = r.Port
	return r.Port, err
}

func (u remoteUDP) start(trial uint32, s Stream, _ time.Time) error {
	_, err := u.call("StartUDP", UDPCall{Trial: trial, Stream: s})
	return err
}

func (u remoteUDP) finish(sent uint64) (heard, error) {
	r, err := u.call("FinishUDP", UDPCall{Sent: sent})
	return heard{Counts: r.Counts, SocketDrops: r.SocketDrops}, err
}

func (u remoteUDP) close() error {
	if *u.port == 0 {
		return nil
	}
	_, err := u.call("CloseUDP", UDPCall{})
	return err
}

type remoteTCP struct{ *Remote }

func (t remoteTCP) call(method string, c TCPCall) (r TCPReply, err error) {
	if err = t.client.Call("Bench."+method, c, &r); err != nil {
		err = fmt.Errorf("server: %w", err)
	}
	return r, err
}

func (t remoteTCP) open() (int, error) {
	r, err := t.call("ListenTCP", TCPCall{})
	return r.Port, err
}

func (t remoteTCP) drain(n int) error {
	_, err := t.call("DrainTCP", TCPCall{Connections: n})
	return err
}

func (t remoteTCP) received() (uint64, time.Duration, error) {
	r, err := t.call("ReceivedTCP", TCPCall{})
	return r.Bytes, r.At, err
}

func (t remoteTCP) serve(tr Transact) error {
	_, err := t.call("ServeTCP", TCPCall{Transact: tr})
	return err
}

func (t remoteTCP) finish() error {
	_, err := t.call("FinishTCP", TCPCall{})
	return err
}

func (t remoteTCP) close() error {
	_, err := t.call("CloseTCP", TCPCall{})
	return err
}
