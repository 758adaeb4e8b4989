package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// segment is a part of the underlay in which everyone reaches everyone without a router.
type segment struct {
	bridge string
	third  byte // of its addresses 192.168.third.x
}

// segments are those of a routed lab; any other has the first.
var segments = [2]segment{{"tulle-br", 77}, {"tulle-br2", 78}}

func segmentOf(number int, routed bool) segment {
	if routed && number%2 == 0 {
		return segments[1]
	}
	return segments[0]
}

func (s segment) addr(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, s.third, byte(host)})
}
func (s segment) router() netip.Addr { return s.addr(254) }

// routerLink is the router's side of a segment, routerPort the bridge's.
func (s segment) routerLink() string { return fmt.Sprintf("eth%d", s.third) }
func (s segment) routerPort() string { return fmt.Sprintf("tulle-r%d", s.third) }

// underlayPort is the bridge's side of a node's eth0.
func underlayPort(number int) string { return fmt.Sprintf("tulle-u%d", number) }

func setUpUnderlay(routed bool, mtu int) error {
	err := In(underlayNamespace, func() error {
		if err := prepare(); err != nil {
			return err
		}
		// With br_netfilter loaded, bridged packets would pass IP hooks that reassemble fragments.
		if err := sysctl("bridge/bridge-nf-call-iptables", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return addBridge(segments[0].bridge)
	})
	if err != nil || !routed {
		return err
	}
	if err := In(underlayNamespace, func() error { return addBridge(segments[1].bridge) }); err != nil {
		return err
	}
	return setUpRouter(mtu)
}

func addBridge(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return linkUp(name)
}

// setUpRouter joins the segments.
func setUpRouter(mtu int) error {
	err := In(RouterNamespace, func() error {
		if err := prepare(); err != nil {
			return err
		}
		return sysctl("ipv4/ip_forward", "1")
	})
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	for _, s := range segments {
		if err := plug(RouterNamespace, s.routerLink(), s.router(), s, s.routerPort(), mtu); err != nil {
			return fmt.Errorf("router: %w", err)
		}
	}
	return nil
}

// setUpNode gives a node its place on the underlay, in a routed lab with the router as its default route.
func setUpNode(n *node, routed bool, mtu int) error {
	err := In(n.namespace(), func() error {
		if err := prepare(); err != nil {
			return err
		}
		return sysctl("ipv4/ip_forward", "1")
	})
	s := segmentOf(n.Number, routed)
	if err == nil {
		err = plug(n.namespace(), "eth0", n.PublicIP, s, underlayPort(n.Number), mtu)
	}
	if err == nil && routed {
		err = In(n.namespace(), func() error { return addDefaultRoute("eth0", s.router()) })
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", n.name(), err)
	}
	return nil
}

// plug makes a link with an address in a namespace and puts its other end, port, into a segment's bridge.
func plug(namespace, name string, address netip.Addr, s segment, port string, mtu int) error {
	err := In(namespace, func() error {
		if err := addVeth(name, underlayNamespace, port, mtu); err != nil {
			return err
		}
		_, err := setUpLink(name, netip.PrefixFrom(address, 24))
		return err
	})
	if err != nil {
		return err
	}
	return In(underlayNamespace, func() error { return joinBridge(port, s.bridge) })
}

func joinBridge(name, bridgeName string) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridgeName, err)
	}
	port, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("add %s to bridge %s: %w", name, bridgeName, err)
	}
	return linkUp(name)
}

func addDefaultRoute(name string, via netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	return addRoute(link, netip.PrefixFrom(netip.IPv4Unspecified(), 0), via)
}
