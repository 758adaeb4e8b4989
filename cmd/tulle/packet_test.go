package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// packetLab is a lab whose daemons use raw underlays, but for those in udp.
func packetLab(t *testing.T, c lab.Config, udp ...int) *lab.Lab {
	t.Helper()
	c.NodeArgsFor = func(number int) []string {
		if slices.Contains(udp, number) {
			return nil
		}
		return []string{"--underlay", underlayPacket}
	}
	l := labUnderTest(t, c)
	for _, n := range l.Nodes() {
		if n.Kernel || slices.Contains(udp, n.Number) {
			continue
		}
		if u := status(t, l, n.Number).Underlay; u.Kind != underlayPacket || len(u.Limits) == 0 {
			t.Errorf("underlay of %s: %+v", n.Name, u)
		}
	}
	return l
}

// TestPacketUnderlay is TestPods with raw underlays: both nodes, a mix with UDP sockets, more than one worker.
func TestPacketUnderlay(t *testing.T) {
	for _, c := range []struct {
		name string
		udp  []int
		args []string
	}{{"both", nil, nil}, {"mixed", []int{2}, nil}, {"workers", nil, []string{"--workers", "3"}}} {
		t.Run(c.name, func(t *testing.T) {
			l := packetLab(t, lab.Config{Nodes: 2, Pods: 2, NodeArgs: c.args}, c.udp...)
			for _, on := range []bool{true, false} {
				t.Run(fmt.Sprintf("offloads=%t", on), func(t *testing.T) {
					if err := l.SetOffloads(on); err != nil {
						t.Fatal(err)
					}
					for _, opts := range []bench.Ping{smallPing, largePing, fullPing} {
						pingAll(t, l.PodPairs(), opts)
						pingAll(t, l.NodePairs(), opts)
					}
					pingAll(t, nodeToNode(l), smallPing)
					traffic(t, l)
				})
			}
			checkRaw(t, l, c.udp...)
		})
	}
}

// checkRaw demands of nodes with raw underlays that nothing came in that was wrong, and nothing had to be sent piece by piece.
func checkRaw(t *testing.T, l *lab.Lab, udp ...int) {
	t.Helper()
	for _, n := range l.Nodes() {
		if n.Kernel || slices.Contains(udp, n.Number) {
			continue
		}
		r := status(t, l, n.Number)
		if u := r.Underlay; !maps.Equal(u.OuterDrops, map[string]uint64{dropNative: 0}) || u.Fallbacks != 0 || u.SocketDrops != 0 || len(r.Problems) != 0 {
			t.Errorf("%s: %+v, problems %v", n.Name, u, r.Problems)
		}
	}
}

// TestPacketFamilies is TestFamilies and TestKernelPeer with raw underlays: a kernel VXLAN node on the other side, or not.
func TestPacketFamilies(t *testing.T) {
	for _, c := range []struct {
		family string
		mtu    int
		kernel map[int]bool
	}{{lab.FamilyV4, 1450, map[int]bool{2: true}}, {lab.FamilyDual, 1430, nil}, {lab.FamilyDual, 1430, map[int]bool{2: true}}} {
		t.Run(fmt.Sprintf("%s/kernel=%t", c.family, c.kernel != nil), func(t *testing.T) {
			l := packetLab(t, lab.Config{Nodes: 2, Pods: 2, Family: c.family, Kernel: c.kernel})
			for _, on := range []bool{true, false} {
				if err := l.SetOffloads(on); err != nil {
					t.Fatal(err)
				}
				allTraffic(t, l, c.mtu)
			}
			checkRaw(t, l)
		})
	}
}

// TestPacketRouted sends through a gateway.
func TestPacketRouted(t *testing.T) {
	l := packetLab(t, lab.Config{Nodes: 3, Pods: 1, Routed: true, Family: lab.FamilyDual})
	pingAll(t, l.PodPairs(), smallPing)
	pingAll(t, l.PodPairs(), largePing)
	traffic(t, l)
	checkRaw(t, l)
}

// TestPacketUDPBackend is flannel's udp backend over raw underlays, with a flannel node.
func TestPacketUDPBackend(t *testing.T) {
	peer, err := need.Binary(t.Context(), t.TempDir(), "scripts/lab/flannelpeer")
	if err != nil {
		t.Fatal(err)
	}
	l := packetLab(t, lab.Config{Nodes: 3, Pods: 1, Backend: lab.BackendUDP, Kernel: map[int]bool{3: true}, FlannelPeer: peer, NodeArgs: []string{"--workers", "2"}})
	pairs := append(l.PodPairs(), l.NodePairs()...)
	pingAll(t, pairs, smallPing)
	pingAll(t, pairs, largePing)
	for _, p := range []lab.Pair{between(l, 1, 2), between(l, 1, 3), between(l, 3, 1)} {
		transfer(t, p, 50<<20)
	}
	s, err := l.FlannelStatus(3)
	if err != nil {
		t.Fatal(err)
	}
	for source := range s.Sources {
		if !strings.HasSuffix(source, ":8285") {
			t.Errorf("datagrams from %s", source)
		}
	}
	checkRaw(t, l)
}

// TestPacketFragments has a path of 1300 bytes in the kernel's routes while pods have 1450: what is larger goes in outer
// fragments, which the other side puts together.
func TestPacketFragments(t *testing.T) {
	for _, udp := range [][]int{nil, {1}, {2}} {
		t.Run(fmt.Sprintf("udp=%v", udp), func(t *testing.T) {
			l := packetLab(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile}, udp...)
			for i, n := range l.Nodes() {
				in(t, n, func() error { return narrow(l.Nodes()[1-i].PublicIP, 1300) })
			}
			p := between(l, 1, 2)
			eventually(t, "fragments on both ways", func() bool {
				for _, n := range l.Nodes() {
					if r := status(t, l, n.Number); r.Underlay.Kind == underlayPacket && r.Underlay.Fallbacks == 0 {
						transfer(t, p, 1<<20)
						transfer(t, between(l, 2, 1), 1<<20)
						return false
					}
				}
				return true
			})
			traffic(t, l)
		})
	}
}

// narrow gives a host route with an MTU.
func narrow(to netip.Addr, mtu int) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, MTU: mtu,
		Dst: hostNet(to)})
}

// TestPacketRecovers takes away by hand what a raw underlay depends on, and demands that traffic comes back by itself and
// that status says why it does not go meanwhile.
func TestPacketRecovers(t *testing.T) {
	l := packetLab(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile, NodeArgs: []string{"--workers", "2"}})
	one, two, p := l.Nodes()[0], l.Nodes()[1], between(l, 1, 2)
	pingUntil(t, p)
	neigh := func(change func(*netlink.Neigh) error) {
		in(t, one, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return change(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: two.PublicIP.AsSlice()})
		})
	}
	t.Run("neighbour deleted", func(t *testing.T) {
		neigh(netlink.NeighDel)
		pingUntil(t, p)
	})
	t.Run("neighbour fixed to a wrong MAC and right again", func(t *testing.T) {
		neigh(func(n *netlink.Neigh) error {
			n.State, n.HardwareAddr = netlink.NUD_PERMANENT, net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
			return netlink.NeighSet(n)
		})
		eventually(t, "nothing arrives", func() bool { return ping(t, p, bench.Ping{Count: 1, Timeout: 100 * time.Millisecond}).Received == 0 })
		neigh(netlink.NeighDel)
		pingUntil(t, p)
	})
	t.Run("peer with another MAC", func(t *testing.T) {
		in(t, two, func() error { return setMAC(net.HardwareAddr{2, 0, 0, 0, 0, 0x77}) })
		neigh(netlink.NeighDel) // what a gratuitous ARP does
		eventually(t, "answers", func() bool { return ping(t, p, bench.Ping{Count: 1, Timeout: 100 * time.Millisecond}).Received == 1 })
	})
	t.Run("own MAC changed", func(t *testing.T) {
		in(t, one, func() error { return setMAC(net.HardwareAddr{2, 0, 0, 0, 0, 0x66}) })
		eventually(t, "answers", func() bool { return ping(t, p, bench.Ping{Count: 1, Timeout: 100 * time.Millisecond}).Received == 1 })
	})
	t.Run("link down", func(t *testing.T) {
		in(t, one, func() error { return setUp(false) })
		awaitProblem(t, l, "underlay link eth0: it is down")
		if ping(t, p, bench.Ping{Count: 1, Timeout: 100 * time.Millisecond}).Received != 0 {
			t.Error("a ping passes a link that is down")
		}
		in(t, one, func() error { return setUp(true) })
		awaitHealthy(t, l)
		pingUntil(t, p)
	})
	t.Run("another link", func(t *testing.T) {
		in(t, one, func() error { return detour(two.PublicIP) })
		awaitProblem(t, l, "its route leads to link tulle-other and not to eth0")
		if n := status(t, l, 1).Verdicts["drop_next_hop"]; ping(t, p, bench.Ping{Count: 1, Timeout: 100 * time.Millisecond}).Received != 0 || status(t, l, 1).Verdicts["drop_next_hop"] <= n {
			t.Error("a packet without next hop is not counted as one")
		}
		in(t, one, func() error { return removeLink("tulle-other") })
		awaitHealthy(t, l)
		pingUntil(t, p)
	})
	t.Run("link made again", func(t *testing.T) {
		in(t, one, func() error { return removeLink("eth0") })
		awaitProblem(t, l, "underlay link eth0: Link not found")
		in(t, one, func() error { return plugIn(1, one.PublicIP) })
		awaitHealthy(t, l)
		pingUntil(t, p)
		pingUntil(t, between(l, 2, 1))
	})
	if r := status(t, l, 1); !r.Engine.Balanced {
		t.Errorf("ledger %+v", r.Engine.Ledger)
	}
}

func awaitProblem(t *testing.T, l *lab.Lab, want string) {
	t.Helper()
	eventually(t, want, func() bool {
		return slices.ContainsFunc(status(t, l, 1).Problems, func(p string) bool { return strings.Contains(p, want) })
	})
}

func awaitHealthy(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, "no problems", func() bool { return len(status(t, l, 1).Problems) == 0 })
}

func setMAC(mac net.HardwareAddr) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.LinkSetHardwareAddr(link, mac)
}

func setUp(up bool) error {
	link, err := netlink.LinkByName("eth0")
	switch {
	case err != nil:
		return err
	case up:
		return netlink.LinkSetUp(link)
	}
	return netlink.LinkSetDown(link)
}

// detour routes an address by a link that leads nowhere.
func detour(to netip.Addr) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tulle-other"}, PeerName: "tulle-nowhere"}
	if err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link)); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Scope: netlink.SCOPE_LINK, Dst: hostNet(to)})
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// plugIn makes a node's eth0 again, by the names that the lab gives to its ends.
func plugIn(number int, addr netip.Addr) error {
	underlay, err := netns.GetFromName("tulle-underlay")
	if err != nil {
		return err
	}
	defer underlay.Close()
	port := fmt.Sprintf("tulle-u%d", number)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: port, PeerNamespace: netlink.NsFd(underlay)}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.LinkAdd(veth), netlink.AddrAdd(veth, address), netlink.LinkSetUp(veth)); err != nil {
		return err
	}
	there, err := netlink.NewHandleAt(underlay)
	if err != nil {
		return err
	}
	defer there.Close()
	end, err := there.LinkByName(port)
	if err != nil {
		return err
	}
	bridge, err := there.LinkByName("tulle-br")
	if err != nil {
		return err
	}
	return errors.Join(there.LinkSetMaster(end, bridge), there.LinkSetUp(end))
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
