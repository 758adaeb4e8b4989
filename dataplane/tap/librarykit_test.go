package tap_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
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
