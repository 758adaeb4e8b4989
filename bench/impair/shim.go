package impair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	frameRoom     = 1 << 16
	receiveBuffer = 32 << 20 // bytes of the socket: a burst must not be lost there
	burst         = 64       // frames read before those that are due go out
)

// Shim forwards between two devices, a and b, until it is stopped. Its methods may be called from several goroutines.
type Shim struct {
	directions [2]*direction // a to b, b to a
	stop       sync.Once
	stopped    error
}

// direction is a goroutine's: it alone reads from one socket, writes to the other and decides.
type direction struct {
	in, out int // sockets
	wake    int // eventfd: readable once the shim is to stop
	done    chan struct{}
	err     error // valid once done is closed

	mu   sync.Mutex // guards line, between the goroutine and Stats
	line *line
}

// Between starts forwarding between two devices of the calling thread's namespace.
func Between(a, b string, aToB, bToA Spec) (*Shim, error) {
	if err := errors.Join(aToB.Check(), bToA.Check()); err != nil {
		return nil, err
	}
	socketA, err := openPacket(a)
	if err != nil {
		return nil, err
	}
	socketB, err := openPacket(b)
	if err != nil {
		unix.Close(socketA)
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(socketA)
		unix.Close(socketB)
		return nil, fmt.Errorf("impair: eventfd: %w", err)
	}
	s := &Shim{}
	for i, spec := range []Spec{aToB, bToA} {
		d := &direction{in: socketA, out: socketB, wake: wake, done: make(chan struct{}), line: newLine(spec)}
		if i == 1 {
			d.in, d.out = socketB, socketA
		}
		s.directions[i] = d
		go d.run()
	}
	return s, nil
}

// Stop ends forwarding; what is held back is gone. The error is what ended a direction before.
func (s *Shim) Stop() error {
	s.stop.Do(func() {
		d := s.directions
		_, err := unix.Write(d[0].wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		if err == nil {
			<-d[0].done
			<-d[1].done
			err = errors.Join(d[0].err, d[1].err)
		}
		s.stopped = errors.Join(err, unix.Close(d[0].in), unix.Close(d[0].out), unix.Close(d[0].wake))
	})
	return s.stopped
}

// Stats are those of a to b and of b to a.
func (s *Shim) Stats() (aToB, bToA Stats) {
	return s.directions[0].stats(), s.directions[1].stats()
}

func (d *direction) stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.line.stats
}

// openPacket gives a socket that reads and writes the whole frames of one device, and does not read its own.
func openPacket(device string) (fd int, err error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return -1, fmt.Errorf("impair: device %s: %w", device, err)
	}
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("impair: packet socket: %w", err)
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: link.Index})
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("impair: packet socket on %s: %w", device, err)
	}
	return fd, nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

func (d *direction) run() {
	defer close(d.done)
	b := make([]byte, frameRoom)
	for {
		stop, err := d.poll()
		if err == nil && !stop {
			err = d.read(b)
		}
		if err != nil || stop {
			d.err = err
			return
		}
		d.write()
		d.countMissed()
	}
}

// poll waits for a frame to come in, for one to be due, or for the end.
func (d *direction) poll() (stop bool, err error) {
	d.mu.Lock()
	wait := d.line.wait(time.Now())
	d.mu.Unlock()
	var timeout *unix.Timespec
	if wait >= 0 {
		t := unix.NsecToTimespec(int64(wait))
		timeout = &t
	}
	fds := []unix.PollFd{{Fd: int32(d.in), Events: unix.POLLIN}, {Fd: int32(d.wake), Events: unix.POLLIN}}
	if _, err := unix.Ppoll(fds, timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("impair: poll: %w", err)
	}
	return fds[1].Revents != 0, nil
}

func (d *direction) read(b []byte) error {
	for range burst {
		n, _, err := unix.Recvfrom(d.in, b, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // the device may come up again
			continue
		case err != nil:
			return fmt.Errorf("impair: read: %w", err)
		}
		d.mu.Lock()
		d.line.admit(b[:n], time.Now())
		d.mu.Unlock()
	}
	return nil
}

// write sends what is due.
func (d *direction) write() {
	for {
		d.mu.Lock()
		f := d.line.next(time.Now())
		d.mu.Unlock()
		if f == nil {
			return
		}
		err := d.send(f)
		d.mu.Lock()
		d.line.sent(err == nil)
		d.mu.Unlock()
	}
}

// send waits while the device's queue is full.
func (d *direction) send(f []byte) error {
	for {
		err := unix.Send(d.out, f, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(d.out), Events: unix.POLLOUT}}, 10); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		default:
			return err
		}
	}
}

// countMissed adds the socket's drops since the last look: reading them sets them back.
func (d *direction) countMissed() {
	stats, err := unix.GetsockoptTpacketStats(d.in, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return
	}
	d.mu.Lock()
	d.line.stats.Missed += uint64(stats.Drops)
	d.mu.Unlock()
}
