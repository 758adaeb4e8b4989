package ipam

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// covers says whether a packet to an address, port and protocol is for p.
func covers(p Port, protocol string, to netip.AddrPort) bool {
	here := !p.Host.IsValid() || p.Host == to.Addr() || p.Host.IsUnspecified() && p.Host.Is4() == to.Addr().Is4()
	return here && p.Protocol == protocol && p.Number == to.Port()
}

// TestPorts allocates and frees containers with random ports, and holds the answers against every packet there is: never may one be for two
// containers, and nothing is refused that no packet contests.
func TestPorts(t *testing.T) {
	hosts := []netip.Addr{{}, netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")}
	packets := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	contested := func(a, b Port) bool {
		return slices.ContainsFunc(packets, func(to netip.Addr) bool {
			return covers(a, a.Protocol, netip.AddrPortFrom(to, a.Number)) && covers(b, a.Protocol, netip.AddrPortFrom(to, a.Number))
		})
	}
	port := rapid.Custom(func(t *rapid.T) Port {
		return Port{Protocol: rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "protocol"), Host: rapid.SampledFrom(hosts).Draw(t, "host"), Number: rapid.Uint16Range(80, 82).Draw(t, "number"), Pod: 80}
	})
	rapid.Check(t, func(t *rapid.T) {
		var tab table
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			o := Owner{"net", strconv.Itoa(rapid.IntRange(0, 5).Draw(t, "container")), "eth0"}
			if _, held := tab.leases[o]; held {
				tab.free(o)
				continue
			}
			want := rapid.SliceOfN(port, 0, 3).Draw(t, "ports")
			clash := false
			for i, p := range want {
				clash = clash || slices.ContainsFunc(want[:i], func(q Port) bool { return contested(p, q) })
				for _, l := range tab.leases {
					clash = clash || slices.ContainsFunc(l.Ports, func(q Port) bool { return contested(p, q) })
				}
			}
			if _, err := tab.allocate(Lease{Owner: o, Ports: want}, dual); errors.Is(err, ErrPort) != clash || err != nil && !clash {
				t.Fatalf("%v: %v, contested %t", want, err, clash)
			}
		}
	})
}
