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
	vxlanVNI  = 1
	vxlanPort = 8472
	udpPort   = 8285
)

// setUpVXLAN makes a node's VXLAN device of one family as flannel does and gives the MAC that the kernel chose. The outer UDP
// checksum is left at the kernel's default, which is to send it and, over IPv6, to demand it: the attributes go unset on
// the wire to the kernel.
func (r *record) setUpVXLAN(n *node, f family) (mac string, err error) {
	own := n.side(f)
	err = In(n.namespace(), func() error {
		underlay, err := netlink.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("find link eth0: %w", err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = f.vxlanName(), r.podMTU()
		err = netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanVNI, Port: vxlanPort,
			VtepDevIndex: underlay.Attrs().Index, SrcAddr: own.PublicIP.AsSlice()})
		if err != nil {
			return fmt.Errorf("add vxlan %s: %w", attrs.Name, err)
		}
		link, err := setUpLink(attrs.Name, netip.PrefixFrom(own.vtepIP(), own.vtepIP().BitLen()))
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

// programVXLAN tells a kernel node of its peers in one family: flannel's neighbour, FDB entry and route for each. Those of peers
// that are none any more go.
func (r *record) programVXLAN(n *node, f family) error {
	var peers []*side
	for _, p := range r.Nodes {
		if p != n && p.known() {
			peers = append(peers, p.side(f))
		}
	}
	err := In(n.namespace(), func() error {
		link, err := netlink.LinkByName(f.vxlanName())
		if err != nil {
			return fmt.Errorf("find link %s: %w", f.vxlanName(), err)
		}
		for _, p := range peers {
			if err := addPeer(link, p); err != nil {
				return err
			}
		}
		return errors.Join(removeOldRoutes(link, f, peers), removeOldNeighbours(link, f, peers))
	})
	if err != nil {
		return fmt.Errorf("node %s: %w", n.name(), err)
	}
	return nil
}

func addPeer(link netlink.Link, p *side) error {
	if err := addNeighbour(link, p.vtepIP(), p.VtepMAC, 0); err != nil {
		return err
	}
	if err := addNeighbour(link, p.PublicIP, p.VtepMAC, netlink.NTF_SELF); err != nil {
		return err
	}
	return addRoute(link, p.Subnet, p.vtepIP())
}

func removeOldRoutes(link netlink.Link, f family, peers []*side) error {
	routes, err := netlink.RouteList(link, f.netlink())
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", link.Attrs().Name, err)
	}
	for _, r := range routes {
		if r.Gw == nil || slices.ContainsFunc(peers, func(p *side) bool { return p.vtepIP().String() == r.Gw.String() }) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("delete route %s: %w", r.Dst, err)
		}
	}
	return nil
}

// removeOldNeighbours looks at neighbours proper and at FDB entries.
func removeOldNeighbours(link netlink.Link, f family, peers []*side) error {
	for _, family := range []int{f.netlink(), unix.AF_BRIDGE} {
		entries, err := netlink.NeighList(link.Attrs().Index, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", link.Attrs().Name, err)
		}
		for _, e := range entries {
			wanted := slices.ContainsFunc(peers, func(p *side) bool { return p.VtepMAC == e.HardwareAddr.String() })
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
