// Package attach owns the links between pods and their node: a veth pair for each, the pod's end with /32 and /128 addresses and a
// link-local gateway, which is the node's end.
//
// It sets both ends up and holds them against what they have to be; it does not route to pods, knows no subnet, and keeps
// nothing. It enters the pods' namespaces, which takes CAP_SYS_ADMIN. Interfaces: rtnetlink(7), veth(4), network_namespaces(7).
package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/listing"
)

// The gateways of every pod. Each node's end has them; they are no address of a network.
var (
	Gateway4 = netip.MustParseAddr("169.254.1.1")
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// LinkMAC is the MAC of every node's end: each is a segment of its own. It is set so that nobody else chooses one (udev's
// MACAddressPolicy), since pods keep it.
var LinkMAC = net.HardwareAddr{0x02, 't', 'u', 'l', 'l', 'e'}

// Errors that callers tell apart.
var (
	ErrExists  = errors.New("interface exists")
	ErrDamaged = errors.New("not as it was made")
)

// A Veth is what a pod's link has to be.
type Veth struct {
	Link      string           // the node's end
	Netns     string           // path of the pod's namespace
	Interface string           // the pod's end
	MAC       net.HardwareAddr // of the pod's end
	MTU       int              // of both, bytes
	Addrs     []netip.Addr     // of the pod
}

// LinkName returns the name of the node's end for whoever has it. Names for different owners differ, but for chances of one in
// 2^40 for each pair.
func LinkName(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return "tulle" + hex.EncodeToString(sum[:5]) // 15 bytes: IFNAMSIZ less the zero
}

// MAC returns the MAC for a pod that does not ask for one. It follows from the pod's first address, as with the bridge plugin, and
// so no two pods of a network with IPv4 have the same.
func MAC(first netip.Addr) net.HardwareAddr {
	b := first.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

// Gateway returns that of the address's family.
func Gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return Gateway4
	}
	return Gateway6
}

func (v Veth) has6() bool { return slices.ContainsFunc(v.Addrs, netip.Addr.Is6) }

// Add makes the pair, in place of a node's end of that name that is left over. On an error nothing is left.
func (v Veth) Add() (err error) {
	ns, err := openNetns(v.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := within(ns, v.checkAbsent); err != nil {
		return err
	}
	if err := Remove(v.Link); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Remove(v.Link))
		}
	}()
	if err := v.create(ns); err != nil {
		return err
	}
	if err := v.setUpNode(); err != nil {
		return fmt.Errorf("link %s: %w", v.Link, err)
	}
	if err := within(ns, v.setUpPod); err != nil {
		return fmt.Errorf("interface %s of %s: %w", v.Interface, v.Netns, err)
	}
	return nil
}

func (v Veth) checkAbsent() error {
	there, err := Exists(v.Interface)
	if there {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", v.Interface, v.Netns, err)
	}
	return nil
}

// Exists reports whether there is a link of that name.
func Exists(name string) (bool, error) {
	_, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	return err == nil, err
}

// create makes the pair, both ends down, each in its namespace from the beginning: the pod's end never has the name of one of
// the node's links in the node's namespace.
func (v Veth) create(ns *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Link, v.MTU, LinkMAC
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerMTU, pair.PeerNamespace = v.Interface, v.MAC, uint32(v.MTU), netlink.NsFd(ns.Fd())
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make link %s: %w", v.Link, err)
	}
	return nil
}

// Remove deletes a node's end, and with it the pod's. It is no error if there is none.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err == nil || errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("remove link %s: %w", name, err)
}

// Links lists the names of all links of the node.
func Links() (map[string]bool, error) {
	links, err := listing.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[string]bool{}
	for _, l := range links {
		names[l.Attrs().Name] = true
	}
	return names, nil
}

// setUpNode sets the node's end up. Router advertisements from a pod are not for the node, whatever its other links do. The reverse
// path of a pod leads to the engine and not to this link, so rp_filter must be off.
func (v Veth) setUpNode() error {
	off := "1"
	if v.has6() {
		off = "0"
	}
	for _, s := range [][2]string{
		{"ipv4/conf/%s/rp_filter", "0"}, {"ipv4/conf/%s/send_redirects", "0"}, {"ipv4/conf/%s/accept_redirects", "0"},
		{"ipv6/conf/%s/accept_ra", "0"}, {"ipv6/conf/%s/accept_redirects", "0"}, {"ipv6/conf/%s/addr_gen_mode", "1"}, {"ipv6/conf/%s/accept_dad", "0"},
		{"ipv6/conf/%s/disable_ipv6", off},
	} {
		if err := sysctl(fmt.Sprintf(s[0], v.Link), s[1]); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName(v.Link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range v.Addrs {
		if err := addAddr(link, Gateway(a)); err != nil {
			return err
		}
		if err := addNeighbour(link, a, v.MAC); err != nil {
			return err
		}
	}
	return nil
}

// setUpPod sets the pod's end up, in the pod's namespace.
func (v Veth) setUpPod() error {
	sysctls := [][2]string{{"ipv6/conf/%s/accept_ra", "0"}}
	if v.has6() {
		sysctls = append(sysctls, [2]string{"ipv6/conf/%s/disable_ipv6", "0"})
	}
	for _, s := range sysctls {
		if err := sysctl(fmt.Sprintf(s[0], v.Interface), s[1]); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName(v.Interface)
	if err != nil {
		return err
	}
	for _, a := range v.Addrs {
		if err := addAddr(link, a); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range v.Addrs {
		if err := addGateway(link, Gateway(a)); err != nil {
			return err
		}
	}
	return nil
}

// addGateway sends everything of a family to the node, which neither ARP nor ND has to find.
func addGateway(link netlink.Link, gw netip.Addr) error {
	if err := addNeighbour(link, gw, LinkMAC); err != nil {
		return err
	}
	index := link.Attrs().Index
	direct := netlink.Route{LinkIndex: index, Dst: ipNet(gw)}
	if gw.Is4() {
		direct.Scope = netlink.SCOPE_LINK
	}
	for _, r := range []netlink.Route{direct, {LinkIndex: index, Dst: everything(gw), Gw: gw.AsSlice()}} {
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("add route %s: %w", r.Dst, err)
		}
	}
	return nil
}

// everything is the destination of the default route of an address's family.
func everything(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func addAddr(link netlink.Link, a netip.Addr) error {
	addr := &netlink.Addr{IPNet: ipNet(a)}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD // nobody else is on the link
	}
	if a.IsLinkLocalUnicast() {
		addr.Scope = unix.RT_SCOPE_LINK
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	return nil
}

func addNeighbour(link netlink.Link, a netip.Addr, mac net.HardwareAddr) error {
	n := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
	if err := netlink.NeighSet(n); err != nil {
		return fmt.Errorf("add neighbour %s: %w", a, err)
	}
	return nil
}

// sysctl writes a key of /proc/sys/net, which shows the namespace of the calling thread. A kernel without IPv6 has no such keys,
// and nothing to set.
func sysctl(key, value string) error {
	path := "/proc/sys/net/" + key
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil && key[:4] == "ipv6" {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}
