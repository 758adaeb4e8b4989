package encap

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func TestReusePort(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a := openConfig(t, Config{Local: netip.AddrPortFrom(lo.a, 0), Framing: codec(t, 1)})[0]
		c := Config{Local: netip.AddrPortFrom(lo.b, 48472), Framing: codec(t, 1), Workers: 3}
		group := openConfig(t, c)
		if _, err := Open(c); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a second group on the port: %v, want %v", err, unix.EADDRINUSE)
		}
		out := packet.NewBatch(1 << 20)
		for i := range uint16(400) {
			outgoing(t, out, flow{i, 80}.udp(t, pattern(100)), 0, c.Local)
		}
		a.Write(out)
		checkSent(t, out)
		checkShared(t, group, 400)
	})
}

// checkShared reads what has arrived at the group: want datagrams in all, those of one source port at one worker.
func checkShared(t *testing.T, group []*Underlay, want int) {
	t.Helper()
	owner, total := map[uint16]*Underlay{}, 0
	in := packet.NewBatch(1 << 21)
	for _, u := range group {
		for u.pending(t) > 0 {
			in.Reset()
			u.Read(in)
			for _, f := range in.Frames {
				if other, ok := owner[f.Remote.Port()]; ok && other != u {
					t.Errorf("datagrams from port %d arrive at both", f.Remote.Port())
				}
				owner[f.Remote.Port()] = u
				total++
			}
		}
	}
	if total != want {
		t.Errorf("%d of %d datagrams arrived", total, want)
	}
}

func TestPortInUse(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		other, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(lo.a, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		before := descriptors(t)
		_, err = Open(Config{Local: other.LocalAddr().(*net.UDPAddr).AddrPort(), Framing: codec(t, 1)})
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another tunnel has this port") {
			t.Errorf("Open on a port in use: %v", err)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors before, %d after a failed call of Open", before, after)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	before := descriptors(t)
	for address, want := range map[string]string{
		"192.0.2.1:8472":     "cannot assign requested address",
		"[2001:db8::1]:8472": "the kernel still looks for duplicates of it",
		"[fe80::1]:8472":     "link-local addresses don't carry a tunnel",
		"[fe80::1%lo]:8472":  "link-local addresses don't carry a tunnel",
		"[fd00::1%lo]:8472":  "link-local addresses don't carry a tunnel",
	} {
		local := netip.MustParseAddrPort(address)
		if _, err := Open(Config{Local: local, Framing: codec(t, 1), Workers: 2}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open of %s: %v, want %q", address, err, want)
		}
		if _, err := OpenProbe(local.Addr()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("OpenProbe of %s: %v, want %q", address, err, want)
		}
	}
	if _, err := Open(Config{}); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("Open of nothing: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after failed calls", before, after)
	}
}

// Both families of a node have the same port, on all addresses too, and IPv4 does not arrive at the IPv6 socket.
func TestBothFamiliesOnOnePort(t *testing.T) {
	inNamespace(t, 65536)
	a4, a6 := open(t, "127.0.0.1:0"), open(t, "[::1]:0")
	b4, b6 := openGroup(t, "0.0.0.0:8472", 2), openGroup(t, "[::]:8472", 2)
	out4, out6 := packet.NewBatch(1<<20), packet.NewBatch(1<<20)
	for i := range uint16(30) {
		outgoing(t, out4, flow{i, 80}.udp(t, pattern(100)), 0, netip.MustParseAddrPort("127.0.0.1:8472"))
		outgoing(t, out6, flow{i, 80}.udp(t, pattern(100)), 0, netip.MustParseAddrPort("[::1]:8472"))
	}
	a4.Write(out4)
	a6.Write(out6)
	checkShared(t, b4, 30)
	checkShared(t, b6, 30)
}

// With a fixed source every datagram leaves from the tunnel's port, whatever its flow and its worker, and
// super-packets do so in as few sends as from other ports. It is one socket for each worker.
func TestFixedSource(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		b := openConfig(t, Config{Local: netip.AddrPortFrom(lo.b, 0), Framing: codec(t, 1)})[0]
		for _, workers := range []int{1, 3} {
			before := descriptors(t)
			c := Config{Local: netip.AddrPortFrom(lo.a, 48473), Framing: codec(t, 1), Workers: workers, FixedSource: true}
			group, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			if n := descriptors(t) - before; n != workers {
				t.Errorf("%d sockets for %d workers", n, workers)
			}
			for _, a := range group {
				checkFixedSource(t, a, b, c.Local)
			}
			checkReceives(t, group, c.Local, b)
			for _, a := range group {
				if err := a.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
		}
	})
}

func checkFixedSource(t *testing.T, a, b *Underlay, source netip.AddrPort) {
	t.Helper()
	out, in, to := packet.NewBatch(4<<20), packet.NewBatch(1<<21), boundTo(t, b.receiver)
	for i := range uint16(100) {
		outgoing(t, out, flow{i, 80}.udp(t, pattern(100)), 0, to)
		outgoing(t, out, flow{i, 80}.tcp(t, pattern(20000)), 1000, to).OuterTOS = 1
	}
	want := wireOf(out)
	a.Write(out)
	checkSent(t, out)
	got := receive(t, b, in, len(want))
	checkArrived(t, got, want)
	for i, d := range got {
		if d.remote != source {
			t.Fatalf("datagram %d leaves from %v, want %v", i, d.remote, source)
		}
	}
	if a.Fallbacks() != 0 || a.Offloads()[0] != "udp_segment" {
		t.Errorf("%d fallbacks, offloads %v", a.Fallbacks(), a.Offloads())
	}
}

// checkReceives: the sockets that send are those that receive.
func checkReceives(t *testing.T, group []*Underlay, to netip.AddrPort, from *Underlay) {
	t.Helper()
	out := packet.NewBatch(1 << 20)
	for i := range uint16(100) {
		outgoing(t, out, flow{i, 80}.udp(t, pattern(100)), 0, to)
	}
	from.Write(out)
	checkShared(t, group, 100)
}
