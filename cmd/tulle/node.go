package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/encap"
)

const (
	defaultConfig   = "/etc/tulle/net-conf.json"
	defaultRunDir   = "/run/tulle"
	defaultStateDir = "/var/lib/tulle"
	maxWorkers      = 64
)

// nodeOptions are the flags of tulle node.
type nodeOptions struct {
	config, iface, publicIP string
	name, subnet, peers     string
	runDir, stateDir        string
	underlay, device        string
	workers                 int
	keep                    bool
}

func newNodeCommand() *cobra.Command {
	var o nodeOptions
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the router of this node, in this network namespace",
		Long: `Run the router of this node, in this network namespace, until SIGINT or SIGTERM.

It creates the TAP ` + tapName + `, gives it the first address of the node's subnet, routes the cluster
network to it, and carries what comes there to the nodes in the peers file. All of it is
removed at the end, unless --keep says otherwise.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot("tulle node", "it creates a TAP and routes"); err != nil {
				return err
			}
			c, err := o.resolve(cmd.Flags().Changed("config"))
			if err != nil {
				return fmt.Errorf("tulle node: %w", err)
			}
			if err := runDaemon(cmd.Context(), c); err != nil {
				return fmt.Errorf("tulle node: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", defaultConfig, "flannel's net-conf.json; without the default file: Network 10.244.0.0/16 over vxlan")
	f.StringVar(&o.iface, "iface", "", "link of the underlay (default: that of the default route)")
	f.StringVar(&o.publicIP, "public-ip", "", "this node's address on the underlay (default: the link's first)")
	f.StringVar(&o.name, "name", "", "this node's name (default: the host name)")
	f.StringVar(&o.subnet, "subnet", "", "this node's subnet of the cluster network, such as 10.244.1.0/24")
	f.StringVar(&o.peers, "peers", "", "JSON file with the other nodes, read again when it changes")
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "directory of the socket that the other commands talk to")
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, "directory for state that outlives the daemon (this version writes none)")
	f.StringVar(&o.underlay, "underlay", "udp", "sockets that carry the tunnel: udp")
	f.StringVar(&o.device, "device", "tap", "device towards the kernel: tap")
	f.IntVar(&o.workers, "workers", 1, "threads that forward packets, with a TAP queue each")
	f.BoolVar(&o.keep, "keep", false, "leave the TAP and the routes in place at the end")
	return cmd
}

// resolve checks the flags against each other and the machine and returns the daemon's configuration.
func (o *nodeOptions) resolve(configGiven bool) (*daemonConfig, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	conf, err := o.loadConfig(configGiven)
	if err != nil {
		return nil, err
	}
	subnet, err := parseSubnet(o.subnet, conf)
	if err != nil {
		return nil, err
	}
	var publicIP netip.Addr
	if o.publicIP != "" {
		if publicIP, err = netip.ParseAddr(o.publicIP); err != nil || !publicIP.Is4() {
			return nil, usageError("--public-ip %s: an IPv4 address is needed", o.publicIP)
		}
	}
	link, err := control.FindUnderlay(o.iface, publicIP)
	if err != nil {
		return nil, err
	}
	if conf.Network.Contains(link.Addr) {
		return nil, fmt.Errorf("underlay address %s of %s lies inside the cluster network %s: choose another Network or --public-ip", link.Addr, link.Name, conf.Network)
	}
	name := o.name
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("host name: %w (give --name)", err)
		}
	}
	c := &daemonConfig{
		network: conf.Network, vxlan: conf.Backend.VXLAN, link: link,
		peersFile: o.peers, runDir: o.runDir, workers: o.workers, keep: o.keep,
		self: control.Node{
			Name: name, PublicIP: link.Addr, Subnet: subnet, BackendType: netconf.TypeVXLAN,
			VNI: conf.Backend.VXLAN.VNI, VTEP: control.VTEPMAC(link.Addr, conf.Backend.VXLAN.VNI),
		},
	}
	return c, c.checkMTU()
}

// check refuses what this version cannot do.
func (o *nodeOptions) check() error {
	switch {
	case o.underlay != "udp":
		return usageError("--underlay %s: unknown (allowed: udp)", o.underlay)
	case o.device != "tap":
		return usageError("--device %s: unknown (allowed: tap)", o.device)
	case o.workers < 1 || o.workers > maxWorkers:
		return usageError("--workers %d: out of range (allowed: 1 to %d)", o.workers, maxWorkers)
	case o.subnet == "":
		return usageError("--subnet is missing: give this node's subnet, such as --subnet 10.244.1.0/24")
	}
	return nil
}

// loadConfig reads net-conf.json. Only the default file may be absent.
func (o *nodeOptions) loadConfig(given bool) (*netconf.Config, error) {
	conf, warnings, err := netconf.Load(o.config)
	for _, w := range warnings {
		slog.Warn(w.String())
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && !given:
		conf = netconf.Default()
	case err != nil:
		return nil, err
	}
	if conf.Backend.Type != netconf.TypeVXLAN {
		return nil, fmt.Errorf("%s: Backend.Type %s: this version runs vxlan only (flannel means udp when Type is absent)", o.config, conf.Backend.Type)
	}
	if !conf.EnableIPv4 {
		return nil, fmt.Errorf("%s: EnableIPv4 is false: this version runs IPv4 only", o.config)
	}
	if conf.EnableIPv6 {
		return nil, fmt.Errorf("%s: EnableIPv6 is true: this version runs IPv4 only", o.config)
	}
	return conf, nil
}

func parseSubnet(s string, conf *netconf.Config) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() {
		return p, usageError("--subnet %s: a prefix such as 10.244.1.0/24 is needed", s)
	}
	if p != p.Masked() {
		return p, usageError("--subnet %s has host bits: write %s", s, p.Masked())
	}
	if p.Bits() > 30 || p.Bits() < conf.Network.Bits() || !conf.Network.Contains(p.Addr()) {
		return p, usageError("--subnet %s: it must lie inside the cluster network %s and be /30 or shorter", s, conf.Network)
	}
	return p, nil
}

// checkMTU works out the largest inner packet and refuses an underlay that is too small for it.
func (c *daemonConfig) checkMTU() error {
	codec, err := encap.NewVXLAN(c.vxlan.VNI)
	if err != nil {
		return err
	}
	c.codec = codec
	underlay := c.link.MTU
	if c.vxlan.MTU != 0 {
		underlay = c.vxlan.MTU
	}
	const minMTU = 576 // every IPv4 host takes this (RFC 791)
	if c.mtu = underlay - codec.Overhead(); c.mtu < minMTU {
		return fmt.Errorf("underlay MTU %d of %s leaves %d bytes for pods after %d of VXLAN (needed: %d)", underlay, c.link.Name, c.mtu, codec.Overhead(), minMTU)
	}
	return nil
}
