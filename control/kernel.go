package control

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// txQueueLen is the TAP's queue in frames: enough for an outage of the daemon of some hundred milliseconds at
// small-packet rates; the default of 500 drops in a burst.
const txQueueLen = 8192

// A Kernel keeps the node's kernel side: the TAP's settings, the network's route to it, and an unreachable
// route for the node's own subnet, without which packets for absent pods would loop between the
// kernel and the engine.
type Kernel struct {
	TAP   string
	State State // Peers do not matter
}

// CheckFree refuses a TAP that another process holds: the kernel would share its packets out between both. A TAP that
// a daemon left with --keep has no carrier and is free.
func (k Kernel) CheckFree() error {
	link, err := netlink.LinkByName(k.TAP)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", k.TAP, err)
	}
	if link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
		return fmt.Errorf("link %s: another process holds it, most likely a second tulle node in this network namespace: stop that one first", k.TAP)
	}
	return nil
}

// Apply makes the kernel's state what it has to be, whatever it was before. It is idempotent.
func (k Kernel) Apply() error {
	link, err := netlink.LinkByName(k.TAP)
	if err != nil {
		return fmt.Errorf("link %s: %w", k.TAP, err)
	}
	if err := k.sysctls(); err != nil {
		return err
	}
	if err := k.setLink(link); err != nil {
		return fmt.Errorf("link %s: %w", k.TAP, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(hostPrefix(TunnelAddr(k.State.Self.Subnet)))}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", addr, k.TAP, err)
	}
	for _, r := range k.routes(link.Attrs().Index) {
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("route %s: %w", r.Dst, err)
		}
	}
	return nil
}

func (k Kernel) setLink(link netlink.Link) error {
	mac := net.HardwareAddr(k.State.Self.VTEP[:])
	if link.Attrs().HardwareAddr.String() != mac.String() {
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("set MAC %s: %w", mac, err)
		}
	}
	if err := netlink.LinkSetMTU(link, k.State.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", k.State.MTU, err)
	}
	if err := netlink.LinkSetTxQLen(link, txQueueLen); err != nil {
		return fmt.Errorf("set queue length %d: %w", txQueueLen, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// sysctls of the TAP. accept_local: frames for local pods may carry a source that the node owns (.0, .1).
// rp_filter: the way back of a peer's own address is not the TAP. IPv6 stays off where the network has none,
// so that the kernel sends no router solicitations into it.
func (k Kernel) sysctls() error {
	conf4, conf6 := "/proc/sys/net/ipv4/conf/"+k.TAP+"/", "/proc/sys/net/ipv6/conf/"+k.TAP+"/"
	for _, s := range []struct{ path, value string }{
		{conf4 + "accept_local", "1"},
		{conf4 + "rp_filter", "0"},
		{conf4 + "send_redirects", "0"},
		{"/proc/sys/net/ipv4/ip_forward", "1"},
		{conf6 + "accept_ra", "0"},
		{conf6 + "disable_ipv6", "1"},
	} {
		if err := writeSysctl(s.path, s.value); err != nil {
			return err
		}
	}
	return nil
}

// writeSysctl sets a sysctl that is not set already. A kernel without IPv6 has no IPv6 ones.
func writeSysctl(path, value string) error {
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && strings.Contains(path, "/ipv6/") {
		return nil
	}
	if err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// ReversePathFilter returns the strictness of net.ipv4.conf.all.rp_filter, which counts for the TAP as well:
// the kernel takes the larger of both.
func ReversePathFilter() (string, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
	return strings.TrimSpace(string(b)), err
}

func (k Kernel) routes(tapIndex int) []netlink.Route {
	return []netlink.Route{
		{
			Dst:       ipNet(k.State.Network),
			LinkIndex: tapIndex,
			Gw:        EngineAddr(k.State.Self.Subnet).AsSlice(),
			Src:       TunnelAddr(k.State.Self.Subnet).AsSlice(),
			Flags:     int(netlink.FLAG_ONLINK),
		},
		{
			Dst:      ipNet(k.State.Self.Subnet),
			Type:     unix.RTN_UNREACHABLE,
			Priority: math.MaxInt32, // the worst that the library can express on every machine
		},
	}
}

// Remove takes away what Apply made and the TAP's end does not. It is no error when it is gone already.
func (k Kernel) Remove() error {
	var errs []error
	for _, r := range k.routes(0) {
		if r.Type != unix.RTN_UNREACHABLE {
			continue // goes with the TAP
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
		}
	}
	return errors.Join(errs...)
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
