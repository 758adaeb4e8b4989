package pin

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// BenchmarkSend is what a pod's datagram to its node costs, with and without its being held to its addresses: the kernel does all of it on
// the sender's CPU.
func BenchmarkSend(b *testing.B) {
	addr, gateway := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("169.254.1.1")
	runtime.LockOSThread() // never unlocked: the thread goes with its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Skip("needs root: ", err)
	}
	node, err := os.Open("/proc/thread-self/ns/net")
	if err == nil {
		err = quiet()
	}
	if err == nil {
		err = unix.Unshare(unix.CLONE_NEWNET)
	}
	if err != nil {
		b.Fatal(err)
	}
	defer node.Close()
	pod, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		b.Fatal(err)
	}
	defer pod.Close()
	const name = "tulle0123456789"
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: name, PeerNamespace: netlink.NsFd(int(node.Fd()))}
	err = errors.Join(netlink.LinkAdd(pair), up("eth0", addr, gateway))
	if err != nil {
		b.Fatal(err)
	}
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		b.Fatal(err)
	}
	enter(b, node)
	if err := up(name, gateway, addr); err != nil {
		b.Fatal(err)
	}
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: gateway.AsSlice(), Port: 9})
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	own := Pod{name, []netip.Addr{addr}, eth0.HardwareAddr}
	for _, c := range []struct {
		name string
		pods []Pod
	}{{"free", nil}, {"pinned", []Pod{own}}, {"pinned-200", append(crowd(199), own)}} {
		b.Run(c.name, func(b *testing.B) {
			enter(b, node)
			if _, err := Apply(c.pods); err != nil {
				b.Fatal(err)
			}
			enter(b, pod)
			socket, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: gateway.AsSlice(), Port: 9})
			if err != nil {
				b.Fatal(err)
			}
			defer socket.Close()
			payload, start := make([]byte, 18), threadTime(b)
			for b.Loop() {
				if _, err := socket.Write(payload); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(threadTime(b)-start)/float64(b.N), "cpu-ns/op")
			enter(b, node)
			drops, err := Drops()
			for r, n := range drops {
				if n > 0 || err != nil {
					b.Fatal(r, n, err)
				}
			}
		})
	}
}

// crowd are pods that are not there.
func crowd(n int) (pods []Pod) {
	for i := range n {
		pods = append(pods, Pod{"tullea" + string(rune('a'+i/26%26)) + string(rune('a'+i%26)), []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 2, byte(i)})},
			net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}})
	}
	return pods
}

func enter(b *testing.B, ns *os.File) {
	b.Helper()
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
}

// quiet keeps the node's end from hearing what the pod's link says in IPv6 when it comes up.
func quiet() error {
	const key = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
	if _, err := os.Stat(key); err != nil {
		return nil
	}
	return os.WriteFile(key, []byte("1"), 0)
}

// threadTime is the CPU time of the thread, ns: what else runs on the machine does not count.
func threadTime(b *testing.B) int64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// up gives a link an address and a route to another one.
func up(name string, own, other netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	host := func(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }
	return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: host(own)}), netlink.LinkSetUp(link),
		netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(other), Scope: netlink.SCOPE_LINK}))
}
