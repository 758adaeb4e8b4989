package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/netfilter"
)

const (
	// txQueueLen is the TAP's queue in frames: enough for an outage of the daemon of some hundred milliseconds at
	// small-packet rates; the default of 500 drops in a burst.
	txQueueLen = 8192

	// routeProtocol marks this daemon's routes among the kernel's (rtnetlink(7), rtm_protocol), so that those of an
	// earlier run are found and removed.
	routeProtocol = 84
)

// A Kernel is what the node's kernel side has to look like: the TAP's settings, each network's route to it, and an
// unreachable route for each of the node's own subnets, without which packets for absent pods would loop between the kernel
// and the engine. Without a subnet nothing leads to the TAP.
type Kernel struct {
	TAP   string
	State State // Peers do not matter, Natives do
	// L3 says that the device is a TUN: it has no MAC and no neighbours, and nothing is routed via an address on it.
	L3 bool
	// GSOMaxSegs bounds the segments of a super-packet that the kernel may hand to the device; 0 leaves the bound as it is.
	GSOMaxSegs uint32
	Tunnel     Tunnel
	// Underlay is the link over which packets of on-link peers may come as they are; "" lets whatever comes by any link in.
	Underlay string
	Pods     []Pod
	Mode     netfilter.Mode
	// NoNetfilter leaves the kernel's netfilter alone, where there is none.
	NoNetfilter bool

	rules *rules // what is known of the kernel's nftables; nil for nothing
}

// A Change is one thing that Apply found different from what it has to be, and mended.
type Change string

// The kinds of Change, the same for making and for repairing.
const (
	ChangedSysctl    Change = "sysctl"
	ChangedLink      Change = "link"
	ChangedAddress   Change = "address"
	ChangedRoute     Change = "route"
	ChangedNeighbour Change = "neighbour"
	ChangedPod       Change = "pod" // a rule, a route to a pod, or a limit of its link
	ChangedNetfilter Change = "netfilter"
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
		return fmt.Errorf("link %s: another process holds it, most likely a second tulle node in this network namespace, or a tulle holder for a node with --holder off or another --run-dir: stop that one first", k.TAP)
	}
	return nil
}

// Apply makes the kernel's state what it has to be, whatever it was before, and says what it changed.
func (k Kernel) Apply() ([]Change, error) { return k.apply(true) }

// apply looks at everything, or only at what the kernel does not announce when somebody changes it.
func (k Kernel) apply(everything bool) ([]Change, error) {
	link, err := netlink.LinkByName(k.TAP)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", k.TAP, err)
	}
	var changes []Change
	for _, part := range []struct {
		kind      Change
		announced bool
		apply     func(netlink.Link) (bool, error)
	}{
		{ChangedSysctl, false, k.applySysctls},
		{ChangedLink, true, k.applyLink},
		{ChangedLink, false, func(netlink.Link) (bool, error) { return k.Tunnel.Apply() }},
		{ChangedAddress, true, k.applyAddress},
		// before anything is routed to it
		{ChangedNeighbour, false, k.applyNeighbour},
		{ChangedRoute, true, k.applyRoutes},
		{ChangedPod, false, k.applyPins},
		{ChangedPod, false, k.applyRules},
		{ChangedPod, true, k.applyPodRoutes},
		{ChangedPod, false, k.applyLimits},
		{ChangedNetfilter, false, k.applyNetfilter},
	} {
		if part.announced && !everything {
			continue
		}
		changed, err := part.apply(link)
		if changed && !slices.Contains(changes, part.kind) {
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
		{"MAC " + mac.String(), k.L3 || slices.Equal(have.HardwareAddr, mac), func() error { return netlink.LinkSetHardwareAddr(link, mac) }},
		{fmt.Sprintf("MTU %d", k.State.MTU), have.MTU == k.State.MTU, func() error { return netlink.LinkSetMTU(link, k.State.MTU) }},
		{fmt.Sprintf("queue length %d", txQueueLen), have.TxQLen == txQueueLen, func() error { return netlink.LinkSetTxQLen(link, txQueueLen) }},
		{fmt.Sprintf("gso_max_segs %d", k.GSOMaxSegs), k.GSOMaxSegs == 0 || have.GSOMaxSegs == k.GSOMaxSegs, func() error { return netlink.LinkSetGSOMaxSegs(link, int(k.GSOMaxSegs)) }},
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

func (k Kernel) applyNetfilter(netlink.Link) (changed bool, err error) {
	if k.NoNetfilter {
		return false, nil
	}
	c := netfilter.Config{Mode: k.Mode, TAP: k.TAP, Networks: k.State.networks(), Subnets: [2]netip.Prefix{k.State.Self.Subnet, k.State.Self.IPv6Subnet},
		Underlay: k.Underlay, Natives: k.admitted()}
	for _, p := range k.Pods {
		c.Ports = append(c.Ports, p.Ports...)
	}
	return k.rules.unlessSeen("netfilter", c, c.Apply)
}

// Remove takes away what Apply made and what does not go with the TAP. It is no error when it is gone already.
func (k Kernel) Remove() error {
	have, err := ownedRoutes()
	if err != nil {
		return fmt.Errorf("remove routes: %w", err)
	}
	errs := []error{k.removePods()}
	if !k.NoNetfilter {
		errs = append(errs, netfilter.Remove())
	}
	for _, r := range have {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
		}
	}
	return errors.Join(errs...)
}
