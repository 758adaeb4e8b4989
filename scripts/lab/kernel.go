package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	vxlanName = "flannel.1"
	vxlanVNI  = 1
	vxlanPort = 8472
)

// setUpKernelNode makes the VXLAN device as flannel does and gives the MAC that the kernel chose. The outer UDP checksum
// is left at the kernel's default, which is to send it: the attribute goes unset on the wire to the kernel.
func setUpKernelNode(n *node, underlayMTU int) (mac string, err error) {
	err = In(n.namespace(), func() error {
		underlay, err := netlink.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("find link eth0: %w", err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = vxlanName, underlayMTU-vxlanOverhead
		err = netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanVNI, Port: vxlanPort,
			VtepDevIndex: underlay.Attrs().Index, SrcAddr: n.PublicIP.AsSlice()})
		if err != nil {
			return fmt.Errorf("add vxlan %s: %w", vxlanName, err)
		}
		link, err := setUpLink(vxlanName, netip.PrefixFrom(n.vtepIP(), 32))
		if err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr.String()
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("node %s: %w", n.name(), err)
	}
	return mac, nil
}

// programKernelNode tells a kernel node of its peers: flannel's neighbour, FDB entry and route for each. Those of peers that
// are none any more go.
func programKernelNode(n *node, nodes []*node) error {
	var peers []*node
	for _, p := range nodes {
		if p != n && p.known() {
			peers = append(peers, p)
		}
	}
	err := In(n.namespace(), func() error {
		link, err := netlink.LinkByName(vxlanName)
		if err != nil {
			return fmt.Errorf("find link %s: %w", vxlanName, err)
		}
		for _, p := range peers {
			if err := addPeer(link, p); err != nil {
				return err
			}
		}
		return errors.Join(removeOldRoutes(link, peers), removeOldNeighbours(link, peers))
	})
	if err != nil {
		return fmt.Errorf("node %s: %w", n.name(), err)
	}
	return nil
}

func addPeer(link netlink.Link, p *node) error {
	if err := addNeighbour(link, p.vtepIP(), p.VtepMAC, 0); err != nil {
		return err
	}
	if err := addNeighbour(link, p.PublicIP, p.VtepMAC, netlink.NTF_SELF); err != nil {
		return err
	}
	return addRoute(link, p.Subnet, p.vtepIP())
}

func removeOldRoutes(link netlink.Link, peers []*node) error {
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", vxlanName, err)
	}
	for _, r := range routes {
		if r.Gw == nil || slices.ContainsFunc(peers, func(p *node) bool { return p.vtepIP().String() == r.Gw.String() }) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("delete route %s: %w", r.Dst, err)
		}
	}
	return nil
}

// removeOldNeighbours looks at neighbours proper and at FDB entries.
func removeOldNeighbours(link netlink.Link, peers []*node) error {
	for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
		entries, err := netlink.NeighList(link.Attrs().Index, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", vxlanName, err)
		}
		for _, e := range entries {
			wanted := slices.ContainsFunc(peers, func(p *node) bool { return p.VtepMAC == e.HardwareAddr.String() })
			if wanted || e.State&netlink.NUD_PERMANENT == 0 {
				continue
			}
			if err := netlink.NeighDel(&e); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete neighbour %s %s: %w", e.IP, e.HardwareAddr, err)
			}
		}
	}
	return nil
}
