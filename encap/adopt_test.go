package encap

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// left is what another process has of underlays: copies of their descriptors.
func left[U interface{ Files() []int }](t *testing.T, all ...U) (files []int) {
	t.Helper()
	for _, u := range all {
		for _, fd := range u.Files() {
			c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, c)
		}
	}
	return files
}

// numbered writes datagrams with a number each to the address.
func numbered(t *testing.T, from port, to netip.AddrPort, first, count int) {
	t.Helper()
	for i := first; i < first+count; i++ {
		b := packet.NewBatch(1 << 20)
		outgoing(t, b, flow{1, 2}.udp(t, binary.BigEndian.AppendUint32(nil, uint32(i))), 0, to)
		if err := from.Write(b); err != nil {
			t.Fatal(err)
		}
		checkSent(t, b)
	}
}

func checkNumbered(t *testing.T, got []datagram) {
	t.Helper()
	for i, d := range got {
		if n := binary.BigEndian.Uint32(d.data[len(d.data)-4:]); n != uint32(i) {
			t.Fatalf("datagram %d has number %d", i, n)
		}
	}
}

// TestAdopt closes underlays of which somebody else has the descriptors: what comes meanwhile is read in its order by whoever adopts
// them, and what that one sends leaves from the port that its flow had.
func TestAdopt(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		inBothFamilies(t, func(t *testing.T, lo loopback) {
			c := Config{Framing: codec(t, 1), FixedSource: fixed}
			peer, _, _ := lo.pairOf(t, c)
			c.Local, c.Workers = netip.AddrPortFrom(lo.b, 0), 1
			old, err := Open(c)
			if err != nil {
				t.Fatal(err)
			}
			to := boundTo(t, old[0].receiver)
			c.Local = to
			numbered(t, peer, to, 0, 5)
			var ports [50]uint16
			probe := func(u *Underlay, i int) uint16 {
				b := packet.NewBatch(1 << 20)
				return u.SourcePort(outgoing(t, b, flow{uint16(i), 2}.udp(t, nil), 0, to))
			}
			for i := range ports {
				ports[i] = probe(old[0], i)
			}
			files := left(t, old...)
			if err := old[0].Close(); err != nil {
				t.Fatal(err)
			}
			numbered(t, peer, to, 5, 300)
			all, err := Adopt(c, files)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { all[0].Close() })
			checkNumbered(t, receive(t, all[0], packet.NewBatch(8<<20), 305))
			for i, was := range ports {
				if now := probe(all[0], i); now != was {
					t.Errorf("flow %d leaves from port %d, was %d", i, now, was)
				}
			}
			numbered(t, all[0], boundTo(t, peer.receiver), 0, 20)
			checkNumbered(t, receive(t, peer, packet.NewBatch(8<<20), 20))
		})
	}
}

// TestAdoptPacket is TestAdopt with raw sockets.
func TestAdoptPacket(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		peer := w.packet(t, 0, Config{})[0]
		c := PacketConfig{Config: Config{Framing: codec(t, 1), Local: w.addr(1)}, NextHops: new(NextHops), Clock: func() time.Duration { return w.now }}
		c.NextHops.Publish(w.hops(1))
		var old, all []*PacketUnderlay
		var err error
		w.in(t, 1, func() {
			c.Link = w.link(t, 1).Attrs().Index
			if old, err = OpenPacket(c); err != nil {
				t.Fatal(err)
			}
		})
		numbered(t, peer, w.addr(1), 0, 5)
		files := left(t, old...)
		if err := old[0].Close(); err != nil {
			t.Fatal(err)
		}
		numbered(t, peer, w.addr(1), 5, 100)
		w.in(t, 0, func() {
			if _, err := AdoptPacket(c, files); err == nil {
				t.Error("adopted in another namespace")
			}
		})
		w.in(t, 1, func() {
			if _, err := AdoptPacket(c, files[:1]); err == nil {
				t.Error("adopted without a raw socket")
			}
			if _, err := AdoptPacket(c, []int{files[1], files[0]}); err == nil {
				t.Error("adopted in another order")
			}
			if all, err = AdoptPacket(c, files); err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { all[0].Close() })
		checkNumbered(t, receive(t, all[0], packet.NewBatch(8<<20), 105))
		numbered(t, all[0], w.addr(0), 0, 20)
		checkNumbered(t, receive(t, peer, packet.NewBatch(8<<20), 20))
	})
}

// TestAdoptRefuses other sockets than Open would have made, and leaves them open.
func TestAdoptRefuses(t *testing.T) {
	c := Config{Framing: codec(t, 1), Local: netip.AddrPortFrom(loopback4.a, 0), Workers: 1}
	u := openConfig(t, c)[0]
	c.Local = boundTo(t, u.receiver)
	stream, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stream)
	good := u.Files()
	for _, x := range []struct {
		what   string
		change func(c *Config, files []int) []int
	}{
		{"another port", func(c *Config, files []int) []int {
			c.Local = netip.AddrPortFrom(c.Local.Addr(), c.Local.Port()^1)
			return files
		}},
		{"another address", func(c *Config, files []int) []int {
			c.Local = netip.AddrPortFrom(loopback4.b, c.Local.Port())
			return files
		}},
		{"another family", func(c *Config, files []int) []int {
			c.Local = netip.AddrPortFrom(loopback6.a, c.Local.Port())
			return files
		}},
		{"another number of workers", func(c *Config, files []int) []int { c.Workers = 2; return files }},
		{"one source port", func(c *Config, files []int) []int { c.FixedSource = true; return files }},
		{"one too few", func(c *Config, files []int) []int { return files[1:] }},
		{"a stream", func(c *Config, files []int) []int { files[3] = stream; return files }},
		{"the receiver last", func(c *Config, files []int) []int {
			files[0], files[len(files)-1] = files[len(files)-1], files[0]
			return files
		}},
		{"no socket", func(c *Config, files []int) []int { files[2] = 1 << 20; return files }},
	} {
		other := c
		if _, err := Adopt(other, x.change(&other, append([]int{}, good...))); err == nil {
			t.Errorf("adopted: %s", x.what)
		}
	}
	for _, fd := range good {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Error("a descriptor was closed")
		}
	}
}
