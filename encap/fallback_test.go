package encap

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// UDP_NO_CHECK6_TX and UDP_NO_CHECK6_RX (include/uapi/linux/udp.h).
const (
	udpNoCheck6Send    = 101
	udpNoCheck6Receive = 102
)

// refuseSegments makes the kernel answer UDP_SEGMENT with EINVAL, which needs checksums, and the receiver take
// what comes without.
func refuseSegments(t *testing.T, from, to *Underlay) {
	t.Helper()
	level, option := unix.SOL_SOCKET, unix.SO_NO_CHECK
	if from.family == &inet6 {
		level, option = unix.IPPROTO_UDP, udpNoCheck6Send
	}
	err := unix.SetsockoptInt(to.receiver, unix.IPPROTO_UDP, udpNoCheck6Receive, 1)
	for i := range from.senders {
		err = errors.Join(err, unix.SetsockoptInt(from.senders[i].fd, level, option, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestFallback(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.pair(t)
		refuseSegments(t, a, b)
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		write := func() {
			out.Reset()
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(10)), 0, to)
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(60000)), 1410, to).OuterTOS = 1
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(20000)), 100, to) // four messages
			outgoing(t, out, flow{1, 2}.tcp(t, pattern(11)), 0, to)
			want := wireOf(out)
			a.Write(out)
			checkSent(t, out)
			got := receive(t, b, in, len(want))
			checkArrived(t, got, want)
			if got[0].tos != 0 || got[1].tos != 1 || got[43].tos != 1 || got[44].tos != 0 {
				t.Error("the TOS byte is another without UDP_SEGMENT")
			}
		}
		write()
		if got := a.Fallbacks(); got != 5 {
			t.Errorf("%d fallbacks, want one for each of 5 messages", got)
		}
		if got := a.Offloads(); !slices.Equal(got, []string{"udp_gro"}) {
			t.Errorf("offloads %v after a refusal", got)
		}
		before := a.Fallbacks()
		write()
		if got := a.Fallbacks(); got != before {
			t.Errorf("%d more fallbacks: UDP_SEGMENT is tried again", got-before)
		}
	})
}

// A destination that no datagram can be sent to is refused, and nothing is concluded from it about
// offloads or about the frames around it.
func TestRefusedDestinations(t *testing.T) {
	for name, tt := range map[string]struct {
		lo  loopback
		bad string
	}{
		"broadcast (EACCES)":                  {loopback4, "255.255.255.255:8472"},
		"not from a loopback source (EINVAL)": {loopback4, "192.0.2.1:8472"},
		"port 0 (EINVAL)":                     {loopback4, "127.0.0.1:0"},
		"port 0, IPv6 (EINVAL)":               {loopback6, "[::1]:0"},
		"no address":                          {loopback4, ""},
		"no address, IPv6":                    {loopback6, ""},
		"no IPv4":                             {loopback4, "[2001:db8::1]:8472"},
		"no IPv6":                             {loopback6, "127.0.0.1:8472"},
		"no IPv6, but looks so":               {loopback6, "[::ffff:127.0.0.1]:8472"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, to := tt.lo.pair(t)
			bad := netip.AddrPortFrom(netip.Addr{}, to.Port()) // the kernel takes :: for itself
			if tt.bad != "" {
				bad = netip.MustParseAddrPort(tt.bad)
			}
			out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
			for _, remote := range []netip.AddrPort{to, bad, bad, to} {
				outgoing(t, out, flow{1, 2}.udp(t, pattern(9000)), 1000, remote)
				outgoing(t, out, flow{1, 2}.udp(t, pattern(500)), 0, remote)
			}
			var want [][]byte
			for i, f := range out.Frames {
				if i < 2 || i > 5 {
					want = append(want, wire(f)...)
				}
			}
			a.Write(out)
			checkRefused(t, out.Frames[2:6])
			checkArrived(t, receive(t, b, in, len(want)), want)
			if !slices.Contains(a.Offloads(), "udp_segment") {
				t.Errorf("offloads %v", a.Offloads())
			}
		})
	}
}

func checkRefused(t *testing.T, frames []*packet.Frame) {
	t.Helper()
	for i, f := range frames {
		if f.Sent != 0 || f.SentBytes != 0 || f.Refused != f.Segments {
			t.Fatalf("frame %d: %d sent, %d bytes, %d refused of %d", i, f.Sent, f.SentBytes, f.Refused, f.Segments)
		}
	}
}

// inNamespace puts the test into a network namespace of its own, whose loopback has the given MTU.
// The test's thread goes with it.
func inNamespace(t *testing.T, mtu int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes a network namespace")
	}
	runtime.LockOSThread() // never unlocked, so that nobody else runs on the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetMTU(lo, mtu)
	}
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Datagrams larger than the MTU leave as fragments, and a super-packet whose segments do not
// fit does so too; UDP_SEGMENT stays on for the others.
func TestLargerThanMTU(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		inNamespace(t, 1500)
		a, b, to := lo.pair(t)
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		for range 2 {
			outgoing(t, out, flow{1, 2}.udp(t, pattern(5000)), 0, to)
			outgoing(t, out, flow{1, 2}.udp(t, pattern(9000)), 2000, to)
			outgoing(t, out, flow{1, 2}.udp(t, pattern(9000)), 1390, to)
		}
		want := wireOf(out)
		a.Write(out)
		checkSent(t, out)
		checkArrived(t, receive(t, b, in, len(want)), want)
		if a.Fallbacks() != 2 || !slices.Contains(a.Offloads(), "udp_segment") {
			t.Errorf("%d fallbacks, offloads %v; want 2, one for each super-packet with large segments", a.Fallbacks(), a.Offloads())
		}
		out.Reset()
		for i := range 10 { // what is known to be too large goes alone, also with a short one behind it
			outgoing(t, out, flow{1, 2}.udp(t, pattern(5000-4900*(i%2))), 0, to)
		}
		want = wireOf(out)
		a.Write(out)
		checkArrived(t, receive(t, b, in, len(want)), want)
		if a.Fallbacks() != 2 {
			t.Errorf("%d fallbacks: datagrams known to be too large were sent as several", a.Fallbacks())
		}
	})
}

// Without a route (ENETUNREACH) every frame is refused, at once and for good, and that is no
// reason to give UDP_SEGMENT up.
func TestUnreachable(t *testing.T) {
	for local, remote := range map[string]string{"0.0.0.0:0": "10.9.9.9:8472", "[::]:0": "[2001:db8::1]:8472"} {
		t.Run(local, func(t *testing.T) {
			inNamespace(t, 1500)
			a := open(t, local)
			out := packet.NewBatch(1 << 20)
			for i := range 100 {
				outgoing(t, out, flow{1, 2}.tcp(t, pattern(3000)), 1000*(i%2), netip.MustParseAddrPort(remote))
			}
			if err := a.Write(out); err != nil {
				t.Errorf("Write: %v", err)
			}
			checkRefused(t, out.Frames)
			if a.Fallbacks() != 0 || !slices.Contains(a.Offloads(), "udp_segment") {
				t.Errorf("%d fallbacks, offloads %v", a.Fallbacks(), a.Offloads())
			}
		})
	}
}
