package control

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
)

const (
	conf4 = "/proc/sys/net/ipv4/conf/"
	conf6 = "/proc/sys/net/ipv6/conf/"
)

// A sysctl is a file under /proc/sys and what it has to say.
type sysctl struct{ path, value string }

// applySysctls of the TAP, and the forwarding of the families that the network has.
func (k Kernel) applySysctls(netlink.Link) (changed bool, err error) {
	var want []sysctl
	if k.State.Network.IsValid() {
		want = append(want, k.sysctls4()...)
	}
	if k.State.IPv6Network.IsValid() {
		if err := k.haveIPv6(conf6); err != nil {
			return false, err
		}
		if changed, err = keepListening(); err != nil {
			return changed, err
		}
	}
	for _, s := range append(want, k.sysctls6()...) {
		wrote, err := writeSysctl(s.path, s.value)
		changed = changed || wrote
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// sysctls4 of the TAP. accept_local: frames for local pods may carry a source that the node owns (.0, .1).
// rp_filter: the way back of a peer's own address is not the TAP.
func (k Kernel) sysctls4() []sysctl {
	return []sysctl{
		{conf4 + k.TAP + "/accept_local", "1"},
		{conf4 + k.TAP + "/rp_filter", "0"},
		{conf4 + k.TAP + "/send_redirects", "0"},
		{"/proc/sys/net/ipv4/ip_forward", "1"},
	}
}

// sysctls6 of the TAP. IPv6 stays off where the network has none, so that the kernel sends nothing into it. Else the
// only address is the tunnel's: addr_gen_mode 1 makes no link-local one, and it is set before IPv6 goes on.
func (k Kernel) sysctls6() []sysctl {
	tap := conf6 + k.TAP + "/"
	if !k.State.IPv6Network.IsValid() {
		return []sysctl{{tap + "accept_ra", "0"}, {tap + "disable_ipv6", "1"}}
	}
	return []sysctl{
		{tap + "accept_ra", "0"},
		{tap + "addr_gen_mode", "1"},
		{tap + "accept_dad", "0"},
		{tap + "disable_ipv6", "0"},
		{conf6 + "all/forwarding", "1"},
	}
}

// haveIPv6 refuses a kernel without IPv6. conf is the directory of the links' sysctls.
func (k Kernel) haveIPv6(conf string) error {
	if _, err := os.Stat(conf); err != nil {
		return fmt.Errorf("this kernel has no IPv6 (booted with ipv6.disable=1?), but the cluster has the IPv6 network %s: %w", k.State.IPv6Network, err)
	}
	return nil
}

// keepListening makes sure that forwarding, once on, changes nothing for the links that live on router advertisements
// now: a forwarding kernel takes none where accept_ra is 1, and forgets the default routes that it learnt (Linux,
// ip-sysctl.rst), which would cut the node off. Those links get 2, which means the same as 1 did. It is not
// done to other links, which pods may be behind, nor to those that come later; like forwarding it outlasts the daemon.
func keepListening() (changed bool, err error) {
	names, err := listeners()
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if !onlyAsHost(conf6 + name) {
			continue
		}
		wrote, err := writeSysctl(conf6+name+"/accept_ra", "2")
		changed = changed || wrote
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// listeners returns the links that have a route from a router advertisement, or a global address that expires.
func listeners() (names []string, err error) {
	routes, err := listing.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, err
	}
	addrs, err := listing.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, err
	}
	learns := map[int]bool{}
	for _, r := range routes {
		learns[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			learns[hop.LinkIndex] = true
		}
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_PERMANENT == 0 && a.Scope == unix.RT_SCOPE_UNIVERSE {
			learns[a.LinkIndex] = true
		}
	}
	for index := range learns {
		if link, err := netlink.LinkByIndex(index); err == nil { // else it has gone
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}

// onlyAsHost says whether a link takes router advertisements only for as long as it does not forward, which it does not.
func onlyAsHost(dir string) bool {
	accept, err1 := os.ReadFile(dir + "/accept_ra")
	forwarding, err2 := os.ReadFile(dir + "/forwarding")
	return err1 == nil && err2 == nil && strings.TrimSpace(string(accept)) == "1" && strings.TrimSpace(string(forwarding)) == "0"
}

// writeSysctl sets a sysctl that is not set already. A kernel without IPv6 has no IPv6 ones.
func writeSysctl(path, value string) (bool, error) {
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && strings.Contains(path, "/ipv6/") {
		return false, nil
	}
	if err != nil || strings.TrimSpace(string(old)) == value {
		return false, err
	}
	return true, os.WriteFile(path, []byte(value), 0)
}

// ReversePathFilter returns the strictness of net.ipv4.conf.all.rp_filter, which counts for the TAP as well:
// the kernel takes the larger of both.
func ReversePathFilter() (string, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
	return strings.TrimSpace(string(b)), err
}
