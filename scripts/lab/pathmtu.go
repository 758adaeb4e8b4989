package lab

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// muteRule is the priority of the rule that keeps the router silent: before all that a namespace has by itself.
const muteRule = 1

// SetPathMTU makes the way between the two segments of a routed lab narrower than their links, in both directions and
// families, or with 0 as wide as they are. With tell the router answers what is too long (RFC 1191, RFC 8201);
// without, it drops it in silence: a black hole. It then sends no ICMP message at all of its own, echo replies included.
func (l *Lab) SetPathMTU(mtu int, tell bool) error {
	r := l.record()
	if !r.Routed {
		return errors.New("path MTU: the lab has no router")
	}
	err := In(RouterNamespace, func() error {
		for _, f := range r.families() {
			if err := setMute(f, !tell); err != nil {
				return err
			}
			for _, s := range segments {
				if err := setSegmentMTU(f, s, mtu); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("path MTU %d: %w", mtu, err)
	}
	return nil
}

// setSegmentMTU works on the route and leaves the link alone: a veth drops what arrives longer than its own MTU, and the
// router could not answer it.
func setSegmentMTU(f family, s segment, mtu int) error {
	link, err := netlink.LinkByName(s.routerLink())
	if err != nil {
		return err
	}
	dst := ipNet(s.prefix(f, 254).Masked())
	routes, err := netlink.RouteListFiltered(f.netlink(), &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
	if err != nil {
		return fmt.Errorf("routes to %s: %w", dst, err)
	}
	if len(routes) != 1 {
		return fmt.Errorf("%d routes to %s, not 1", len(routes), dst)
	}
	route := routes[0]
	route.MTU = mtu
	if err := netlink.RouteReplace(&route); err != nil {
		return fmt.Errorf("route to %s: %w", dst, err)
	}
	return nil
}

// setMute adds or removes a rule by which no ICMP message of the router's own finds a way. Neighbour discovery asks no rule.
func setMute(f family, mute bool) error {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.IifName, rule.Type = f.netlink(), muteRule, "lo", unix.FR_ACT_BLACKHOLE
	rule.IPProto = map[family]int{ipv4: unix.IPPROTO_ICMP, ipv6: unix.IPPROTO_ICMPV6}[f]
	err := netlink.RuleDel(rule)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete rule: %w", err)
	}
	if !mute {
		return nil
	}
	if err := netlink.RuleAdd(rule); err != nil {
		return fmt.Errorf("add rule: %w", err)
	}
	return nil
}

// SetNodeMTU changes the MTU of a node's eth0, or with 0 gives it back the underlay's. What arrives longer than that is
// dropped in silence, as a veth does.
func (l *Lab) SetNodeMTU(number, mtu int) error {
	n, err := l.Node(number)
	if err != nil {
		return err
	}
	if mtu == 0 {
		mtu = l.MTU()
	}
	return In(n.Namespace, func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetMTU(link, mtu)
		}
		if err != nil {
			return fmt.Errorf("node %s: MTU %d of eth0: %w", n.Name, mtu, err)
		}
		return nil
	})
}
