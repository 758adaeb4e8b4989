// Package bench makes test traffic and judges what comes back: ICMP echo, a hashed TCP transfer, a UDP request and echo, a
// numbered UDP stream.
//
// It owns no namespace, no node and no route. Sockets belong to the namespace in which the caller makes them; data moves
// from anywhere. Every payload is verified: a packet that arrives changed is reported as such, never counted as received.
// Follows RFC 792, RFC 4443 and raw(7).
package bench

import (
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

// receiveBuffer keeps a burst of replies from being lost at the socket and laid to the network.
const receiveBuffer = 16 << 20

// Ping says what a Pinger sends. Zero values: Count 1, Timeout 1 s, Interval none, Size 0.
type Ping struct {
	Count    int           // 1 to 65,536
	Interval time.Duration // from request to request
	Timeout  time.Duration // for each reply
	Size     int           // of the ICMP payload, bytes
	DF       bool          // never fragment, with IPv4 set DF; else fragment at the link's MTU, with DF clear
	TTL      int           // or hop limit of the requests, 1 to 255; 0 for the namespace's default
}

// PingResult counts requests and replies. RTT has one entry for each of the Received, sorted.
type PingResult struct {
	Sent       int
	Received   int // answered in time by a right reply
	Late       int // right, but after Timeout
	Duplicates int
	Corrupt    int // right id and sequence number, wrong payload
	RTT        []time.Duration
	TTL        int   // or hop limit that the last right reply arrived with; 0 if there was none
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

// Pinger sends ICMP or ICMPv6 echo requests to one address over a raw socket. One Run at a time.
type Pinger struct {
	opts Ping
	conn *net.IPConn
	icmp icmp
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
	kind := icmpv4
	if dst.Is6() {
		kind = icmpv6
	}
	if !dst.IsValid() || opts.Count > 1<<16 || opts.Size < 0 || opts.Size > kind.maxSize || opts.TTL < 0 || opts.TTL > 255 {
		return nil, fmt.Errorf("ping %s: at most 65536 requests, %d bytes and a TTL of 255 only", dst, kind.maxSize)
	}
	conn, err := net.DialIP(kind.network, nil, &net.IPAddr{IP: dst.AsSlice(), Zone: dst.Zone()})
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", dst, err)
	}
	p := &Pinger{opts: opts, conn: conn, icmp: kind, id: uint16(rand.Uint32()), base: make([]byte, opts.Size)}
	crand.Read(p.base)
	if err := p.configure(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ping %s: %w", dst, err)
	}
	return p, nil
}

// configure makes room for replies, keeps all but them away from the socket and sets the options of the requests.
func (p *Pinger) configure() error {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = raw.Control(func(fd uintptr) {
		e = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			p.icmp.configure(int(fd), p.opts))
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
		m := p.message(p.icmp.echo, uint16(seq))
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
	b, oob := make([]byte, 1<<16), make([]byte, 64)
	for {
		n, oobn, _, _, err := p.conn.ReadMsgIP(b, oob)
		now := time.Now()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			p.failed(err)
		default:
			m, ttl := p.icmp.split(b[:n], oob[:oobn])
			if p.reply(m, ttl, now) {
				return nil
			}
		}
	}
}

// reply counts one message and says whether all requests have been answered now.
func (p *Pinger) reply(m []byte, ttl int, now time.Time) (done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(m) < icmpHeader || m[0] != p.icmp.echoReply || binary.BigEndian.Uint16(m[4:]) != p.id {
		return false
	}
	seq := binary.BigEndian.Uint16(m[6:])
	if int(seq) >= len(p.sent) || p.sent[seq].IsZero() {
		return false
	}
	rtt := now.Sub(p.sent[seq])
	switch {
	case !p.icmp.equal(m, p.message(p.icmp.echoReply, seq)):
		p.res.Corrupt++
	case p.seen[seq]:
		p.res.Duplicates++
	case rtt > p.opts.Timeout:
		p.seen[seq] = true
		p.res.Late++
	default:
		p.seen[seq] = true
		p.res.Received++
		p.res.RTT, p.res.TTL = append(p.res.RTT, rtt), ttl
	}
	return p.res.Received == p.opts.Count
}

func (p *Pinger) failed(err error) {
	p.mu.Lock()
	p.res.Err = err
	p.mu.Unlock()
}

// message is the whole ICMP message, with RFC 792's checksum; each sequence number has a payload of its own.
func (p *Pinger) message(kind byte, seq uint16) []byte {
	m := make([]byte, icmpHeader+len(p.base))
	m[0] = kind
	binary.BigEndian.PutUint16(m[4:], p.id)
	binary.BigEndian.PutUint16(m[6:], seq)
	for i, c := range p.base {
		m[icmpHeader+i] = c ^ byte(seq) ^ byte(seq>>8)
	}
	binary.BigEndian.PutUint16(m[2:], Checksum(m))
	return m
}

// Checksum is RFC 1071's over b.
func Checksum(b []byte) uint16 {
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
