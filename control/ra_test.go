package control

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestForwardingKeepsRouterAdvertisements demands that the default route and the address which a link has from router
// advertisements outlast the forwarding that the daemon turns on, and that other links stay as they are.
func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	inNamespace(t)
	addVeth(t, "tulle-v0", "tulle-v1")
	advertise(t, "tulle-v1")
	await(t, "an address and a route from the router", func() bool { return learnt(t) })
	addTAP(t, "tulle-t0")
	k := kernelUnderTest("").with6("fd00:244:0:1::/64", true)
	apply(t, k, ChangedSysctl, ChangedLink, ChangedAddress, ChangedNeighbour, ChangedRoute)
	apply(t, k)
	if !learnt(t) {
		t.Error("forwarding cost the node its default route")
	}
	for name, want := range map[string]string{"tulle-v0": "2", "tulle-v1": "1", "default": "1", "all": "1"} {
		if b, err := os.ReadFile(conf6 + name + "/accept_ra"); strings.TrimSpace(string(b)) != want {
			t.Errorf("accept_ra of %s is %q (%v), want %s", name, b, err, want)
		}
	}
	for _, r := range defaultRoutes(t) {
		if err := netlink.RouteDel(&r); err != nil {
			t.Fatal(err)
		}
	}
	advertise(t, "tulle-v1")
	await(t, "the route to come back with the next advertisement", func() bool { return learnt(t) })
}

// addVeth makes two links, up, with link-local addresses that can be used at once.
func addVeth(t *testing.T, a, b string) {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a}, PeerName: b}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{a, b} {
		if _, err := writeSysctl(conf6+name+"/accept_dad", "0"); err != nil {
			t.Fatal(err)
		}
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// advertise sends a router advertisement (RFC 4861 section 4.2) for 2001:db8:7::/64 from the link.
func advertise(t *testing.T, from string) {
	t.Helper()
	link, err := netlink.LinkByName(from)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6) // the kernel fills in the checksum
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for option, value := range map[int]int{unix.IPV6_MULTICAST_HOPS: 255, unix.IPV6_MULTICAST_LOOP: 0} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, value); err != nil {
			t.Fatal(err)
		}
	}
	ra := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // router for 1800 s
	ra = append(ra, 3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0, 0x20, 0x01, 0x0d, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	all := &unix.SockaddrInet6{Addr: [16]byte{0xff, 0x02, 15: 1}, ZoneId: uint32(link.Attrs().Index)}
	await(t, "a link-local address to send from", func() bool { return unix.Sendto(fd, ra, 0, all) == nil })
}

func defaultRoutes(t *testing.T) (found []netlink.Route) {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst == nil || isDefault(r) {
			found = append(found, r)
		}
	}
	return found
}

// learnt says whether there are a default route and an address from router advertisements.
func learnt(t *testing.T) bool {
	t.Helper()
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if strings.HasPrefix(a.IP.String(), "2001:db8:7:") {
			return len(defaultRoutes(t)) > 0
		}
	}
	return false
}

// await waits for something that takes milliseconds.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
