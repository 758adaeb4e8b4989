package bench

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	loopback  = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
)

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestPing(t *testing.T) {
	for _, dst := range []netip.Addr{loopback, loopback6} {
		t.Run(dst.String(), func(t *testing.T) { testPing(t, dst) })
	}
}

func testPing(t *testing.T, dst netip.Addr) {
	for _, opts := range []Ping{
		{},
		{Count: 20, Interval: time.Millisecond, Size: 56},
		{Count: 3, Size: 9000, DF: true, TTL: 1},
		{Count: 100, Size: 3000},
	} {
		t.Run(fmt.Sprintf("%+v", opts), func(t *testing.T) {
			p, err := NewPinger(dst, opts)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for range 2 {
				r, err := p.Run(deadline(t, 5*time.Second))
				if err != nil {
					t.Fatal(err)
				}
				count := max(opts.Count, 1)
				if r.Sent != count || r.Received != count || r.Lost() != 0 || r.Duplicates+r.Corrupt+r.Late != 0 || r.Err != nil || r.TTL != 64 {
					t.Errorf("got %+v, want %d sent and received", r, count)
				}
				if len(r.RTT) != count || r.Min() <= 0 || r.Min() > r.Median() || r.Median() > r.Max() || r.Avg() > r.Max() {
					t.Errorf("RTT min %v median %v avg %v max %v of %d", r.Min(), r.Median(), r.Avg(), r.Max(), len(r.RTT))
				}
			}
		})
	}
}

// The judge itself: replies fed by hand, as a network that duplicates, corrupts and delays would.
func TestPingJudges(t *testing.T) {
	p := &Pinger{icmp: icmpv4, opts: Ping{Count: 4, Timeout: time.Second, Size: 8}, id: 7, base: []byte("pinger's")}
	now := time.Now()
	p.sent, p.seen = []time.Time{now, now, now, {}}, make([]bool, 4)
	ms := time.Millisecond
	reply := func(seq uint16, after time.Duration, spoil func([]byte)) {
		m := p.message(icmpv4.echoReply, seq)
		spoil(m)
		p.reply(m, 61, now.Add(after))
	}
	right := func([]byte) {}
	reply(0, ms, right)
	reply(0, 2*ms, right)                               // duplicate
	reply(1, ms, func(m []byte) { m[len(m)-1] ^= 1 })   // corrupt payload
	reply(1, ms, func(m []byte) { m[2] ^= 1 })          // corrupt checksum
	reply(2, 2*time.Second, right)                      // late
	reply(3, ms, right)                                 // not asked for
	reply(1, ms, func(m []byte) { m[4] ^= 1 })          // another pinger's
	reply(1, ms, func(m []byte) { m[0] = icmpv4.echo }) // a request
	reply(9, ms, right)                                 // no such number
	p.reply([]byte{0, 0, 0}, 60, now)                   // too short
	want := PingResult{Received: 1, Duplicates: 1, Corrupt: 2, Late: 1, TTL: 61}
	got := p.res
	if got.Received != want.Received || got.Duplicates != want.Duplicates || got.Corrupt != want.Corrupt || got.Late != want.Late ||
		got.TTL != want.TTL {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestPingLoss(t *testing.T) {
	p, err := NewPinger(netip.MustParseAddr("127.0.0.1"), Ping{Count: 3, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// Block everything, echo replies too.
	raw, _ := p.conn.SyscallConn()
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_RAW, icmpFilter, -1) })
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Run(deadline(t, 5*time.Second))
	if err != nil || r.Sent != 3 || r.Lost() != 3 {
		t.Errorf("got %+v, %v, want 3 lost", r, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("run with a cancelled context: %v", err)
	}
}

// tcpPair is a connection over loopback.
func tcpPair(t *testing.T) (tx, rx net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if tx, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if rx, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Close(); rx.Close() })
	return tx, rx
}

func TestTransfer(t *testing.T) {
	for _, n := range []int64{0, 1, chunk + 1, 100 << 20} {
		tx, rx := tcpPair(t)
		r, err := Transfer(deadline(t, 20*time.Second), crand.Reader, n, tx, rx)
		if err != nil || r.Received != n || r.SentSum != r.ReceivedSum {
			t.Errorf("%d bytes: %+v, %v", n, r, err)
		}
		t.Logf("%d bytes: %.2f Gb/s", n, r.Gbps())
	}
}

// meddler changes what passes.
type meddler struct {
	net.Conn
	write func(net.Conn, []byte) (int, error)
}

func (m meddler) Write(b []byte) (int, error) { return m.write(m.Conn, b) }

func TestTransferNotices(t *testing.T) {
	flip := func(c net.Conn, b []byte) (int, error) {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 0x10
		return c.Write(b)
	}
	short := func(c net.Conn, b []byte) (int, error) { c.Write(b[1:]); return len(b), nil }
	fail := func(net.Conn, []byte) (int, error) { return 0, errors.New("no way") }
	swallow := func(_ net.Conn, b []byte) (int, error) { return len(b), nil }
	for _, test := range []struct {
		name, want string
		src        string
		write      func(net.Conn, []byte) (int, error)
	}{
		{"changed byte", "SHA-256", "0123456789", flip},
		{"missing byte", "9 arrived", "0123456789", short},
		{"nothing", "0 arrived", "0123456789", swallow},
		{"write error", "no way", "0123456789", fail},
		{"source too short", "5 of 10 bytes sent", "01234", net.Conn.Write},
	} {
		t.Run(test.name, func(t *testing.T) {
			tx, rx := tcpPair(t)
			_, err := Transfer(deadline(t, 5*time.Second), strings.NewReader(test.src), 10, meddler{tx, test.write}, rx)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	t.Run("deadline", func(t *testing.T) {
		tx, _ := tcpPair(t)
		_, rx := tcpPair(t)
		_, err := Transfer(deadline(t, 50*time.Millisecond), crand.Reader, 1<<30, tx, rx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func udpPair(t *testing.T) (client, server *net.UDPConn) {
	t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	if client, err = net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestExchange(t *testing.T) {
	for _, size := range []int{8, 64, 9000, 65507} {
		client, server := udpPair(t)
		r, err := Exchange(deadline(t, 5*time.Second), client, server, size, 20, time.Second)
		if want := (ExchangeResult{Sent: 20, Answered: 20}); err != nil || r != want {
			t.Errorf("%d bytes: got %+v, %v, want %+v", size, r, err, want)
		}
	}
	client, server := udpPair(t)
	if _, err := Exchange(deadline(t, time.Second), client, server, 7, 1, time.Second); err == nil {
		t.Error("7 bytes have no room for the sequence number, and no error")
	}
}

func TestExchangeNotices(t *testing.T) {
	client, server := udpPair(t)
	// A stranger's datagram is in the server's queue before the first request, and stands for a changed one.
	other, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.Write(bytes.Repeat([]byte{0xff}, 64))
	r, err := Exchange(deadline(t, 5*time.Second), client, server, 64, 2, 50*time.Millisecond)
	// The first request, given up, is still in the queue when the second arrives, and is passed over.
	if want := (ExchangeResult{Sent: 2, Answered: 1, Mismatched: 1}); err != nil || r != want {
		t.Errorf("changed: got %+v, %v, want %+v", r, err, want)
	}
	// Requests go to one socket while another is listened to: all are lost.
	client, _ = udpPair(t)
	_, server = udpPair(t)
	r, err = Exchange(deadline(t, 5*time.Second), client, server, 64, 2, 20*time.Millisecond)
	if want := (ExchangeResult{Sent: 2}); err != nil || r != want {
		t.Errorf("lost: got %+v, %v, want %+v", r, err, want)
	}
}
