package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	underlayNamespace = "tulle-underlay"
	vxlanOverhead     = 50
)

// gateway is the next hop of every pod. No interface holds it: the pod has a permanent neighbour entry for it.
var gateway = netip.MustParseAddr("169.254.1.1")

// podPort is the node's side of a pod's eth0.
func podPort(pod int) string { return fmt.Sprintf("tulle-p%d", pod) }

// prepare sets what every namespace of the lab has: lo up, no IPv6 (so no ND noise), no rp_filter inherited from the host.
func prepare() error {
	for _, s := range []struct{ key, value string }{
		{"ipv6/conf/all/disable_ipv6", "1"},
		{"ipv6/conf/default/disable_ipv6", "1"},
		{"ipv6/conf/all/accept_ra", "0"},
		{"ipv6/conf/default/accept_ra", "0"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
	} {
		// A kernel built without IPv6 has no such file, and nothing to switch off.
		if err := sysctl(s.key, s.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return linkUp("lo")
}

// sysctl writes a key of /proc/sys/net, which shows the namespace of the calling thread.
func sysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0o644)
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// setUpPod joins pod j to its node, anew if that was begun before. Both sides know each other's MAC for good, so no ARP runs
// between them.
func setUpPod(n *node, j, underlayMTU int) error {
	address := netip.PrefixFrom(n.podIP(j), 32)
	var inside, outside netlink.Link
	add := func() error {
		if err := removeLink(podPort(j)); err != nil {
			return err
		}
		return addVeth(podPort(j), n.pod(j), "eth0", underlayMTU-vxlanOverhead)
	}
	pod := func() (err error) {
		if err = prepare(); err == nil {
			inside, err = setUpLink("eth0", address)
		}
		return err
	}
	host := func() (err error) {
		if outside, err = setUpLink(podPort(j), netip.Prefix{}); err != nil {
			return err
		}
		if err = addNeighbour(outside, address.Addr(), inside.Attrs().HardwareAddr.String(), 0); err != nil {
			return err
		}
		return addRoute(outside, address, netip.Addr{})
	}
	uplink := func() error {
		if err := addNeighbour(inside, gateway, outside.Attrs().HardwareAddr.String(), 0); err != nil {
			return err
		}
		return addRoute(inside, netip.PrefixFrom(netip.IPv4Unspecified(), 0), gateway)
	}
	for _, step := range []struct {
		namespace string
		run       func() error
	}{{n.namespace(), add}, {n.pod(j), pod}, {n.namespace(), host}, {n.pod(j), uplink}} {
		if err := In(step.namespace, step.run); err != nil {
			return fmt.Errorf("pod %s: %w", n.pod(j), err)
		}
	}
	return nil
}

// removeLink is no error if there is none.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// addVeth makes a pair: name here, peer in another namespace.
func addVeth(name, namespace, peer string, mtu int) error {
	fd, err := unix.Open(filepath.Join(netnsDir, namespace), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", namespace, err)
	}
	defer unix.Close(fd)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerNamespace = peer, uint32(mtu), netlink.NsFd(fd)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", name, err)
	}
	return nil
}

// setUpLink gives a link its address, if there is one, and sets it up.
func setUpLink(name string, address netip.Prefix) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	if address.IsValid() {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
			return nil, fmt.Errorf("add address %s to %s: %w", address, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set link %s up: %w", name, err)
	}
	return link, nil
}

// addRoute sends dst out of link, by way of via if that is valid.
func addRoute(link netlink.Link, dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		r.Gw, r.Scope = via.AsSlice(), netlink.SCOPE_UNIVERSE
		r.SetFlag(netlink.FLAG_ONLINK)
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("add route %s dev %s: %w", dst, link.Attrs().Name, err)
	}
	return nil
}

// addNeighbour makes a permanent entry; flags are NTF_*.
func addNeighbour(link netlink.Link, ip netip.Addr, mac string, flags int) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return fmt.Errorf("neighbour %s: %w", ip, err)
	}
	n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip.AsSlice(), HardwareAddr: hw,
		State: netlink.NUD_PERMANENT, Flags: flags}
	if flags&netlink.NTF_SELF != 0 {
		n.Family = unix.AF_BRIDGE
	}
	if err := netlink.NeighSet(n); err != nil {
		return fmt.Errorf("set neighbour %s %s dev %s: %w", ip, mac, link.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
