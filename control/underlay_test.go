package control

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addUnderlay makes a link with addresses of every sort, and one beside it.
func addUnderlay(t *testing.T) {
	t.Helper()
	for name, addrs := range map[string][]netlink.Addr{
		"tulle-u0": {
			{IPNet: ipNet(netip.MustParsePrefix("192.0.2.1/24"))}, {IPNet: ipNet(netip.MustParsePrefix("192.0.2.2/24"))},
			{IPNet: ipNet(netip.MustParsePrefix("fe80::7/64")), Flags: unix.IFA_F_NODAD},
			{IPNet: ipNet(netip.MustParsePrefix("2001:db8::a/64")), Flags: unix.IFA_F_NODAD},
			{IPNet: ipNet(netip.MustParsePrefix("2001:db8::b/64")), Flags: unix.IFA_F_NODAD, ValidLft: 9999, PreferedLft: 0}, // listed before the other: deprecated
		},
		"tulle-u1": {
			{IPNet: ipNet(netip.MustParsePrefix("198.51.100.1/24"))},
			{IPNet: ipNet(netip.MustParsePrefix("2001:db8:1::1/64")), Flags: unix.IFA_F_NODAD, ValidLft: 9999, PreferedLft: 0},
		},
		"tulle-u2": {{IPNet: ipNet(netip.MustParsePrefix("fe80::9/64")), Flags: unix.IFA_F_NODAD}},
	} {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400}}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if err := netlink.AddrAdd(link, &a); err != nil {
				t.Fatalf("%s %s: %v", name, a.IPNet, err)
			}
		}
	}
}

// TestFindUnderlay asks for a link and its addresses in every way.
func TestFindUnderlay(t *testing.T) {
	inNamespace(t)
	addUnderlay(t)
	addr := netip.MustParseAddr
	for _, c := range []struct {
		name string
		q    UnderlayQuery
		want string // link and addresses, or the start of the error
	}{
		{"IPv4 by name", UnderlayQuery{Iface: "tulle-u0", IPv4: true}, "tulle-u0 192.0.2.1 invalid IP"},
		{"IPv6 by name", UnderlayQuery{Iface: "tulle-u0", IPv6: true}, "tulle-u0 invalid IP 2001:db8::a"},
		{"both by name", UnderlayQuery{Iface: "tulle-u0", IPv4: true, IPv6: true}, "tulle-u0 192.0.2.1 2001:db8::a"},
		{"both by IPv4 address", UnderlayQuery{IPv4: true, IPv6: true, PublicIP: addr("192.0.2.2")}, "tulle-u0 192.0.2.2 2001:db8::a"},
		{"both by IPv6 address", UnderlayQuery{IPv4: true, IPv6: true, PublicIPv6: addr("2001:db8::b")}, "tulle-u0 192.0.2.1 2001:db8::b"},
		{"a deprecated one if it is given", UnderlayQuery{Iface: "tulle-u1", IPv6: true, PublicIPv6: addr("2001:db8:1::1")}, "tulle-u1 invalid IP 2001:db8:1::1"},
		{"both by addresses", UnderlayQuery{IPv4: true, IPv6: true, PublicIP: addr("192.0.2.2"), PublicIPv6: addr("2001:db8::a")}, "tulle-u0 192.0.2.2 2001:db8::a"},
		{"no such link", UnderlayQuery{Iface: "tulle-u9", IPv6: true}, "--iface tulle-u9: no such link (have: lo, "},
		{"no IPv4", UnderlayQuery{Iface: "tulle-u2", IPv4: true}, "--iface tulle-u2: it has no IPv4 address"},
		{"no IPv6", UnderlayQuery{Iface: "tulle-u2", IPv6: true}, "--iface tulle-u2: it has no global IPv6 address"},
		{"only a deprecated one", UnderlayQuery{Iface: "tulle-u1", IPv6: true}, "--iface tulle-u1: it has no global IPv6 address that stays: give one with --public-ipv6 (have: [2001:db8:1::1 deprecated])"},
		{"another link's IPv4", UnderlayQuery{Iface: "tulle-u1", IPv4: true, PublicIP: addr("192.0.2.1")}, "--public-ip 192.0.2.1: not an address of tulle-u1 (have: [198.51.100.1])"},
		{"another link's IPv6", UnderlayQuery{IPv4: true, IPv6: true, PublicIP: addr("198.51.100.1"), PublicIPv6: addr("2001:db8::a")}, "--public-ipv6 2001:db8::a: not an address of tulle-u1 (have: "},
		{"link-local", UnderlayQuery{Iface: "tulle-u0", IPv6: true, PublicIPv6: addr("fe80::7")}, "--public-ipv6 fe80::7: not an address of tulle-u0 (have: "},
		{"nobody's IPv4", UnderlayQuery{IPv4: true, PublicIP: addr("203.0.113.9")}, "--public-ip 203.0.113.9: no link has this address (have: "},
		{"nobody's IPv6", UnderlayQuery{IPv6: true, PublicIPv6: addr("2001:db8::9")}, "--public-ipv6 2001:db8::9: no link has this address (have: "},
		{"no default route", UnderlayQuery{IPv6: true}, "no default route to find the underlay by: name it with --iface or --public-ipv6 (links: "},
	} {
		checkUnderlay(t, c.name, c.q, c.want)
	}
	addDefaultRoutes(t)
	checkUnderlay(t, "IPv4 by default route", UnderlayQuery{IPv4: true}, "tulle-u1 198.51.100.1 invalid IP")
	checkUnderlay(t, "IPv6 by default route", UnderlayQuery{IPv6: true}, "tulle-u0 invalid IP 2001:db8::a")
	checkUnderlay(t, "both by the IPv4 default route", UnderlayQuery{IPv4: true, IPv6: true}, "--iface tulle-u1: it has no global IPv6 address that stays")
}

func checkUnderlay(t *testing.T, name string, q UnderlayQuery, want string) {
	t.Helper()
	link, err := FindUnderlay(q)
	got := link.Name + " " + link.Addr.String() + " " + link.Addr6.String()
	if err != nil {
		got = err.Error()
	}
	if !strings.HasPrefix(got, want) || err == nil && link.MTU != 1400 {
		t.Errorf("%s: %s (MTU %d), want %s", name, got, link.MTU, want)
	}
}

// addDefaultRoutes leads IPv4 through tulle-u1 and IPv6 through tulle-u0.
func addDefaultRoutes(t *testing.T) {
	t.Helper()
	for name, prefix := range map[string]string{"tulle-u1": "0.0.0.0/0", "tulle-u0": "::/0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(prefix)), LinkIndex: link.Attrs().Index}); err != nil {
			t.Fatal(err)
		}
	}
}
