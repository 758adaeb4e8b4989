package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sinkBuffer   = 16 << 20 // SO_RCVBUFFORCE, bytes; the kernel doubles it
	senderBuffer = 4 << 20
)

// UDP is the sockets of a stream, open for any number of trials, one at a time.
type UDP struct {
	ends  Ends
	flows []int // the client's sockets
	far   farUDP
}

// farUDP is the server's side, in this process or in another. One trial at a time.
type farUDP interface {
	open() (port int, err error)
	start(trial uint32, s Stream, begin time.Time) error // receives, or sends back if s is to be echoed
	finish(sent uint64) (heard, error)                   // to be called once after each start
	close() error
}

// heard is what a server knows of a trial: of one that was echoed, nothing.
type heard struct {
	Counts      Counts
	SocketDrops uint64
	Latency     Latency
}

// UDPResult is what became of a trial's datagrams.
type UDPResult struct {
	Offered float64       `json:"offered"` // datagrams a second; 0 if unpaced
	Elapsed time.Duration `json:"elapsed"` // ns in JSON; of the sending
	Sent    uint64        `json:"sent"`    // taken by the client's kernel
	Counts
	Refused     uint64  `json:"refused"`     // sends turned down for want of room, and made again
	SocketDrops uint64  `json:"socketDrops"` // of the lost, those for which the server's socket had no room
	Latency     Latency `json:"latency,omitzero"`
	Late        Latency `json:"late,omitzero"` // of Latency, what passed before the client's kernel was given the datagram
	CPU         CPUTime `json:"cpu"`
}

// limit is the share of a figure from which on the generator's own part is the figure.
const limit = 0.9

// GeneratorBound says that the trial tells of the generator and not of the path: most of what was lost had reached the server's socket,
// which had no room for it, or the sender was late by nearly all of the delay.
func (r UDPResult) GeneratorBound() bool {
	return r.Lost() > 0 && 2*r.SocketDrops > r.Lost() || r.Latency.Count > 0 && float64(r.Late.P50) >= limit*float64(r.Latency.P50)
}

// Lost is the number of those that never arrived.
func (r UDPResult) Lost() uint64 { return r.Sent - r.Received }

// LossRatio is the part of the sent that is lost; 1 if none was sent.
func (r UDPResult) LossRatio() float64 {
	if r.Sent == 0 {
		return 1
	}
	return float64(r.Lost()) / float64(r.Sent)
}

// SentRate and ReceivedRate are datagrams a second.
func (r UDPResult) SentRate() float64     { return float64(r.Sent) / r.Elapsed.Seconds() }
func (r UDPResult) ReceivedRate() float64 { return float64(r.Received) / r.Elapsed.Seconds() }

// OpenUDP makes the server's socket and flows of the client's, which are connected to it.
func OpenUDP(ends Ends, flows int) (_ *UDP, err error) {
	u := &UDP{ends: ends, far: &localUDP{place: ends.Server, fd: -1}}
	if ends.Remote != nil {
		u.far = remoteUDP{ends.Remote, new(int)}
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("udp sockets: %w", err), u.Close())
		}
	}()
	port, err := u.far.open()
	if err != nil {
		return nil, err
	}
	for i := range flows {
		from := ends.source(i)
		if err := from.in(func() error { return u.connect(from, port) }); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (u *UDP) connect(from Place, port int) error {
	fd, err := udpSocket(from)
	if err != nil {
		return err
	}
	u.flows = append(u.flows, fd)
	return unix.Connect(fd, u.ends.Server.sockaddr(port))
}

// udpSocket is bound to the place's address and a port of the kernel's choice. It fragments what is larger than the MTU.
func udpSocket(p Place) (fd int, err error) {
	if fd, err = unix.Socket(p.domain(), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if p.domain() == unix.AF_INET6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	timeout := unix.NsecToTimeval(int64(sinkPoll))
	err = errors.Join(
		unix.SetsockoptInt(fd, level, option, unix.IP_PMTUDISC_DONT),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sinkBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, senderBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(fd, p.sockaddr(0)))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func portOf(name unix.Sockaddr) int {
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

// Close closes the sockets.
func (u *UDP) Close() error {
	failed := u.far.close()
	for _, fd := range u.flows {
		failed = errors.Join(failed, unix.Close(fd))
	}
	return failed
}

// Run makes one trial. Loss is no error: an error means that ctx ended, that s is not for these sockets, or that one failed.
func (u *UDP) Run(ctx context.Context, s Stream) (UDPResult, error) {
	if err := s.normalize(); err != nil {
		return UDPResult{}, err
	}
	if s.Flows > len(u.flows) {
		return UDPResult{}, fmt.Errorf("stream: %d flows over %d sockets", s.Flows, len(u.flows))
	}
	flows := u.flows[:s.Flows]
	if err := segmentation(flows, s); err != nil {
		return UDPResult{}, err
	}
	t := &trial{client: u.ends.Client, far: u.far, stream: s, tx: newSender(s, flows)}
	if s.Echo {
		t.rx = newSink(s, flows[0])
	}
	return t.run(ctx)
}

// segmentation sets UDP_SEGMENT of udp(7) on the client's sockets, 0 for none.
func segmentation(fds []int, s Stream) error {
	size := 0
	if s.Segments > 1 {
		size = s.Sizes[0]
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
			return fmt.Errorf("set UDP_SEGMENT to %d: %w", size, err)
		}
	}
	return nil
}
