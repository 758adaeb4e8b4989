package encap

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A site is one end of a veth between two namespaces: its name and its underlay address.
type site struct {
	name string
	addr netip.Addr
}

// joinSites makes two namespaces with a veth between them, and leaves the test's thread in the first.
func joinSites(t *testing.T, sites [2]site) (spaces [2]netns.NsHandle) {
	t.Helper()
	for i := range spaces {
		inNamespace(t, 65536)
		ns, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		spaces[i] = ns
	}
	macs := [2]net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: sites[1].name, HardwareAddr: macs[1]},
		PeerName:  sites[0].name, PeerHardwareAddr: macs[0], PeerNamespace: netlink.NsFd(spaces[0]),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{1, 0} { // who comes up last has a carrier at once, the other one up to a second later
		enter(t, spaces[i])
		link, err := netlink.LinkByName(sites[i].name)
		if err != nil {
			t.Fatal(err)
		}
		addLocal(t, link, sites[i].addr)
		neighbour := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: sites[1-i].addr.AsSlice(), HardwareAddr: macs[1-i],
		}
		if err := netlink.NeighSet(neighbour); err != nil {
			t.Fatal(err)
		}
	}
	return spaces
}

func enter(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}

// addLocal gives an address to a link and brings it up.
func addLocal(t *testing.T, link netlink.Link, a netip.Addr) {
	t.Helper()
	address := &netlink.Addr{IPNet: subnet(a, a.BitLen()*3/4, a.BitLen()), Flags: unix.IFA_F_NODAD}
	if err := errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
}

// kernelVXLAN is a VXLAN device as flannel sets it up, with the address inner, and what stands behind the peer at its far
// end.
func kernelVXLAN(t *testing.T, local, peer, inner, far netip.Addr) {
	t.Helper()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	vxlan := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", MTU: 1430}, VxlanId: 1, SrcAddr: local.AsSlice(), Port: 8472}
	if err := netlink.LinkAdd(vxlan); err != nil {
		t.Fatal(err)
	}
	addLocal(t, vxlan, inner)
	fdb := &netlink.Neigh{LinkIndex: vxlan.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: peer.AsSlice(), HardwareAddr: mac}
	neighbour := &netlink.Neigh{LinkIndex: vxlan.Index, State: netlink.NUD_PERMANENT, IP: far.AsSlice(), HardwareAddr: mac}
	if err := errors.Join(netlink.NeighAppend(fdb), netlink.NeighSet(neighbour)); err != nil {
		t.Fatal(err)
	}
}

// sendSegments sends n bytes in segments of the given size from a kernel socket, with one call.
func sendSegments(t *testing.T, from, to netip.Addr, n, size int) {
	t.Helper()
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if _, sendErr := c.Write(pattern(n)); err != nil || sendErr != nil {
		t.Fatal(err, sendErr)
	}
}

// A kernel peer on the same machine hands its super-packets over whole. They must be recognized: cut at the size
// that the socket reports they would be rubbish.
func TestUncutKernelSuperPackets(t *testing.T) {
	families := map[string][2]netip.Addr{
		"IPv4": {netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("10.7.0.2")},
		"IPv6": {netip.MustParseAddr("fd07::1"), netip.MustParseAddr("fd07::2")},
	}
	inners := map[string][2]netip.Addr{
		"IPv4": {netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")},
		"IPv6": {netip.MustParseAddr("fd01::1"), netip.MustParseAddr("fd01::2")},
	}
	for outerName, outer := range families {
		for innerName, inner := range inners {
			t.Run(innerName+" in "+outerName, func(t *testing.T) {
				spaces := joinSites(t, [2]site{{"tulle-a", outer[0]}, {"tulle-b", outer[1]}})
				enter(t, spaces[1])
				u := openConfig(t, Config{Local: netip.AddrPortFrom(outer[1], 8472), Framing: codec(t, 1)})[0]
				enter(t, spaces[0])
				kernelVXLAN(t, outer[0], outer[1], inner[0], inner[1])
				const total, size = 20500, 1000
				again := func() { sendSegments(t, inner[0], inner[1], total, size) }
				checkUncut(t, u, outer[0], total, size, again)
			})
		}
	}
}

// checkUncut reads until a super-packet comes, past what the kernel says to its neighbours. A kernel takes its time to
// get links and addresses ready, so it is sent until it arrives.
func checkUncut(t *testing.T, u port, from netip.Addr, total, size int, send func()) {
	t.Helper()
	b := packet.NewBatch(1 << 21)
	fds := []unix.PollFd{{Fd: int32(u.FD()), Events: unix.POLLIN}}
	for range 200 {
		send()
		unix.Poll(fds, 50)
		b.Reset()
		if _, err := u.Read(b); err != nil {
			t.Fatal(err)
		}
		for _, f := range b.Frames {
			if f.Len() > size/2 {
				checkWhole(t, f, from, total, size)
				return
			}
		}
	}
	t.Fatal("no super-packet arrives")
}

func checkWhole(t *testing.T, f *packet.Frame, from netip.Addr, total, size int) {
	t.Helper()
	if f.SegmentHint != size || f.Remote.Addr() != from || f.Len() < total || codec(t, 1).DatagramLen(f.Bytes()) != f.Len() {
		t.Errorf("%d bytes from %v, hint %d, want more than %d with hint %d", f.Len(), f.Remote, f.SegmentHint, total, size)
	}
}
