package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
)

// segment is a part of the underlay in which everyone reaches everyone without a router.
type segment struct {
	bridge string
	third  byte // of its addresses 192.168.third.x
	group  byte // of its addresses fd77:group::x
}

// segments are those of a routed lab; any other has the first.
var segments = [2]segment{{"tulle-br", 77, 0x77}, {"tulle-br2", 78, 0x78}}

func segmentOf(number int, routed bool) segment {
	if routed && number%2 == 0 {
		return segments[1]
	}
	return segments[0]
}

func (s segment) addr(f family, host int) netip.Addr {
	if f == ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 3: s.group, 15: byte(host)})
	}
	return netip.AddrFrom4([4]byte{192, 168, s.third, byte(host)})
}
func (s segment) router(f family) netip.Addr { return s.addr(f, 254) }

// prefix is a host's address with the length of the segment.
func (s segment) prefix(f family, host int) netip.Prefix {
	return netip.PrefixFrom(s.addr(f, host), map[family]int{ipv4: 24, ipv6: 64}[f])
}

// routerLink is the router's side of a segment, routerPort the bridge's.
func (s segment) routerLink() string { return fmt.Sprintf("eth%d", s.third) }
func (s segment) routerPort() string { return fmt.Sprintf("tulle-r%d", s.third) }

// underlayPort is the bridge's side of a node's eth0.
func underlayPort(number int) string { return fmt.Sprintf("tulle-u%d", number) }

func (r *record) setUpUnderlay() error {
	err := In(underlayNamespace, func() error {
		if err := prepare(nil); err != nil {
			return err
		}
		// With br_netfilter loaded, bridged packets would pass IP hooks that reassemble fragments.
		if err := sysctl("bridge/bridge-nf-call-iptables", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return addBridge(segments[0].bridge)
	})
	if err != nil || !r.Routed {
		return err
	}
	if err := In(underlayNamespace, func() error { return addBridge(segments[1].bridge) }); err != nil {
		return err
	}
	return r.setUpRouter()
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
func (r *record) setUpRouter() error {
	err := In(RouterNamespace, r.prepareRouter)
	if err == nil && slices.Contains(r.families(), ipv6) {
		// A router asks for a neighbour on behalf of a packet that is not its own, and needs an address of its own for that.
		err = In(RouterNamespace, func() error { return sysctl("ipv6/conf/default/addr_gen_mode", "0") })
	}
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	for _, s := range segments {
		if err := r.plug(RouterNamespace, s.routerLink(), 254, s, s.routerPort()); err != nil {
			return fmt.Errorf("router: %w", err)
		}
	}
	return nil
}

// prepareRouter is prepare for a namespace that forwards.
func (r *record) prepareRouter() error {
	if err := prepare(r.families()); err != nil {
		return err
	}
	for _, f := range r.families() {
		if err := sysctl(f.forwarding(), "1"); err != nil {
			return err
		}
	}
	return nil
}

// setUpNode gives a node its place on the underlay, in a routed lab with the router as its default route.
func (r *record) setUpNode(n *node) error {
	s := segmentOf(n.Number, r.Routed)
	err := In(n.namespace(), r.prepareRouter)
	if err == nil {
		err = r.plug(n.namespace(), "eth0", n.Number, s, underlayPort(n.Number))
	}
	for _, f := range r.families() {
		if err == nil && r.Routed {
			err = In(n.namespace(), func() error { return addDefaultRoute(f, "eth0", s.router(f)) })
		}
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", n.name(), err)
	}
	return nil
}

// plug makes a link with a host's addresses in a namespace and puts its other end, port, into a segment's bridge.
func (r *record) plug(namespace, name string, host int, s segment, port string) error {
	var addresses []netip.Prefix
	for _, f := range r.families() {
		addresses = append(addresses, s.prefix(f, host))
	}
	err := In(namespace, func() error {
		if err := addVeth(name, underlayNamespace, port, r.MTU); err != nil {
			return err
		}
		_, err := setUpLink(name, addresses...)
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

func leaveBridge(name string) error {
	port, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetNoMaster(port); err != nil {
		return fmt.Errorf("take %s out of its bridge: %w", name, err)
	}
	return nil
}

func addDefaultRoute(f family, name string, via netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	return addRoute(link, f.defaultRoute(), via)
}
