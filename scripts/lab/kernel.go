package lab

import (
	"fmt"
	"net/netip"

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
func setUpKernelNode(n node, underlayMTU int) (mac string, err error) {
	err = In(n.namespace(), func() error {
		underlay, err := netlink.LinkByName("eth0")
		if err != nil {
			return fmt.Errorf("find link eth0: %w", err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = vxlanName, underlayMTU-vxlanOverhead
		err = netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanVNI, Port: vxlanPort,
			VtepDevIndex: underlay.Attrs().Index, SrcAddr: n.publicIP().AsSlice()})
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

// programKernelNode tells a kernel node of its peers: flannel's neighbour, FDB entry and route for each. FDB entries of
// MACs that no peer has any more go.
func programKernelNode(n node, peers []node) error {
	err := In(n.namespace(), func() error {
		link, err := netlink.LinkByName(vxlanName)
		if err != nil {
			return fmt.Errorf("find link %s: %w", vxlanName, err)
		}
		if err := flushFDB(link); err != nil {
			return err
		}
		for _, p := range peers {
			if p.Number == n.Number || p.VtepMAC == "" {
				continue
			}
			if err := addNeighbour(link, p.vtepIP(), p.VtepMAC, 0); err != nil {
				return err
			}
			if err := addNeighbour(link, p.publicIP(), p.VtepMAC, netlink.NTF_SELF); err != nil {
				return err
			}
			if err := addRoute(link, p.subnet(), p.vtepIP()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("node %s: %w", n.name(), err)
	}
	return nil
}

func flushFDB(link netlink.Link) error {
	entries, err := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("list FDB of %s: %w", link.Attrs().Name, err)
	}
	for _, e := range entries {
		if err := netlink.NeighDel(&e); err != nil {
			return fmt.Errorf("delete FDB entry %s: %w", e.HardwareAddr, err)
		}
	}
	return nil
}
