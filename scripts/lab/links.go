package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	underlayNamespace = "tulle-underlay"
	vxlanOverhead     = 50 // Ethernet, VXLAN, UDP and IPv4 headers
	vxlanOverheadV6   = 70
	udpOverhead       = 28
)

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenModeNone = "1"

// podPort is the node's side of a pod's eth0.
func podPort(pod int) string { return fmt.Sprintf("tulle-p%d", pod) }

// prepare sets what every namespace of the lab has: lo up, no rp_filter inherited from the host, and IPv6 only if the lab has
// it, without the noise: no router solicitations, no DAD, no link-local addresses. What is left is a report of MLD for each
// address (RFC 3810) when a link comes up.
func prepare(families []family) error {
	off, quiet := "1", [][2]string{{"ipv4/conf/%s/rp_filter", "0"}, {"ipv6/conf/%s/accept_ra", "0"}}
	if slices.Contains(families, ipv6) {
		off = "0"
		quiet = append(quiet, [][2]string{{"ipv6/conf/%s/accept_dad", "0"}, {"ipv6/conf/%s/autoconf", "0"},
			{"ipv6/conf/%s/router_solicitations", "0"}, {"ipv6/conf/%s/addr_gen_mode", addrGenModeNone}}...)
	}
	for _, s := range append(quiet, [2]string{"ipv6/conf/%s/disable_ipv6", off}) {
		for _, scope := range []string{"all", "default"} {
			// A kernel built without IPv6 has no such file, and nothing to switch off.
			err := sysctl(fmt.Sprintf(s[0], scope), s[1])
			if err != nil && !(off == "1" && errors.Is(err, os.ErrNotExist)) {
				return err
			}
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

// setUpPod joins pod j to its node, anew if that was begun before. Both sides know each other's MAC for good, so neither ARP
// nor ND runs between them.
func (r *record) setUpPod(n *node, j int) error {
	var addresses []netip.Prefix
	for _, f := range r.families() {
		ip := n.side(f).podIP(j)
		addresses = append(addresses, netip.PrefixFrom(ip, ip.BitLen()))
	}
	var inside, outside netlink.Link
	add := func() error {
		if err := removeLink(podPort(j)); err != nil {
			return err
		}
		return addVeth(podPort(j), n.pod(j), "eth0", r.podMTU())
	}
	pod := func() (err error) {
		if err = prepare(r.families()); err == nil {
			inside, err = setUpLink("eth0", addresses...)
		}
		return err
	}
	host := func() (err error) {
		if outside, err = setUpLink(podPort(j)); err == nil {
			err = addPod(outside, addresses, inside.Attrs().HardwareAddr.String())
		}
		return err
	}
	uplink := func() error { return addGateways(inside, r.families(), outside.Attrs().HardwareAddr.String()) }
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

// addPod tells a node of the pod behind a link.
func addPod(link netlink.Link, addresses []netip.Prefix, mac string) error {
	for _, a := range addresses {
		if err := addNeighbour(link, a.Addr(), mac, 0); err != nil {
			return err
		}
		if err := addRoute(link, a, netip.Addr{}); err != nil {
			return err
		}
	}
	return nil
}

// addGateways tells a pod of the node behind a link.
func addGateways(link netlink.Link, families []family, mac string) error {
	for _, f := range families {
		if err := addNeighbour(link, f.gateway(), mac, 0); err != nil {
			return err
		}
		if err := addRoute(link, f.defaultRoute(), f.gateway()); err != nil {
			return err
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

// setUpLink gives a link its addresses and sets it up.
func setUpLink(name string, addresses ...netip.Prefix) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	for _, address := range addresses {
		a := &netlink.Addr{IPNet: ipNet(address)}
		if address.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, a); err != nil {
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
