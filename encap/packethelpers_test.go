package encap

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A wireTest is two namespaces with a veth between them.
type wireTest struct {
	sites  [2]site
	spaces [2]netns.NsHandle
	macs   [2]packet.MAC
	mtu    int // that underlays opened from now on take for their path's
	now    time.Duration
}

const wirePort = 8472

var wireSites = map[string][2]netip.Addr{
	"IPv4": {netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("10.7.0.2")},
	"IPv6": {netip.MustParseAddr("fd07::1"), netip.MustParseAddr("fd07::2")},
}

// onWires runs a test on a wire of each family.
func onWires(t *testing.T, test func(*testing.T, *wireTest)) {
	for name := range wireSites {
		t.Run(name, func(t *testing.T) { test(t, newWire(t, name)) })
	}
}

func newWire(t *testing.T, family string) *wireTest {
	t.Helper()
	addrs := wireSites[family]
	w := &wireTest{
		sites: [2]site{{"tulle-a", addrs[0]}, {"tulle-b", addrs[1]}}, mtu: 1500,
		macs: [2]packet.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}},
	}
	w.spaces = joinSites(t, w.sites)
	w.in(t, 1, func() { w.link(t, 1) })
	return w
}

// in runs f in the namespace of a site. The test's thread stays there, and goes with the test.
func (w *wireTest) in(t testing.TB, i int, f func()) {
	t.Helper()
	runtime.LockOSThread()
	if err := netns.Set(w.spaces[i]); err != nil {
		t.Fatal(err)
	}
	f()
}

func (w *wireTest) link(t testing.TB, i int) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(w.sites[i].name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func (w *wireTest) addr(i int) netip.AddrPort { return netip.AddrPortFrom(w.sites[i].addr, wirePort) }

// packet opens raw underlays at a site.
func (w *wireTest) packet(t testing.TB, i int, c Config) (all []*PacketUnderlay) {
	t.Helper()
	if c.Framing == nil {
		c.Framing = codec(t, 1)
	}
	c.Local = w.addr(i)
	hops := new(NextHops)
	hops.Publish(w.hops(i))
	w.in(t, i, func() {
		var err error
		all, err = OpenPacket(PacketConfig{Config: c, Link: w.link(t, i).Attrs().Index, NextHops: hops, Clock: func() time.Duration { return w.now }})
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		for _, u := range all {
			if err := u.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	return all
}

func (w *wireTest) hops(i int) map[netip.Addr]NextHop {
	return map[netip.Addr]NextHop{w.sites[1-i].addr: {MAC: w.macs[1-i], Source: w.macs[i], MTU: w.mtu}}
}

// udp opens an underlay of UDP sockets at a site.
func (w *wireTest) udp(t testing.TB, i int, c Config) (u *Underlay) {
	t.Helper()
	if c.Framing == nil {
		c.Framing = codec(t, 1)
	}
	c.Local = w.addr(i)
	w.in(t, i, func() { u = openConfig(t, c)[0] })
	return u
}

// setOffloads turns checksum and segmentation offloads of both ends on or off: without them every packet is on the wire as it
// would be on a real one.
func (w *wireTest) setOffloads(t testing.TB, on bool) {
	t.Helper()
	for i := range w.spaces {
		for _, feature := range []string{"tx-checksum-ip-generic", "tx-generic-segmentation", "tx-udp-segmentation", "tx-tcp-segmentation"} {
			w.setFeature(t, i, feature, on)
		}
	}
}

func (w *wireTest) setFeature(t testing.TB, i int, feature string, on bool) {
	t.Helper()
	w.in(t, i, func() {
		e, err := ethtool.NewEthtool()
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if err := e.Change(w.sites[i].name, map[string]bool{feature: on}); err != nil {
			t.Fatal(err)
		}
	})
}

// tap returns a packet socket at site 1 that sees all frames of the link that come in, as they are.
func (w *wireTest) tap(t testing.TB) (fd int) {
	t.Helper()
	w.in(t, 1, func() {
		var err error
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		forceBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: w.link(t, 1).Attrs().Index}); err != nil {
			t.Fatal(err)
		}
	})
	return fd
}

// tapped returns the frames that the tap has seen, of the IP protocols that the tunnel sends.
func (w *wireTest) tapped(t testing.TB, fd int) (frames [][]byte) {
	t.Helper()
	buf := make([]byte, 1<<17)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		frame := buf[:n]
		if frame[12] == 8 && frame[13] == 0 && frame[23] == 17 || frame[12] == 0x86 && (frame[20] == 17 || frame[20] == 44) {
			frames = append(frames, append([]byte(nil), frame...))
		}
	}
}

// inject sends a frame from site 0 to site 1, as another machine's.
func (w *wireTest) inject(t testing.TB, frames ...[]byte) {
	t.Helper()
	w.in(t, 0, func() {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		index := w.link(t, 0).Attrs().Index
		for _, frame := range frames {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: networkOrder(uint16(frame[12])<<8 | uint16(frame[13])), Ifindex: index}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
