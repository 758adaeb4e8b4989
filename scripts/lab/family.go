package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// The families that the underlay and the pods of a lab have addresses of.
const (
	FamilyV4   = "v4"
	FamilyV6   = "v6"
	FamilyDual = "dual"
)

// family is one version of IP: what differs between the two is here, in segment.addr and in overhead.
type family int

const (
	ipv4 family = 4
	ipv6 family = 6
)

// familiesOf is what a Config.Family stands for.
func familiesOf(name string) []family {
	switch name {
	case FamilyV6:
		return []family{ipv6}
	case FamilyDual:
		return []family{ipv4, ipv6}
	}
	return []family{ipv4}
}

func (f family) network() netip.Prefix {
	if f == ipv6 {
		return netip.MustParsePrefix("fd44::/48")
	}
	return netip.MustParsePrefix("10.244.0.0/16")
}

// subnetAt is a node subnet of the network by its place: block i has the same in both families, as with the daemons.
func (f family) subnetAt(i int) netip.Prefix {
	if f == ipv6 {
		a := f.network().Addr().As16()
		a[6], a[7] = byte(i>>8), byte(i)
		return netip.PrefixFrom(netip.AddrFrom16(a), 64)
	}
	a := f.network().Addr().As4()
	a[2] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

// gateway is the next hop of every pod. No interface holds it: the pod has a permanent neighbour entry for it.
func (f family) gateway() netip.Addr {
	if f == ipv6 {
		return netip.MustParseAddr("fe80::1")
	}
	return netip.MustParseAddr("169.254.1.1")
}

func (f family) defaultRoute() netip.Prefix {
	if f == ipv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// vxlanName is flannel's name of the device.
func (f family) vxlanName() string {
	if f == ipv6 {
		return fmt.Sprintf("flannel-v6.%d", vxlanVNI)
	}
	return fmt.Sprintf("flannel.%d", vxlanVNI)
}

// netlink is AF_INET or AF_INET6.
func (f family) netlink() int {
	if f == ipv6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// forwarding is the sysctl that makes a router.
func (f family) forwarding() string {
	if f == ipv6 {
		return "ipv6/conf/all/forwarding"
	}
	return "ipv4/ip_forward"
}

// overhead is what a lab's pods have less than the underlay's MTU, in bytes. Flannel budgets 50 for VXLAN over IPv6 too, and
// is wrong.
func overhead(backend string, families []family) int {
	switch {
	case backend == BackendUDP:
		return udpOverhead
	case backend == BackendHostGW:
		return 0
	case slices.Contains(families, ipv6):
		return vxlanOverheadV6
	}
	return vxlanOverhead
}

// side is a node in one family; the zero side in a family that its lab has not.
type side struct {
	PublicIP netip.Addr   `json:"publicIP"`
	Subnet   netip.Prefix `json:"subnet"`  // zero until the daemon has claimed one
	VtepMAC  string       `json:"vtepMAC"` // empty with a backend that has no MACs
}

func (s *side) vtepIP() netip.Addr { return s.Subnet.Addr() }

// podIP is valid iff Subnet is.
func (s *side) podIP(j int) netip.Addr {
	if !s.Subnet.IsValid() {
		return netip.Addr{}
	}
	a := s.Subnet.Addr()
	for range j + 1 {
		a = a.Next()
	}
	return a
}
