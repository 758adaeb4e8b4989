// Package bench makes test traffic and judges what comes back: ICMP echo, a hashed TCP transfer, a UDP request and echo.
//
// It owns no namespace, no node and no route. Sockets belong to the namespace in which the caller makes them; data moves
// from anywhere. Every payload is verified: a packet that arrives changed is reported as such, never counted as received.
// Follows RFC 792 and raw(7).
package bench

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	icmpEcho      = 8
	icmpEchoReply = 0
	icmpHeader    = 8
	// icmpFilter is ICMP_FILTER of linux/icmp.h, at level SOL_RAW.
	icmpFilter = 1
	// receiveBuffer keeps a burst of replies from being lost at the socket and laid to the network.
	receiveBuffer = 16 << 20
)

// Ping says what a Pinger sends. Zero values: Count 1, Timeout 1 s, Interval none, Size 0.
type Ping struct {
	Count    int           // 1 to 65,536
	Interval time.Duration // from request to request
	Timeout  time.Duration // for each reply
	Size     int           // of the ICMP payload, bytes
	DF       bool          // set DF and never fragment; else DF is clear
}

// PingResult counts requests and replies. RTT has one entry for each of the Received, sorted.
type PingResult struct {
	Sent       int
	Received   int // answered in time by a right reply
	Late       int // right, but after Timeout
	Duplicates int
	Corrupt    int // right id and sequence number, wrong payload
	RTT        []time.Duration
	Err        error // last error of the socket: an ICMP unreachable, or message too long with DF
}

// Lost is the number of requests that got no right answer in time.
func (r PingResult) Lost() int { return r.Sent - r.Received }

// Min, Avg, Max and Median summarize RTT; they are 0 when nothing was received.
func (r PingResult) Min() time.Duration    { return r.at(0) }
func (r PingResult) Max() time.Duration    { return r.at(len(r.RTT) - 1) }
func (r PingResult) Median() time.Duration { return r.at(len(r.RTT) / 2) }
func (r PingResult) Avg() time.Duration {
	var sum time.Duration
	for _, d := range r.RTT {
		sum += d
	}
	return sum / time.Duration(max(1, len(r.RTT)))
}

func (r PingResult) at(i int) time.Duration {
	if len(r.RTT) == 0 {
		return 0
	}
	return r.RTT[i]
}

// Pinger sends ICMP echo requests to one IPv4 address over a raw socket. One Run at a time.
type Pinger struct {
	opts Ping
	conn *net.IPConn
	id   uint16
	base []byte // what payloads are made from

	mu   sync.Mutex // guards what follows, shared by the sender and the receiver of a Run
	sent []time.Time
	seen []bool
	res  PingResult
}

// NewPinger opens the socket in the calling thread's namespace. It needs CAP_NET_RAW.
func NewPinger(dst netip.Addr, opts Ping) (*Pinger, error) {
	opts.Count = max(opts.Count, 1)
	if opts.Timeout <= 0 {
		opts.Timeout = time.Second
	}
	if !dst.Is4() || opts.Count > 1<<16 || opts.Size < 0 || opts.Size > 65535-20-icmpHeader {
		return nil, fmt.Errorf("ping %s: IPv4, at most 65536 requests and 65507 bytes only", dst)
	}
	conn, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: dst.AsSlice()})
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", dst, err)
	}
	p := &Pinger{opts: opts, conn: conn, id: uint16(rand.Uint32()), base: make([]byte, opts.Size)}
	crand.Read(p.base)
	if err := p.configure(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ping %s: %w", dst, err)
	}
	return p, nil
}

// configure makes room for replies, keeps all but them away from the socket and sets the DF policy.
func (p *Pinger) configure() error {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return err
	}
	discover := unix.IP_PMTUDISC_DONT
	if p.opts.DF {
		discover = unix.IP_PMTUDISC_DO
	}
	var e error
	err = raw.Control(func(fd uintptr) {
		e = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_RAW, icmpFilter, ^(1<<icmpEchoReply)),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover))
	})
	return errors.Join(err, e)
}

// Close closes the socket.
func (p *Pinger) Close() error { return p.conn.Close() }

// Run sends the requests and waits for their replies or the last one's timeout. Loss is no error: an error means that ctx
// ended or the socket was closed.
func (p *Pinger) Run(ctx context.Context) (PingResult, error) {
	p.sent, p.seen, p.res = make([]time.Time, p.opts.Count), make([]bool, p.opts.Count), PingResult{}
	p.id++ // late replies to an earlier Run are not this one's
	if err := p.conn.SetReadDeadline(time.Time{}); err != nil {
		return PingResult{}, err
	}
	stop := context.AfterFunc(ctx, func() { p.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	received := make(chan error, 1)
	go func() { received <- p.receive() }()
	p.send(ctx)
	if ctx.Err() == nil {
		p.conn.SetReadDeadline(time.Now().Add(p.opts.Timeout))
	}
	if ctx.Err() != nil { // ended between the two lines above, and its deadline was overwritten
		p.conn.SetReadDeadline(time.Unix(1, 0))
	}
	err := <-received
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.Sort(p.res.RTT)
	return p.res, errors.Join(ctx.Err(), err)
}

func (p *Pinger) send(ctx context.Context) {
	for seq := range p.opts.Count {
		m := p.message(icmpEcho, uint16(seq))
		p.mu.Lock()
		p.sent[seq] = time.Now()
		p.res.Sent++
		p.mu.Unlock()
		if _, err := p.conn.Write(m); err != nil {
			p.failed(err)
		}
		if seq == p.opts.Count-1 || p.opts.Interval <= 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(p.opts.Interval):
		}
	}
}

// receive reads until every request is answered or the deadline passes. Errors that an ICMP message caused are noted.
func (p *Pinger) receive() error {
	b := make([]byte, 1<<16)
	for {
		n, _, err := p.conn.ReadFromIP(b)
		now := time.Now()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			p.failed(err)
		case p.reply(b[:n], now):
			return nil
		}
	}
}

// reply counts one message and says whether all requests have been answered now.
func (p *Pinger) reply(m []byte, now time.Time) (done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(m) < icmpHeader || m[0] != icmpEchoReply || binary.BigEndian.Uint16(m[4:]) != p.id {
		return false
	}
	seq := binary.BigEndian.Uint16(m[6:])
	if int(seq) >= len(p.sent) || p.sent[seq].IsZero() {
		return false
	}
	rtt := now.Sub(p.sent[seq])
	switch {
	case !bytes.Equal(m, p.message(icmpEchoReply, seq)):
		p.res.Corrupt++
	case p.seen[seq]:
		p.res.Duplicates++
	case rtt > p.opts.Timeout:
		p.seen[seq] = true
		p.res.Late++
	default:
		p.seen[seq] = true
		p.res.Received++
		p.res.RTT = append(p.res.RTT, rtt)
	}
	return p.res.Received == p.opts.Count
}

func (p *Pinger) failed(err error) {
	p.mu.Lock()
	p.res.Err = err
	p.mu.Unlock()
}

// message is the whole ICMP message, checksum included; each sequence number has a payload of its own.
func (p *Pinger) message(kind byte, seq uint16) []byte {
	m := make([]byte, icmpHeader+len(p.base))
	m[0] = kind
	binary.BigEndian.PutUint16(m[4:], p.id)
	binary.BigEndian.PutUint16(m[6:], seq)
	for i, c := range p.base {
		m[icmpHeader+i] = c ^ byte(seq) ^ byte(seq>>8)
	}
	binary.BigEndian.PutUint16(m[2:], checksum(m))
	return m
}

// checksum is RFC 1071's over b.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
