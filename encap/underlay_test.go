package encap

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func TestSuperPacketOverLoopback(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		if want := []string{"udp_segment", "udp_gro"}; !slices.Equal(a.Offloads(), want) || !slices.Equal(b.Offloads(), want) {
			t.Fatalf("offloads %v and %v, want %v", a.Offloads(), b.Offloads(), want)
		}
		tests := map[string]struct {
			data    []byte
			gsoSize int
		}{
			"TCP":                                    {flow{1, 2}.tcp(t, pattern(60001)), 1410},
			"UDP":                                    {flow{1, 2}.udp(t, pattern(60001)), 1422},
			"TCP, more segments than one send takes": {flow{1, 2}.tcp(t, pattern(50000)), 100},
			"TCP, full segments":                     {flow{1, 2}.tcp(t, pattern(40*1410)), 1410},
			"TCP, one segment":                       {flow{1, 2}.tcp(t, pattern(1000)), 1410},
			"TCP, no payload":                        {flow{1, 2}.tcp(t, nil), 1410},
			"TCP, segments of one byte":              {flow{1, 2}.tcp(t, pattern(130)), 1},
			"TCP, more bytes than one send takes":    {flow{1, 2}.tcp(t, pattern(16*4034)), 4034}, // 16 datagrams of 4096 bytes are too many
		}
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				out, in := packet.NewBatch(0), packet.NewBatch(1<<21)
				f := outgoing(t, out, tt.data, tt.gsoSize, to)
				want := wire(f)
				if err := a.Write(out); err != nil {
					t.Fatal(err)
				}
				checkSent(t, out)
				checkArrived(t, receive(t, b, in, len(want)), want)
				if joined := int(b.recv.msgs[0].len); len(want) > 1 && joined <= len(want[0]) {
					t.Errorf("%d datagrams arrived one by one (the first read has %d bytes)", len(want), joined)
				}
			})
		}
		if a.Fallbacks() != 0 {
			t.Errorf("%d fallbacks", a.Fallbacks())
		}
	})
}

// The payloads of the segments, put together, are the super-packet's.
func TestReassembly(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		out, in := packet.NewBatch(0), packet.NewBatch(1<<21)
		payload := pattern(64000)
		outgoing(t, out, flow{1, 2}.tcp(t, payload), 1410, to)
		a.Write(out)
		var got []byte
		next := packet.NewBatch(0)
		for _, d := range receive(t, b, in, 46) {
			f := load(next, d.data)
			if codec(t, 1).Decap(f) != packet.None || f.Parse() != packet.None {
				t.Fatalf("not a packet: %x", d.data)
			}
			got = append(got, d.data[f.Payload-packet.Headroom:]...)
		}
		if !bytes.Equal(got, payload) {
			t.Errorf("%d bytes arrived of %d, or others", len(got), len(payload))
		}
	})
}

// The outer source port is a hash of the inner flow, the same for both directions and for
// super-packets.
func TestSourcePorts(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		out, in := packet.NewBatch(4<<20), packet.NewBatch(1<<21)
		const flows, perFlow = 300, 5
		for i := range uint16(flows) {
			client := 1000 + i
			outgoing(t, out, flow{client, 80}.tcp(t, pattern(100)), 0, to)
			outgoing(t, out, flow{client, 80}.tcp(t, pattern(3000)), 1000, to)
			outgoing(t, out, reverse(flow{client, 80}.tcp(t, pattern(50))), 0, to)
		}
		a.Write(out)
		checkSent(t, out)
		byFlow, ports := map[uint16]uint16{}, map[uint16]int{}
		for _, d := range receive(t, b, in, perFlow*flows) {
			l4 := d.data[8+14+20:]
			client := max(uint16(l4[0])<<8|uint16(l4[1]), uint16(l4[2])<<8|uint16(l4[3]))
			if port, ok := byFlow[client]; ok && port != d.remote.Port() {
				t.Fatalf("flow %d leaves from ports %d and %d", client, port, d.remote.Port())
			}
			byFlow[client] = d.remote.Port()
			ports[d.remote.Port()]++
		}
		if len(ports) != senders || len(byFlow) != flows {
			t.Errorf("%d flows leave from %d ports, want %d from %d", len(byFlow), len(ports), flows, senders)
		}
		for port, n := range ports { // 94 on average
			if n > 3*perFlow*flows/senders || n < perFlow*flows/senders/4 {
				t.Errorf("port %d carries %d of %d datagrams", port, n, perFlow*flows)
			}
		}
	})
}

// reverse swaps addresses and ports of a frame without options.
func reverse(data []byte) []byte {
	d := bytes.Clone(data)
	copy(d[26:30], data[30:34])
	copy(d[30:34], data[26:30])
	copy(d[34:36], data[36:38])
	copy(d[36:38], data[34:36])
	return d
}

// The TOS byte or traffic class arrives as it was sent, in both directions.
func TestOuterTOS(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		back := boundTo(t, a.receiver)
		for _, tos := range []uint8{0, 1, 2, 3, 0xb8, 0xbb} {
			checkTOS(t, a, b, to, tos)
			checkTOS(t, b, a, back, tos)
		}
	})
}

func checkTOS(t *testing.T, from, to *Underlay, addr netip.AddrPort, tos uint8) {
	t.Helper()
	out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
	for _, gsoSize := range []int{0, 100} {
		outgoing(t, out, flow{1, 2}.udp(t, pattern(250)), gsoSize, addr).OuterTOS = tos
	}
	from.Write(out)
	checkSent(t, out)
	for i, d := range receive(t, to, in, 4) {
		if d.tos != tos {
			t.Errorf("TOS %#x: datagram %d arrives with %#x", tos, i, d.tos)
		}
	}
}

// IPv6 carries 20 bytes more: its length field does not count the header.
func TestLargestDatagram(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		const overhead = 8 + 14 + 20 + 8
		largest := 65507
		if to.Addr().Is6() {
			largest = 65527
		}
		fits := outgoing(t, out, flow{1, 2}.udp(t, pattern(largest-overhead)), 0, to)
		want := wire(fits)
		tooLarge := outgoing(t, out, flow{1, 2}.udp(t, pattern(largest-overhead+1)), 0, to)
		a.Write(out)
		if fits.Sent != 1 || fits.SentBytes != largest || tooLarge.Refused != 1 || tooLarge.Sent != 0 || tooLarge.SentBytes != 0 {
			t.Errorf("%d bytes: %d sent; one more: %d sent, %d refused", largest, fits.Sent, tooLarge.Sent, tooLarge.Refused)
		}
		checkArrived(t, receive(t, b, in, 1), want)
	})
}

// More than one flush: messages, iovecs and header bytes run out one after the other.
func TestBurstBeyondArenas(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		tests := map[string]struct {
			frames, payload, gsoSize int
			build                    func(flow, testing.TB, []byte) []byte
		}{
			"messages":            {5*maxMessages + 1, 100, 0, flow.udp},
			"messages, cut short": {maxMessages, 600, 100, flow.udp},
			"iovecs":              {maxIovecs/2/100 + 5, 10000, 100, flow.udp},
			"header bytes":        {headerArena/142/60 + 10, 3000, 50, flow.longHeaders},
		}
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				a, b, to := lo.pair(t)
				out, in := packet.NewBatch(8<<20), packet.NewBatch(1<<21)
				for i := range tt.frames {
					outgoing(t, out, tt.build(flow{1, 2}, t, pattern(tt.payload+i%2)), tt.gsoSize, to)
				}
				want := wireOf(out)
				a.Write(out)
				checkSent(t, out)
				checkArrived(t, receive(t, b, in, len(want)), want)
			})
		}
	})
}

// A batch with room for one datagram at a time loses nothing.
func TestSmallArena(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		out, in := packet.NewBatch(1<<20), packet.NewBatch(0)
		for i := range 40 {
			outgoing(t, out, flow{1, 2}.udp(t, pattern(1000+i)), 300*(i%2), to)
		}
		want := wireOf(out)
		a.Write(out)
		checkArrived(t, receive(t, b, in, len(want)), want)
	})
}

func (u *Underlay) pending(t *testing.T) uint64 {
	bytes, drops, err := u.QueueDepth()
	if err != nil || drops != 0 {
		t.Fatalf("QueueDepth: %d drops, %v", drops, err)
	}
	return bytes
}

func TestQueueDepth(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		if err := unix.SetsockoptInt(b.receiver, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
			t.Fatal(err)
		}
		out := packet.NewBatch(1 << 20)
		for range 100 { // each in a send of its own: the kernel counts sends that were joined as one
			out.Reset()
			outgoing(t, out, flow{1, 2}.udp(t, pattern(1000)), 0, to)
			a.Write(out)
		}
		bytes, drops, err := b.QueueDepth()
		if err != nil || bytes == 0 || drops == 0 {
			t.Fatalf("a full socket: %d bytes, %d drops, %v", bytes, drops, err)
		}
		in := packet.NewBatch(1 << 21)
		n, _ := b.Read(in)
		if after, again, _ := b.QueueDepth(); n+int(drops) != 100 || after != 0 || again != drops {
			t.Errorf("%d read and %d dropped of 100; then %d bytes, %d drops", n, drops, after, again)
		}
	})
}

// Out of descriptors half way through, Open gives back those that it has.
func TestOpenCleansUp(t *testing.T) {
	before := descriptors(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = uint64(before) + senders/2
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Local: netip.MustParseAddrPort("127.0.0.1:0"), Framing: codec(t, 1), Workers: 2})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t); !errors.Is(err, unix.EMFILE) || after != before {
		t.Errorf("Open: %v; %d descriptors before, %d after", err, before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAllocates(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		for i := range uint16(10) {
			outgoing(t, out, flow{i, 2}.tcp(t, pattern(30000)), 1410, to).OuterTOS = 2
			outgoing(t, out, flow{i, 2}.udp(t, pattern(100)), 0, to)
		}
		want, got := len(wireOf(out)), 0
		once := func() {
			a.Write(out)
			for got = 0; got < want && !silent(b.FD()); {
				in.Reset()
				n, _ := b.Read(in)
				got += n
			}
		}
		once()
		if n := testing.AllocsPerRun(20, once); n != 0 || got != want {
			t.Errorf("%v allocations for writing and reading %d segments of %d", n, got, want)
		}
	})
}

// silent reports whether nothing comes for a second.
func silent(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, _ := unix.Poll(fds[:], 1000)
	return n == 0
}
