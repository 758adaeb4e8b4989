package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/control/ipam"
	"github.com/tulle-net/tulle/control/netfilter"
)

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

// portsOf checks the ports of the node that a container asks for, which gets an address of each pool.
func (p *pods) portsOf(asked []cniapi.Port, pools []ipam.Pool) (ports []ipam.Port, err error) {
	for _, a := range asked {
		port, err := parsePort(a)
		if err == nil {
			err = p.daemon.config.checkPort(port, pools)
		}
		if err != nil {
			return nil, &cniapi.Error{Code: cniapi.CodeConfig, Msg: fmt.Sprintf("port mapping %+v: %s", a, err)}
		}
		ports = append(ports, port)
	}
	return ports, nil
}

func parsePort(a cniapi.Port) (port ipam.Port, err error) {
	port = ipam.Port{Protocol: cmp.Or(strings.ToLower(a.Protocol), "tcp"), Number: uint16(a.HostPort), Pod: uint16(a.ContainerPort)}
	if a.HostIP != "" {
		if port.Host, err = netip.ParseAddr(a.HostIP); err != nil || port.Host.Zone() != "" {
			return port, fmt.Errorf("hostIP %q is no IP address", a.HostIP)
		}
		port.Host = port.Host.Unmap()
	}
	switch {
	case protocols[port.Protocol] == 0:
		return port, fmt.Errorf("protocol %q: only tcp and udp are mapped", a.Protocol)
	case a.HostPort < 1 || a.HostPort > math.MaxUint16 || a.ContainerPort < 1 || a.ContainerPort > math.MaxUint16:
		return port, errors.New("ports are 1 to 65535")
	case port.Host.IsLoopback() || port.Host.IsLinkLocalUnicast():
		return port, errors.New("loopback and link-local addresses are not mapped: give another hostIP, or none")
	}
	return port, nil
}

// checkPort says why this node cannot map a port.
func (c *daemonConfig) checkPort(port ipam.Port, pools []ipam.Pool) error {
	switch {
	case c.noNetfilter:
		return errors.New("this kernel has no nftables (CONFIG_NF_TABLES)")
	case c.mode == netfilter.Isolated:
		return fmt.Errorf("mode %s lets nothing in from outside: leave the mapping out, or choose another Mode in net-conf.json", c.mode)
	case c.ownPort(port):
		return errors.New("the port is tulle's own on this node")
	case port.Host.IsValid() && !slices.ContainsFunc(pools, func(p ipam.Pool) bool { return p.Subnet.Addr().Is4() == port.Host.Is4() }):
		return fmt.Errorf("pods have no addresses of the family of hostIP %s", port.Host)
	}
	return nil
}

// ownPort says whether the port is one that the node itself cannot do without.
func (c *daemonConfig) ownPort(p ipam.Port) bool {
	return p.Protocol == "udp" && p.Number == c.port || c.gossip != nil && int(p.Number) == c.gossip.port
}

// mapped are the ports of a lease as the kernel's netfilter knows them: one for each of the pod's addresses that it is for.
func mapped(l ipam.Lease) (ports []netfilter.Port) {
	for _, p := range l.Ports {
		for _, a := range l.Addrs {
			if p.Host.IsValid() && p.Host.Is4() != a.Is4() {
				continue
			}
			port := netfilter.Port{Protocol: protocols[p.Protocol], Number: p.Number, Pod: netip.AddrPortFrom(a, p.Pod)}
			if !p.Host.IsUnspecified() {
				port.Host = p.Host
			}
			ports = append(ports, port)
		}
	}
	return ports
}
