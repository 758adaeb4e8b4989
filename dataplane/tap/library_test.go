package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// A libraryCase is a library's device in one address family.
type libraryCase struct {
	kind       tap.Kind
	local, far net.IP
	space      netns.NsHandle
	device     *tap.Device
	port       tap.Port
	link       netlink.Link
	socket     *net.UDPConn // the kernel's, at local
}

// eachLibrary runs a test on each library's device in each family, in a namespace of its own.
func eachLibrary(t *testing.T, test func(*testing.T, *libraryCase)) {
	for _, kind := range []tap.Kind{tap.TUN, tap.Water} {
		for _, addrs := range [][]net.IP{{kernelAddr, farAddr}, {kernel6, far6}} {
			t.Run(fmt.Sprintf("%s/%s", kind, addrs[0]), func(t *testing.T) {
				test(t, newLibrary(t, kind, addrs[0], addrs[1]))
			})
		}
	}
}

func newLibrary(t *testing.T, kind tap.Kind, local, far net.IP) *libraryCase {
	t.Helper()
	c := &libraryCase{kind: kind, local: local, far: far, space: inNamespace(t)}
	c.device, c.link = openKind(t, kind, 1, local, far, farMAC)
	c.port = c.device.Queues[0]
	var err error
	if c.socket, err = net.ListenUDP("udp", &net.UDPAddr{IP: local}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.socket.Close() })
	for range 1000 { // IPv6 addresses take effect a little later
		if routes, err := netlink.RouteGet(local); err == nil && routes[0].Type == unix.RTN_LOCAL {
			return c
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%s is not local", local)
	return nil
}

// read is read without what the kernel tells its neighbours now and then.
func (c *libraryCase) read(t *testing.T, b *packet.Batch) []*packet.Frame {
	t.Helper()
	for readable(c.port.FD(), 2*time.Second) {
		b.Reset()
		if _, err := c.port.Read(b); err != nil {
			t.Fatal(err)
		}
		frames := slices.DeleteFunc(b.Frames, func(f *packet.Frame) bool {
			v := f.Parse()
			if v != packet.None || f.Truncated {
				t.Fatalf("%v (truncated %v): %x", v, f.Truncated, f.Bytes())
			}
			return f.Dst.IsMulticast()
		})
		if len(frames) > 0 { // 0: the worker may be kept from the processor for longer than it may wait for a packet
			return frames
		}
	}
	t.Fatal("nothing to read")
	return nil
}

func (c *libraryCase) send(t *testing.T, conn *net.UDPConn, data []byte) {
	t.Helper()
	if _, err := conn.WriteToUDP(data, &net.UDPAddr{IP: c.far, Port: 4000}); err != nil {
		t.Fatal(err)
	}
}

// packet returns the bytes of a UDP packet between the kernel and the far address, every checksum in it right.
func (c *libraryCase) packet(t *testing.T, idFlags uint32, srcPort, dstPort int, fromKernel bool, payload []byte) []byte {
	t.Helper()
	src, dst := c.far, c.local
	eth := &layers.Ethernet{SrcMAC: make(net.HardwareAddr, 6), DstMAC: make(net.HardwareAddr, 6), EthernetType: layers.EthernetTypeIPv4}
	if fromKernel {
		src, dst = dst, src
	}
	if mac := c.link.Attrs().HardwareAddr; c.kind == tap.Water {
		if eth.SrcMAC, eth.DstMAC = mac, farMAC; !fromKernel {
			eth.SrcMAC, eth.DstMAC = farMAC, mac
		}
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(srcPort), DstPort: layers.UDPPort(dstPort)}
	var ip gopacket.SerializableLayer
	if c.local.To4() != nil {
		v4 := &layers.IPv4{Version: 4, TTL: 64, Id: uint16(idFlags >> 16), Flags: layers.IPv4Flag(idFlags >> 13 & 7), Protocol: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
		udp.SetNetworkLayerForChecksum(v4)
		ip = v4
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
		udp.SetNetworkLayerForChecksum(v6)
		ip = v6
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, eth, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	ipLen := 20
	if c.local.To4() == nil {
		ipLen = 40
	}
	return buf.Bytes()[:packet.EthernetLen+ipLen+8+len(payload)] // without the padding
}

// check holds a frame that was read against the packet that the kernel's socket sent, byte for byte but for what the kernel
// alone chooses: the flow label, the IPv4 ID and DF.
func (c *libraryCase) check(t *testing.T, f *packet.Frame, payload []byte) {
	t.Helper()
	idFlags := uint32(0)
	got := bytes.Clone(f.Bytes())
	if c.local.To4() != nil {
		idFlags = binary.BigEndian.Uint32(got[18:])
	} else {
		copy(got[14:18], []byte{0x60, 0, 0, 0})
	}
	want := c.packet(t, idFlags, int(binary.BigEndian.Uint16(got[f.L4-f.L2:])), 4000, true, payload)
	if f.VNet != (packet.VNet{}) || f.Segments != 1 || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of payload: %+v, frame (+), want (-):\n%s", len(payload), f.VNet, cmp.Diff(want, got))
	}
}

func (c *libraryCase) statistics(t *testing.T) *netlink.LinkStatistics {
	t.Helper()
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics
}

// checkCounts holds what the device says of itself against the kernel's counters.
func (c *libraryCase) checkCounts(t *testing.T) {
	t.Helper()
	var got, want tap.Counts
	for range 100 { // until what was under way has arrived
		s := c.statistics(t)
		got, want = c.device.Counts(), tap.Counts{Read: s.TxPackets, Written: s.RxPackets}
		if got == want {
			return
		}
		c.port.Read(packet.NewBatch(1 << 20))
		time.Sleep(time.Millisecond)
	}
	t.Errorf("counts %+v, the kernel's %+v", got, want)
}

func TestLibraryRead(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		b := packet.NewBatch(1 << 20)
		for _, n := range []int{0, 1, 100, 1452} {
			c.send(t, c.socket, pattern(n))
			frames := c.read(t, b)
			if len(frames) != 1 {
				t.Fatalf("%d frames", len(frames))
			}
			c.check(t, frames[0], pattern(n))
		}
		b.Reset()
		if n, err := c.port.Read(b); n != 0 && c.local.To4() != nil || err != nil {
			t.Errorf("Read of an empty queue = %d, %v", n, err)
		}
		c.checkCounts(t)
	})
}

// A UDP checksum that comes out as zero is sent as all ones.
func TestLibraryReadZeroChecksum(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		port := c.socket.LocalAddr().(*net.UDPAddr).Port
		plain := c.packet(t, 0, port, 4000, true, []byte{0, 0})
		payload := plain[len(plain)-4 : len(plain)-2] // the checksum: adding it makes the sum all ones
		c.send(t, c.socket, payload)
		f := c.read(t, packet.NewBatch(1<<20))[0]
		if got := f.Bytes()[f.L4-f.L2+6:][:2]; !bytes.Equal(got, []byte{0xff, 0xff}) {
			t.Errorf("checksum %x, want ffff", got)
		}
	})
}

// Super-packets come as the segments that the kernel would have sent.
func TestLibraryReadSuper(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		const size, total = 1000, 20500
		b := packet.NewBatch(1 << 20)
		conn := segmentingSocket(t, c.local, size)
		c.send(t, conn, pattern(total))
		at := 0
		for at < total {
			for _, f := range c.read(t, b) {
				c.check(t, f, pattern(total)[at:min(at+size, total)])
				at += size
			}
		}
		c.checkCounts(t)
		if got := c.device.Counts().Read; c.kind == tap.TUN && got > 10 || c.kind == tap.Water && got < 21 {
			t.Errorf("%d packets from the kernel for 21 segments", got)
		}
	})
}

// A batch takes what its arena has room for; nothing is lost.
func TestLibraryReadMany(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		const total = 200
		for range total {
			c.send(t, c.socket, pattern(1400))
		}
		b, next := packet.NewBatch(160<<10), 0
		for next < total {
			frames := c.read(t, b)
			if len(frames) > 64 {
				t.Errorf("%d frames at once", len(frames))
			}
			for _, f := range frames {
				c.check(t, f, pattern(1400))
				next++
			}
		}
		if next != total {
			t.Errorf("%d frames of %d", next, total)
		}
		c.checkCounts(t)
	})
}

func TestTUNReadSmallArena(t *testing.T) {
	c := newLibrary(t, tap.TUN, kernelAddr, farAddr)
	c.send(t, c.socket, pattern(10))
	if n, err := c.port.Read(packet.NewBatch(0)); n != 0 || err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("Read = %d, %v", n, err)
	}
}

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

func TestLibraryLinkDown(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		b := packet.NewBatch(1 << 20)
		one := c.toKernel(t, b, 7000, pattern(10))
		super := c.toKernel(t, b, 7001, pattern(5000))
		leavePartial(t, super, 1000)
		if err := netlink.LinkSetDown(c.link); err != nil {
			t.Fatal(err)
		}
		if err := c.port.Write(b); err != nil || one.Refused != 1 || super.Refused != 5 || one.Sent+super.Sent+super.SentBytes != 0 {
			t.Errorf("link down: %v, %d and %d refused, %d sent", err, one.Refused, super.Refused, one.Sent+super.Sent)
		}
		if n, err := c.port.Read(packet.NewBatch(1 << 20)); n != 0 && c.local.To4() != nil || err != nil {
			t.Errorf("link down: Read = %d, %v", n, err)
		}
		if err := netlink.LinkSetUp(c.link); err != nil {
			t.Fatal(err)
		}
		if err := c.port.Write(b); err != nil || one.Refused+super.Refused != 0 || one.Sent != 1 || super.Sent != 5 {
			t.Errorf("link up again: %v, %d and %d sent", err, one.Sent, super.Sent)
		}
		c.checkCounts(t)
	})
}

// When the device is removed, poll notices, and reads and writes say so; no frame is left without its end.
func TestLibraryLinkDeleted(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		b := packet.NewBatch(1 << 20)
		super := c.toKernel(t, b, 7001, pattern(30000))
		leavePartial(t, super, 200)
		one := c.toKernel(t, b, 7000, pattern(10)) // behind more segments than the library takes at once
		if err := netlink.LinkDel(c.link); err != nil {
			t.Fatal(err)
		}
		if !readable(c.port.FD(), time.Second) {
			t.Error("poll does not notice")
		}
		if n, err := c.port.Read(packet.NewBatch(1 << 20)); n != 0 || !errors.Is(err, tap.ErrGone) {
			t.Errorf("Read = %d, %v; want ErrGone", n, err)
		}
		if err := c.port.Write(b); !errors.Is(err, tap.ErrGone) || one.Refused != 1 || super.Refused != 150 || one.Sent+super.Sent != 0 {
			t.Errorf("Write: %v, want ErrGone; %d and %d refused", err, one.Refused, super.Refused)
		}
	})
}

// A queue that is full or made shorter loses what the kernel counts as dropped, and Read does not wait for it.
func TestLibraryFullQueue(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		if err := netlink.LinkSetTxQLen(c.link, 100); err != nil {
			t.Fatal(err)
		}
		for range 300 {
			c.send(t, c.socket, pattern(100))
		}
		if err := netlink.LinkSetTxQLen(c.link, 50); err != nil {
			t.Fatal(err)
		}
		total, b := 0, packet.NewBatch(1<<20)
		for readable(c.port.FD(), time.Millisecond) {
			b.Reset()
			n, err := c.port.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
		s := c.statistics(t)
		if total != 50 || s.TxDropped == 0 || c.device.Counts().Read != 50 {
			t.Errorf("%d frames of a queue of 50, %d dropped by the kernel", total, s.TxDropped)
		}
	})
}

func TestLibraryOpenRefuses(t *testing.T) {
	inNamespace(t)
	for _, kind := range []tap.Kind{tap.TUN, tap.Water} {
		if _, err := kind.Open(tapName, 2); err == nil || !strings.Contains(err.Error(), "2 queues (possible: 1)") {
			t.Errorf("%s with two queues: %v", kind, err)
		}
		d, err := kind.Open(tapName, 1)
		if err != nil {
			t.Fatal(err)
		}
		before := descriptors(t)
		if _, err := kind.Open(tapName, 1); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s that is held: %v", kind, err)
		}
		for _, other := range tap.Kinds() {
			if other == kind {
				continue
			}
			if _, err := other.Open(tapName, 1); err == nil || !strings.Contains(err.Error(), "remove it first") {
				t.Errorf("%s where a %s is: %v", other, kind, err)
			}
		}
		if now := descriptors(t); now != before {
			t.Errorf("%s: refusals left %d descriptors behind", kind, now-before)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if _, err := netlink.LinkByName(tapName); !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("%s stays after Close: %v", kind, err)
		}
	}
	if _, err := tap.Kind("pigeon").Open(tapName, 1); err == nil || !strings.Contains(err.Error(), "have: [tap tun water]") {
		t.Error(err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// Nothing of a device stays: no goroutine, no descriptor.
func TestLibraryLeaks(t *testing.T) {
	inNamespace(t)
	for _, kind := range []tap.Kind{tap.TUN, tap.Water} {
		goroutines, fds := runtime.NumGoroutine(), descriptors(t)
		for range 5 {
			d, err := kind.Open(tapName, 1)
			if err != nil {
				t.Fatal(err)
			}
			if n := runtime.NumGoroutine(); n > goroutines {
				t.Errorf("%s: %d goroutines more", kind, n-goroutines)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n, m := runtime.NumGoroutine(), descriptors(t); n > goroutines || m > fds {
			t.Errorf("%s: %d goroutines and %d descriptors stay", kind, n-goroutines, m-fds)
		}
	}
}

func TestLibraryAllocates(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		in, out := packet.NewBatch(1<<20), packet.NewBatch(1<<20)
		one := c.toKernel(t, out, 7000, pattern(1000))
		super := c.toKernel(t, out, 7001, pattern(5000))
		size := uint16(1000)
		if c.kind == tap.TUN {
			size = 0 // under the race detector the library allocates for each segment that it joins, else it does not
		}
		leavePartial(t, super, size)
		total := 0
		n := testing.AllocsPerRun(20, func() {
			in.Reset()
			c.send(t, c.socket, pattern(100))
			got, err := c.port.Read(in)
			total += got
			if err != nil || c.port.Write(out) != nil || one.Sent != 1 || super.Sent != super.Segments {
				t.Error("Read or Write failed")
			}
		})
		sending := testing.AllocsPerRun(20, func() { c.send(t, c.socket, pattern(100)) })
		if n > sending || total < 21 {
			t.Errorf("%v allocations for each batch beside %v for the test's own; %d of 21 frames read", n-sending, sending, total)
		}
	})
}
