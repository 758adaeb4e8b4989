package tap_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "tap: these tests need root (namespaces and TAP devices): run them with sudo")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

const tapName = "tulle-t0"

// The kernel's address on the TAP, and the one behind it that only the test answers for.
var (
	kernelAddr = net.IPv4(10, 9, 0, 1)
	farAddr    = net.IPv4(10, 9, 0, 2)
	kernel6    = net.ParseIP("fd09::1")
	far6       = net.ParseIP("fd09::2")
	farMAC     = net.HardwareAddr{2, 0, 0, 0, 0, 9}
)

// inNamespace puts the test into a network namespace of its own; the test's thread goes
// with it.
func inNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread() // never unlocked, so that nobody else runs on the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	// No router solicitations among the frames that a test waits for.
	err = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return ns
}

// openTAP opens a TAP in the thread's namespace and brings it up with address local and a
// permanent neighbour at remote.
func openTAP(t *testing.T, queues int, local, remote net.IP, remoteMAC net.HardwareAddr) (*tap.Device, netlink.Link) {
	t.Helper()
	return openKind(t, tap.TAP, queues, local, remote, remoteMAC)
}

// openKind is openTAP for any device; a TUN has no neighbours.
func openKind(t *testing.T, kind tap.Kind, queues int, local, remote net.IP, remoteMAC net.HardwareAddr) (*tap.Device, netlink.Link) {
	t.Helper()
	d, err := kind.Open(tapName, queues)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		t.Fatal(err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: local, Mask: net.CIDRMask(24, 32)}}
	if local.To4() == nil {
		address.Mask, address.Flags = net.CIDRMask(64, 128), unix.IFA_F_NODAD
		conf := "/proc/sys/net/ipv6/conf/" + tapName
		// No link-local address either: it brings multicast reports.
		err = errors.Join(os.WriteFile(conf+"/addr_gen_mode", []byte("1"), 0), os.WriteFile(conf+"/disable_ipv6", []byte("0"), 0))
	}
	neighbour := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: remote, HardwareAddr: remoteMAC, State: netlink.NUD_PERMANENT}
	err = errors.Join(err, netlink.AddrAdd(link, address), netlink.LinkSetUp(link))
	if kind.L3() {
		err = errors.Join(err, netlink.LinkSetGSOMaxSegs(link, tap.MaxSegments))
	} else {
		err = errors.Join(err, netlink.NeighSet(neighbour))
	}
	if err != nil {
		t.Fatal(err)
	}
	return d, link
}

// newTAP is a TAP between the kernel and the test, in a namespace of its own.
func newTAP(t *testing.T, queues int) (*tap.Device, netlink.Link) {
	t.Helper()
	inNamespace(t)
	return openTAP(t, queues, kernelAddr, farAddr, farMAC)
}

// kernelSocket is a UDP socket of the namespace at 10.9.0.1.
func kernelSocket(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: kernelAddr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func sendTo(t *testing.T, c *net.UDPConn, data []byte, port int) {
	t.Helper()
	if _, err := c.WriteToUDP(data, &net.UDPAddr{IP: farAddr, Port: port}); err != nil {
		t.Fatal(err)
	}
}

func readable(fd int, timeout time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); {
		if n, err := unix.Poll(fds, int(timeout.Milliseconds())); err == nil && n > 0 {
			return true
		}
	}
	return false
}

// read waits for frames and reads them into the emptied batch, each parsed.
func read(t *testing.T, q tap.Port, b *packet.Batch) []*packet.Frame {
	t.Helper()
	if !readable(q.FD(), 2*time.Second) {
		t.Fatal("nothing to read")
	}
	b.Reset()
	n, err := q.Read(b)
	if err != nil || n != len(b.Frames) || n == 0 {
		t.Fatalf("Read = %d, %v with %d frames", n, err, len(b.Frames))
	}
	for i, f := range b.Frames {
		if v := f.Parse(); v != packet.None || f.Truncated {
			t.Fatalf("frame %d of %d: %v (truncated %v): %x", i, n, v, f.Truncated, f.Bytes())
		}
	}
	return b.Frames
}

// udpFrame is a packet from 10.9.0.2:7000 to the kernel's UDP socket, ready to be written.
func udpFrame(t *testing.T, b *packet.Batch, link netlink.Link, to net.Addr, payload []byte) *packet.Frame {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: farMAC, DstMAC: link.Attrs().HardwareAddr, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: farAddr, DstIP: kernelAddr}
	udp := &layers.UDP{SrcPort: 7000, DstPort: layers.UDPPort(to.(*net.UDPAddr).Port)}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, eth, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	slot := b.Slot(len(buf.Bytes()))
	end := packet.Headroom + copy(slot[packet.Headroom:], buf.Bytes())
	b.Claim(end)
	f := b.Append(slot, packet.Headroom, end)
	if v := f.Parse(); v != packet.None {
		t.Fatal(v)
	}
	return f
}

// makePartial leaves the checksum to the device: the field holds the pseudo-header's sum, which is
// the sum of everything taken out of the finished checksum's complement.
func makePartial(f *packet.Frame) {
	l4 := f.Bytes()[f.L4-f.Start():]
	l4[6], l4[7] = 0, 0
	ip := f.Bytes()[f.L3-f.Start():]
	pseudo := packet.Sum(0).Add(ip[12:20]).AddUint16(uint16(f.Proto)).AddUint16(uint16(len(l4))).Fold()
	l4[6], l4[7] = byte(pseudo>>8), byte(pseudo)
	f.VNet = packet.VNet{Flags: packet.VNetNeedsCsum, CsumStart: uint16(f.L4 - f.L2), CsumOffset: 6}
}

// received returns the next datagram of a kernel socket, or nil when none comes within the time.
func received(t *testing.T, c *net.UDPConn, timeout time.Duration) []byte {
	t.Helper()
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(timeout))
	n, _, err := c.ReadFromUDP(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}
