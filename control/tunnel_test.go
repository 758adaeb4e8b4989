package control

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Whatever somebody changes on the TAP for super-packets, or when the underlay's link is made again, Apply mends it, and then finds
// nothing to do.
func TestTunnel(t *testing.T) {
	inNamespace(t)
	tunnel := Tunnel{TAP: "tulle-gso", Link: "tulle-u"}
	check := func(what string, want bool) {
		t.Helper()
		if changed, err := tunnel.Apply(); changed != want || err != nil {
			t.Errorf("%s: changed %v, want %v: %v", what, changed, want, err)
		}
	}
	check("without links", false)
	tap := addTAP(t, tunnel.TAP)
	check("without the underlay's link", false)
	addBridge(t, tunnel.Link, "10.7.0.1/24")
	check("for the first time", true)
	addBridge(t, "tulle-v", "10.8.0.1/24")
	index := tap.Attrs().Index
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: 0xffff0000, Parent: netlink.HANDLE_INGRESS}}
	for what, damage := range map[string]func() error{
		"nothing":       func() error { return nil },
		"set down":      func() error { return netlink.LinkSetDown(tap) },
		"queue removed": func() error { return netlink.QdiscDel(ingress) },
		"leads elsewhere": func() error {
			_, err := Tunnel{TAP: tunnel.TAP, Link: "tulle-v"}.Apply()
			return err
		},
		"filters removed": func() error { return removeFilters(tap) },
		"IPv6 on": func() error {
			_, err := writeSysctl(conf6+tunnel.TAP+"/disable_ipv6", "0")
			return err
		},
		"link made again": func() error {
			link, err := netlink.LinkByName(tunnel.Link)
			if err == nil {
				err = netlink.LinkDel(link)
			}
			addBridge(t, tunnel.Link, "10.7.0.1/24")
			return err
		},
	} {
		if err := damage(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		check(what, what != "nothing")
		check("after "+what, false)
		checkRedirected(t, what, tap, tunnel.Link)
	}
}

func removeFilters(link netlink.Link) error {
	filters, err := netlink.FilterList(link, 0xffff0000)
	for _, f := range filters {
		if err == nil && f.Type() == "u32" && f.(*netlink.U32).Actions != nil {
			err = netlink.FilterDel(f)
		}
	}
	return err
}

// checkRedirected looks at what the kernel has: one filter, for all frames, to the link.
func checkRedirected(t *testing.T, what string, tap netlink.Link, to string) {
	t.Helper()
	link, err := netlink.LinkByName(to)
	if err != nil {
		t.Fatal(err)
	}
	filters, err := netlink.FilterList(tap, 0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range filters {
		u, ok := f.(*netlink.U32)
		if !ok || len(u.Actions) == 0 {
			continue // the hash table of the others
		}
		if m, ok := u.Actions[0].(*netlink.MirredAction); ok && m.Ifindex == link.Attrs().Index && u.Protocol == unix.ETH_P_ALL {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%s: %d filters lead to %s, want 1", what, found, to)
	}
}
