package control

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// txQueueLen is the TAP's queue in frames: enough for an outage of the daemon of some hundred milliseconds at
	// small-packet rates; the default of 500 drops in a burst.
	txQueueLen = 8192

	// routeProtocol marks this daemon's routes among the kernel's (rtnetlink(7), rtm_protocol), so that those of an
	// earlier run are found and removed.
	routeProtocol = 84
)

// A Kernel is what the node's kernel side has to look like: the TAP's settings, the network's route to it, and an
// unreachable route for the node's own subnet, without which packets for absent pods would loop between the kernel and
// the engine. Without a subnet nothing leads to the TAP.
type Kernel struct {
	TAP   string
	State State // Peers do not matter
}

// A Change is one thing that Apply found different from what it has to be, and mended.
type Change string

// The kinds of Change, the same for making and for repairing.
const (
	ChangedSysctl  Change = "sysctl"
	ChangedLink    Change = "link"
	ChangedAddress Change = "address"
	ChangedRoute   Change = "route"
)

// CheckFree refuses a TAP that another process holds: the kernel would share its packets out between both. A TAP that
// a daemon left with --keep has no queue open and is free.
func (k Kernel) CheckFree() error {
	link, err := netlink.LinkByName(k.TAP)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", k.TAP, err)
	}
	if t, ok := link.(*netlink.Tuntap); ok && t.Queues > 0 || link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
		return fmt.Errorf("link %s: another process holds it, most likely a second tulle node in this network namespace: stop that one first", k.TAP)
	}
	return nil
}

// Apply makes the kernel's state what it has to be, whatever it was before, and says what it changed.
func (k Kernel) Apply() ([]Change, error) {
	link, err := netlink.LinkByName(k.TAP)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", k.TAP, err)
	}
	var changes []Change
	for _, part := range []struct {
		kind  Change
		apply func(netlink.Link) (bool, error)
	}{
		{ChangedSysctl, k.applySysctls},
		{ChangedLink, k.applyLink},
		{ChangedAddress, k.applyAddress},
		{ChangedRoute, k.applyRoutes},
	} {
		changed, err := part.apply(link)
		if changed {
			changes = append(changes, part.kind)
		}
		if err != nil {
			return changes, fmt.Errorf("%s of %s: %w", part.kind, k.TAP, err)
		}
	}
	return changes, nil
}

func (k Kernel) applyLink(link netlink.Link) (changed bool, err error) {
	have, mac := link.Attrs(), net.HardwareAddr(k.State.Self.VTEP[:])
	for _, setting := range []struct {
		what string
		ok   bool
		set  func() error
	}{
		{"MAC " + mac.String(), slices.Equal(have.HardwareAddr, mac), func() error { return netlink.LinkSetHardwareAddr(link, mac) }},
		{fmt.Sprintf("MTU %d", k.State.MTU), have.MTU == k.State.MTU, func() error { return netlink.LinkSetMTU(link, k.State.MTU) }},
		{fmt.Sprintf("queue length %d", txQueueLen), have.TxQLen == txQueueLen, func() error { return netlink.LinkSetTxQLen(link, txQueueLen) }},
		{"up", have.Flags&net.FlagUp != 0, func() error { return netlink.LinkSetUp(link) }},
	} {
		if setting.ok {
			continue
		}
		if err := setting.set(); err != nil {
			return changed, fmt.Errorf("set %s: %w", setting.what, err)
		}
		changed = true
	}
	return changed, nil
}

// applyAddress leaves the tunnel address on the TAP and no other.
func (k Kernel) applyAddress(link netlink.Link) (changed bool, err error) {
	have, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return false, err
	}
	var want *net.IPNet
	if k.State.Self.Subnet.IsValid() {
		want = ipNet(hostPrefix(TunnelAddr(k.State.Self.Subnet)))
	}
	found := false
	for _, a := range have {
		if want != nil && a.IPNet.String() == want.String() {
			found = true
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return changed, fmt.Errorf("remove %s: %w", a.IPNet, err)
		}
		changed = true
	}
	if found || want == nil {
		return changed, nil
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: want}); err != nil {
		return changed, fmt.Errorf("add %s: %w", want, err)
	}
	return true, nil
}

// applyRoutes makes the routes with this daemon's mark those that State asks for.
func (k Kernel) applyRoutes(link netlink.Link) (changed bool, err error) {
	have, err := ownedRoutes()
	if err != nil {
		return false, err
	}
	want := k.routes(link.Attrs().Index)
	for _, r := range have {
		if slices.ContainsFunc(want, func(w netlink.Route) bool { return sameRoute(w, r) }) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return changed, fmt.Errorf("remove %s: %w", r.Dst, err)
		}
		changed = true
	}
	for _, w := range want {
		if slices.ContainsFunc(have, func(r netlink.Route) bool { return sameRoute(w, r) }) {
			continue
		}
		if err := netlink.RouteReplace(&w); err != nil {
			return changed, fmt.Errorf("add %s: %w", w.Dst, err)
		}
		changed = true
	}
	return changed, nil
}

func sameRoute(a, b netlink.Route) bool {
	return a.Dst.String() == b.Dst.String() && a.Type == b.Type && a.Priority == b.Priority &&
		(a.Type == unix.RTN_UNREACHABLE || a.LinkIndex == b.LinkIndex) && a.Gw.Equal(b.Gw) && a.Src.Equal(b.Src)
}

// ownedRoutes lists the routes that carry this daemon's mark.
func ownedRoutes() ([]netlink.Route, error) {
	return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
}

func (k Kernel) routes(tapIndex int) []netlink.Route {
	subnet := k.State.Self.Subnet
	if !subnet.IsValid() {
		return nil
	}
	return []netlink.Route{
		{
			Dst:       ipNet(k.State.Network),
			Type:      unix.RTN_UNICAST,
			LinkIndex: tapIndex,
			Gw:        EngineAddr(subnet).AsSlice(),
			Src:       TunnelAddr(subnet).AsSlice(),
			Flags:     int(netlink.FLAG_ONLINK),
			Protocol:  routeProtocol,
		},
		{
			Dst:      ipNet(subnet),
			Type:     unix.RTN_UNREACHABLE,
			Priority: math.MaxInt32, // the worst that the library can express on every machine
			Protocol: routeProtocol,
		},
	}
}

// Remove takes away what Apply made and what does not go with the TAP. It is no error when it is gone already.
func (k Kernel) Remove() error {
	have, err := ownedRoutes()
	if err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	var errs []error
	for _, r := range have {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
		}
	}
	return errors.Join(errs...)
}

// applySysctls of the TAP. accept_local: frames for local pods may carry a source that the node owns (.0, .1).
// rp_filter: the way back of a peer's own address is not the TAP. IPv6 stays off where the network has none,
// so that the kernel sends no router solicitations into it.
func (k Kernel) applySysctls(netlink.Link) (changed bool, err error) {
	conf4, conf6 := "/proc/sys/net/ipv4/conf/"+k.TAP+"/", "/proc/sys/net/ipv6/conf/"+k.TAP+"/"
	for _, s := range []struct{ path, value string }{
		{conf4 + "accept_local", "1"},
		{conf4 + "rp_filter", "0"},
		{conf4 + "send_redirects", "0"},
		{"/proc/sys/net/ipv4/ip_forward", "1"},
		{conf6 + "accept_ra", "0"},
		{conf6 + "disable_ipv6", "1"},
	} {
		wrote, err := writeSysctl(s.path, s.value)
		if err != nil {
			return changed, err
		}
		changed = changed || wrote
	}
	return changed, nil
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

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
