// Package router is two plain userspace routers to measure tulle against: what one gets by reading a packet, sending a packet
// (package water, as flannel's udp backend does it), and by the batches of wireguard-go without its cryptography (packages tun and
// conn of golang.zx2c4.com/wireguard, which cut super-packets into segments).
//
// Both speak flannel's udp backend and take flannelpeer's command line, so that the lab can run them in its place. They forward
// IPv4, lower the TTL on both sides, and do nothing else. It is no part of tulle: nothing here is used by the daemon.
package router

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/vishvananda/netlink"
)

const (
	deviceName = "flannel0"
	port       = 8285
	ipv4Header = 20
)

// Kinds are the routers that there are.
func Kinds() []string { return []string{"water", "wireguard"} }

// router is one node. Its loops share it.
type router struct {
	network, subnet netip.Prefix
	publicIP        netip.Addr
	mtu             int // of the device, bytes
	peers, socket   string

	routes         atomic.Pointer[[]route]
	sent, received atomic.Uint64
}

type route struct {
	PublicIP netip.Addr   `json:"publicIP"`
	Subnet   netip.Prefix `json:"subnet"`
}

// device carries packets between the kernel and the peers until it fails.
type device interface{ forward(*router) error }

// Main runs a router of a kind, with flannelpeer's flags, until it fails.
func Main(kind string, args []string) error {
	r := new(router)
	f := flag.NewFlagSet("router", flag.ContinueOnError)
	f.TextVar(&r.network, "network", netip.Prefix{}, "the cluster's network")
	f.TextVar(&r.subnet, "subnet", netip.Prefix{}, "this node's part of it")
	f.TextVar(&r.publicIP, "public-ip", netip.Addr{}, "this node's address on the underlay")
	f.IntVar(&r.mtu, "mtu", 1472, "of the device, bytes: the underlay's less 28")
	f.StringVar(&r.peers, "peers", "", `file with the other nodes: [{"publicIP":"192.168.77.2","subnet":"10.244.2.0/24"}]`)
	f.StringVar(&r.socket, "socket", "", "path of a unix socket that gives the counters, as JSON")
	if err := f.Parse(args); err != nil {
		return err
	}
	open := map[string]func(*router) (device, error){"water": openWater, "wireguard": openWireGuard}[kind]
	if open == nil {
		return fmt.Errorf("router %q: no such kind (have: %s)", kind, strings.Join(Kinds(), ", "))
	}
	if err := r.loadRoutes(); err != nil {
		return err
	}
	d, err := open(r)
	if err != nil {
		return err
	}
	if err := r.setUp(); err != nil {
		return err
	}
	os.Remove(r.socket) // a killed one's
	counters, err := net.Listen("unix", r.socket)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- r.serve(counters) }()
	go func() { failed <- d.forward(r) }()
	return <-failed
}

// setUp gives the device the subnet's first address and a route to the whole network.
func (r *router) setUp() error {
	link, err := netlink.LinkByName(deviceName)
	if err != nil {
		return fmt.Errorf("find link %s: %w", deviceName, err)
	}
	self, _ := netlink.ParseAddr(netip.PrefixFrom(r.subnet.Addr(), 32).String())
	network := &net.IPNet{IP: r.network.Addr().AsSlice(), Mask: net.CIDRMask(r.network.Bits(), 32)}
	err = errors.Join(netlink.LinkSetMTU(link, r.mtu), netlink.AddrAdd(link, self), netlink.LinkSetUp(link),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: network, Scope: netlink.SCOPE_LINK}))
	if err != nil {
		return fmt.Errorf("set up %s: %w", deviceName, err)
	}
	return nil
}

func (r *router) loadRoutes() error {
	text, err := os.ReadFile(r.peers)
	if err != nil {
		return err
	}
	var routes []route
	if err := json.Unmarshal(text, &routes); err != nil {
		return fmt.Errorf("%s: %w", r.peers, err)
	}
	r.routes.Store(&routes)
	return nil
}

// serve gives the counters to everyone who connects, after a look at the file of peers.
func (r *router) serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := r.loadRoutes(); err != nil {
			return err
		}
		json.NewEncoder(c).Encode(map[string]any{ // who is gone gets nothing
			"peers": len(*r.routes.Load()), "sent": r.sent.Load(), "received": r.received.Load()})
		c.Close()
	}
}

// route finds the node of a packet's destination.
func (r *router) route(packet []byte) (netip.Addr, bool) {
	routes := *r.routes.Load()
	to := netip.AddrFrom4([4]byte(packet[16:20]))
	i := slices.IndexFunc(routes, func(p route) bool { return p.Subnet.Contains(to) })
	if i < 0 {
		return netip.Addr{}, false
	}
	return routes[i].PublicIP, true
}

// hop lowers the TTL, with the checksum as RFC 1624 has it, and says whether the packet may go on.
func hop(packet []byte) bool {
	if len(packet) < ipv4Header || packet[0]>>4 != 4 || packet[8] <= 1 {
		return false
	}
	packet[8]--
	sum := uint32(packet[10])<<8 + uint32(packet[11]) + 0x100
	sum += sum >> 16
	packet[10], packet[11] = byte(sum>>8), byte(sum)
	return true
}
