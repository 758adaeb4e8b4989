package netfilter

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Forget ends the kernel's UDP flows to the ports that do not go by them any more: to the pods that had them, if they are gone, and to
// the node itself, if they are new. Without it a flow whose packets keep coming stays as it began.
func Forget(ports []Port, gone bool) error {
	var errs []error
	for number, is6 := range map[netlink.InetFamily]bool{netlink.FAMILY_V4: false, netlink.FAMILY_V6: true} {
		var stale staleFlows
		for _, p := range ports {
			if p.Protocol == unix.IPPROTO_UDP && p.Pod.Addr().Is6() == is6 {
				stale.ports = append(stale.ports, p)
			}
		}
		if stale.gone = gone; len(stale.ports) == 0 {
			continue
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, number, stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("forget flows to ports: %w", err))
		}
	}
	return errors.Join(errs...)
}

// staleFlows are those that Forget ends.
type staleFlows struct {
	ports []Port
	gone  bool
}

// MatchConntrackFlow is netlink.CustomConntrackFilter's.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, p := range s.ports {
		if flow.Forward.Protocol != p.Protocol || flow.Forward.DstPort != p.Number || p.Host.IsValid() && !is(flow.Forward.DstIP, p.Host) {
			continue
		}
		if s.gone && is(flow.Reverse.SrcIP, p.Pod.Addr()) || !s.gone && flow.Reverse.SrcIP.Equal(flow.Forward.DstIP) {
			return true
		}
	}
	return false
}

func is(a net.IP, b netip.Addr) bool {
	addr, _ := netip.AddrFromSlice(a)
	return addr.Unmap() == b
}
