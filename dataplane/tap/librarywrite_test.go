package tap_test

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// toKernel puts a packet to the kernel's socket into the batch.
func (c *libraryCase) toKernel(t *testing.T, b *packet.Batch, srcPort int, payload []byte) *packet.Frame {
	t.Helper()
	data := c.packet(t, 0, srcPort, c.socket.LocalAddr().(*net.UDPAddr).Port, false, payload)
	slot := b.Slot(len(data))
	end := packet.Headroom + copy(slot[packet.Headroom:], data)
	b.Claim(end)
	f := b.Append(slot, packet.Headroom, end)
	if v := f.Parse(); v != packet.None {
		t.Fatal(v)
	}
	return f
}

// leavePartial leaves the checksum to the device, and makes a super-packet of the frame when size is not 0.
func leavePartial(t *testing.T, f *packet.Frame, size uint16) {
	t.Helper()
	l3, l4 := f.Bytes()[f.L3-f.L2:], f.Bytes()[f.L4-f.L2:]
	l4[6], l4[7] = 0, 0
	addresses := l3[12:20]
	if f.EtherType == packet.EtherTypeIPv6 {
		addresses = l3[8:40]
	}
	pseudo := packet.Sum(0).Add(addresses).AddUint16(uint16(f.Proto)).AddUint16(uint16(len(l4))).Fold()
	l4[6], l4[7] = byte(pseudo>>8), byte(pseudo)
	f.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: uint16(f.L4 - f.L2), CsumOffset: 6}
	if size > 0 {
		f.VNet.GSOType, f.VNet.GSOSize = packet.GSOUDPL4, size
	}
	if v := f.Parse(); v != packet.None {
		t.Fatal(v)
	}
}

// Whole frames, such without finished checksum, detached ones and super-packets arrive as they were meant, in order.
func TestLibraryWrite(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		made, out := packet.NewBatch(1<<20), packet.NewBatch(1<<20)
		whole := c.toKernel(t, made, 7000, []byte("whole"))
		part := c.toKernel(t, made, 7001, []byte("partial"))
		leavePartial(t, part, 0)
		bare := detached(out, c.toKernel(t, packet.NewBatch(0), 7002, []byte("detached")))
		super := c.toKernel(t, made, 7003, pattern(20500))
		leavePartial(t, super, 1000)
		bareSuper := c.toKernel(t, packet.NewBatch(1<<20), 7004, pattern(50001))
		leavePartial(t, bareSuper, 500)
		bareSuper = detached(out, bareSuper)
		for _, f := range []*packet.Frame{bare, bareSuper} {
			if v := f.Parse(); v != packet.None {
				t.Fatal(v)
			}
		}
		b := &packet.Batch{}
		for _, f := range []*packet.Frame{whole, part, bare, super, bareSuper} {
			f.Sent, f.Refused, f.SentBytes = 7, 7, 7
			b.Add(f)
		}
		if err := c.port.Write(b); err != nil {
			t.Fatal(err)
		}
		for i, f := range b.Frames {
			headers := 14 + f.Payload - f.L3
			if want := f.Len() + len(f.DetachedLink()) + (f.Segments-1)*headers; f.Sent != f.Segments || f.Refused != 0 || f.SentBytes != want {
				t.Errorf("frame %d: %d sent of %d, %d refused, %d bytes, want %d", i, f.Sent, f.Segments, f.Refused, f.SentBytes, want)
			}
		}
		want := [][]byte{[]byte("whole"), []byte("partial"), []byte("detached")}
		want = slices.AppendSeq(want, slices.Chunk(pattern(20500), 1000))
		want = slices.AppendSeq(want, slices.Chunk(pattern(50001), 500))
		for i := range want {
			if got := received(t, c.socket, time.Second); !bytes.Equal(got, want[i]) {
				t.Fatalf("datagram %d: %d bytes, want %d", i, len(got), len(want[i]))
			}
		}
		c.checkCounts(t)
		if n, segments := c.device.Counts().Written, uint64(3+21+101); c.kind == tap.Water && n != segments || c.kind == tap.TUN && n > 6 {
			t.Errorf("%d writes of %d segments", n, segments)
		}
	})
}

// Segments that were joined are for a TAP alone: the devices say so, and refuse them.
func TestLibraryJoined(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		b := packet.NewBatch(1 << 20)
		joined := c.toKernel(t, b, 7000, pattern(1000))
		leavePartial(t, joined, 1000)
		joined.More, joined.Segments = [][]byte{pattern(1000)}, 2
		one := c.toKernel(t, b, 7001, []byte("one"))
		if err := c.port.Write(b); err != nil || joined.Sent != 0 || joined.Refused != 2 || one.Sent != 1 {
			t.Errorf("Write: %v, %d sent, %d refused; the next one: %d sent", err, joined.Sent, joined.Refused, one.Sent)
		}
		if got := received(t, c.socket, time.Second); string(got) != "one" {
			t.Errorf("received %d bytes", len(got))
		}
		if c.device.Joining() != (packet.Joining{}) {
			t.Errorf("joining %+v", c.device.Joining())
		}
	})
}

// TCP super-packets of a kernel go into the device, and its segments out of it, between two kernels: every byte arrives.
func TestLibraryTCP(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		checkLibraryTCP(t, c, 8<<20)
	})
}

// Segments as small as TCP allows are more than a super-packet of the library may have: the link is told, and nothing is lost.
func TestLibraryTCPTiny(t *testing.T) {
	c := newLibrary(t, tap.TUN, kernelAddr, farAddr)
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: c.link.Attrs().Index, Dst: &net.IPNet{IP: farAddr, Mask: net.CIDRMask(32, 32)}, AdvMSS: 100, MTU: 140}); err != nil {
		t.Fatal(err)
	}
	checkLibraryTCP(t, c, 1<<20)
}

func checkLibraryTCP(t *testing.T, c *libraryCase, n int) {
	other := inNamespace(t)
	device, link := openTAP(t, 1, c.far, c.local, farMAC)
	listener := listen(t, c.far)
	done, super := make(chan error, 1), 0
	go bridge(wire{device.Queues[0], farMAC, link.Attrs().HardwareAddr}, wire{c.port, farMAC, c.link.Attrs().HardwareAddr}, &super, done)
	netns.Set(c.space)
	checkTransfer(t, listener, n)
	for _, space := range []netns.NsHandle{c.space, other} { // makes bridge return
		netns.Set(space)
		if err := netlink.LinkDel(tuntap(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; !errors.Is(err, tap.ErrGone) {
		t.Errorf("forwarding ended with %v", err)
	}
	if n := c.device.Counts(); n.Lost != 0 || n.Read == 0 || n.Written == 0 {
		t.Errorf("counts %+v", n)
	}
	if super == 0 {
		t.Error("no super-packet went into the device")
	}
}

// A wire is a port, and the MACs that its kernel takes.
type wire struct {
	tap.Port
	src, dst net.HardwareAddr
}

// bridge moves frames between two ports until one is gone, and counts the segments that came from a in super-packets.
func bridge(a, b wire, super *int, done chan<- error) {
	batch := packet.NewBatch(1 << 21)
	fds := []unix.PollFd{{Fd: int32(a.FD()), Events: unix.POLLIN}, {Fd: int32(b.FD()), Events: unix.POLLIN}}
	for {
		unix.Poll(fds, 100)
		if err := errors.Join(move(a, b, batch, super), move(b, a, batch, new(int))); err != nil {
			done <- err
			return
		}
	}
}

func move(from, to wire, b *packet.Batch, super *int) error {
	b.Reset()
	if _, err := from.Read(b); err != nil {
		return err
	}
	for _, f := range b.Frames {
		if f.Parse() != packet.None {
			continue
		}
		if len(to.dst) == 6 {
			f.SetMACs(packet.MAC(to.dst), packet.MAC(to.src))
		}
		*super += f.Segments - 1
	}
	return to.Write(b)
}
