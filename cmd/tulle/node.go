package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/tap"
	"github.com/tulle-net/tulle/encap"
)

const (
	defaultConfig   = "/etc/tulle/net-conf.json"
	defaultRunDir   = "/run/tulle"
	defaultStateDir = "/var/lib/tulle"
	maxWorkers      = 64
	leastFlows      = 1024
	mostFlows       = 1 << 24

	maxBusyPoll = 10 * time.Millisecond

	storeGossip = "gossip"
	storeEtcd   = "etcd"
	storeFile   = "file"
)

// nodeOptions are the flags of tulle node.
type nodeOptions struct {
	config, iface           string
	publicIP, publicIPv6    string
	name, subnet, peers     string
	store, join, keyFile    string
	runDir, stateDir        string
	subnetFile, metricsAddr string
	logFormat, logLevel     string
	underlay, device        string
	tunnelGSO               string
	holder                  string
	cni                     cniInstall
	gossipPort, workers     int
	majority                int
	etcd                    etcdOptions
	maxFlows, perSource     int
	insecure, keep, ipMasq  bool
	takeover                bool
	copyDSCP                bool
	busyPoll, reclaim       time.Duration
}

func newNodeCommand() *cobra.Command {
	var o nodeOptions
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the router of this node, in this network namespace",
		Long: `Run the router of this node, in this network namespace, until SIGINT or SIGTERM.

It claims a subnet of the cluster network by gossip with the nodes named by --join, creates the TAP
` + tapName + `, gives it the subnet's first address, routes the cluster network to it, and carries what comes there to
the other nodes. TAP and routes are removed at the end, unless --keep says otherwise; the subnet stays
this node's.

With --subnet and --peers, and nothing that names a gossip cluster, the nodes are those of the peers file alone
(--store file).`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot("tulle node", "it creates a TAP and routes"); err != nil {
				return err
			}
			if err := setLogging(o.logFormat, o.logLevel); err != nil {
				return fmt.Errorf("tulle node: %w", err)
			}
			c, err := o.resolve(cmd.Flags().Changed)
			if err != nil {
				return fmt.Errorf("tulle node: %w", err)
			}
			if err := runDaemon(cmd.Context(), c); err != nil {
				return fmt.Errorf("tulle node: %w", err)
			}
			return nil
		},
	}
	o.register(cmd.Flags())
	return cmd
}

func (o *nodeOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.config, "config", defaultConfig, "flannel's net-conf.json; without the default file: Network 10.244.0.0/16 over vxlan")
	f.StringVar(&o.iface, "iface", "", "link of the underlay (default: that of the default route)")
	f.StringVar(&o.publicIP, "public-ip", "", "this node's address on the underlay (default: the link's first)")
	f.StringVar(&o.publicIPv6, "public-ipv6", "", "this node's IPv6 address on the underlay (default: the link's first that is global and stays)")
	f.StringVar(&o.name, "name", "", "this node's name (default: the host name)")
	f.StringVar(&o.store, "store", storeGossip, "where the nodes learn of each other: gossip, etcd (flannel's, with --etcd-endpoints), or file (--subnet and --peers alone)")
	o.etcd.register(f)
	f.StringVar(&o.join, "join", "", "nodes to find the others by, ADDR[:PORT] separated by commas; may name this node")
	f.IntVar(&o.gossipPort, "gossip-port", 7946, "port of the gossip, TCP and UDP, on every node")
	f.StringVar(&o.keyFile, "key-file", "", "file with the cluster key, from tulle keygen")
	f.BoolVar(&o.insecure, "insecure-no-key", false, "gossip without a key: whoever reaches the port can join and speak for a node")
	f.StringVar(&o.subnet, "subnet", "", "this node's subnet of the cluster network, such as 10.244.1.0/24, given instead of claimed; dual stack: IPv4,IPv6")
	f.StringVar(&o.peers, "peers", "", "JSON file with static nodes, beside the store's; read again when it changes")
	f.StringVar(&o.runDir, "run-dir", defaultRunDir, "directory of the socket that the other commands talk to")
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir, "directory of this node's identity, its claims and its pods' addresses, which outlive the daemon")
	f.StringVar(&o.subnetFile, "subnet-file", "", "flannel's subnet.env, written once the node forwards (default: RUN-DIR/subnet.env)")
	f.StringVar(&o.cni.confDir, "cni-conf-dir", "", "directory for the CNI configuration, such as /etc/cni/net.d, written once the node forwards; empty for none")
	f.StringVar(&o.cni.binDir, "cni-bin-dir", "", "directory to copy the CNI plugin into, such as /opt/cni/bin; empty for none")
	f.StringVar(&o.metricsAddr, "metrics-addr", "127.0.0.1:9470", "address of /metrics, /healthz and /readyz, which have no password: beyond loopback is warned of; empty for none")
	f.StringVar(&o.underlay, "underlay", underlayUDP, "sockets that carry the tunnel: udp, or packet (whole frames on raw sockets of one Ethernet link)")
	f.StringVar(&o.device, "device", "tap", "device towards the kernel: tap; tun or water for comparison, which can do less (see cannot in tulle status)")
	f.StringVar(&o.holder, "holder", holderAuto, "auto: what has to outlive a kill is left with the tulle holder of this --run-dir, when there is one; off: with none")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.IntVar(&o.workers, "workers", 1, "threads that forward packets, with a queue of the tap each")
	f.DurationVar(&o.busyPoll, "busy-poll", defaultBusyPoll(), "how long a worker looks for packets before it sleeps, as long as that finds some; 0 to sleep at once")
	f.IntVar(&o.maxFlows, "max-flows", flowsPerFamily, "size of the flow table for each family; 128 bytes an IPv4 flow, 256 an IPv6 flow, used as they come")
	f.IntVar(&o.perSource, "max-flows-per-source", 0, "flows of each family that packets of one source address may begin; 0 for a quarter of --max-flows")
	f.IntVar(&o.majority, "majority", 0, "claim a subnet only with more than half of so many nodes in sight, the same number on all, no less than there will ever be; 0: a node alone claims too")
	f.DurationVar(&o.reclaim, "reclaim-after", 0, "take the subnet of a node away that has been gone for so long, while more than half of the nodes are there; 0 for never")
	f.BoolVar(&o.ipMasq, "ip-masq", false, "masquerade what pods send out of the cluster network, as Mode island of net-conf.json does")
	f.StringVar(&o.tunnelGSO, "tunnel-gso", tunnelGSOAuto, "auto: super-packets leave encapsulated but uncut where the kernel can cut them later (Linux 6.17, vxlan backend); off: never")
	f.BoolVar(&o.copyDSCP, "copy-dscp", false, "copy the DSCP of pods' packets to the outer header, for an underlay that gives it a meaning")
	f.BoolVar(&o.takeover, "takeover", false, "take over from the daemon that runs in this --run-dir, with the same flags and by way of its holder, without losing a packet")
	f.BoolVar(&o.keep, "keep", false, "leave the TAP and the routes in place at the end")
}

// defaultBusyPoll is three to five times what it takes to wake a thread on another CPU.
func defaultBusyPoll() time.Duration {
	if runtime.NumCPU() == 1 {
		return 0
	}
	return 50 * time.Microsecond
}

// resolve checks the flags against each other and the machine and returns the daemon's configuration.
func (o *nodeOptions) resolve(given func(flag string) bool) (*daemonConfig, error) {
	if !given("store") && o.subnet != "" && o.peers != "" && o.join == "" && o.keyFile == "" && !o.insecure {
		o.store = storeFile
	}
	if !given("store") && o.etcd.endpoints != "" {
		o.store = storeEtcd
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	conf, err := o.loadConfig(given("config"))
	if err != nil {
		return nil, err
	}
	self, link, err := o.self(conf)
	if err != nil {
		return nil, err
	}
	c := &daemonConfig{
		self: self, conf: conf, link: link, store: o.store, metricsAddr: o.metricsAddr,
		peersFile: o.peers, runDir: o.runDir, stateDir: o.stateDir, cni: o.cni, holder: o.holder, underlay: o.underlay, tunnelGSO: o.tunnelGSO, device: tap.Kind(o.device), workers: o.workers, maxFlows: o.maxFlows, perSource: o.perSource, keep: o.keep, takeover: o.takeover, copyDSCP: o.copyDSCP, busyPoll: o.busyPoll,
		subnetFile: cmp.Or(o.subnetFile, filepath.Join(o.runDir, "subnet.env")),
	}
	if o.store == storeGossip {
		if c.gossip, err = o.gossipConfig(); err != nil {
			return nil, err
		}
	}
	if o.store == storeEtcd {
		c.etcd, c.etcdTTL, c.etcdMargin = o.etcd.server, o.etcd.ttl, o.etcd.margin
	}
	if err := c.chooseMode(o.ipMasq); err != nil {
		return nil, err
	}
	return c, c.checkTunnel()
}

// self finds out who this node is: its name, its underlay, and its subnets if they are given.
func (o *nodeOptions) self(conf *netconf.Config) (n control.Node, link control.UnderlayLink, err error) {
	n = control.Node{Name: o.name, BackendType: conf.Backend.Type}
	if o.subnet != "" {
		if n.Subnet, n.IPv6Subnet, err = o.parseSubnets(conf); err != nil {
			return n, link, err
		}
	}
	if link, err = o.findUnderlay(conf); err != nil {
		return n, link, err
	}
	n.PublicIP, n.PublicIPv6 = link.Addr, link.Addr6
	n.VNI = conf.Backend.VXLAN.VNI
	n.VTEP = control.VTEPMAC(n.Underlay(), n.VNI)
	if conf.EnableIPv6 {
		n.VTEPv6 = n.VTEP
	}
	if n.Name == "" {
		if n.Name, err = os.Hostname(); err != nil {
			return n, link, fmt.Errorf("host name: %w (give --name)", err)
		}
	}
	return n, link, nil
}

// findUnderlay finds the link that has the addresses which the network needs.
func (o *nodeOptions) findUnderlay(conf *netconf.Config) (link control.UnderlayLink, err error) {
	q := control.UnderlayQuery{Iface: o.iface, IPv4: conf.EnableIPv4, IPv6: conf.EnableIPv6}
	if o.publicIP != "" {
		if q.PublicIP, err = netip.ParseAddr(o.publicIP); err != nil || !q.PublicIP.Is4() {
			return link, usageError("--public-ip %s: an IPv4 address is needed", o.publicIP)
		}
	}
	if o.publicIPv6 != "" {
		if q.PublicIPv6, err = netip.ParseAddr(o.publicIPv6); err != nil || !globalIPv6(q.PublicIPv6) {
			return link, usageError("--public-ipv6 %s: a global IPv6 address is needed", o.publicIPv6)
		}
	}
	switch {
	case q.PublicIP.IsValid() && !q.IPv4:
		return link, usageError("--public-ip %s: EnableIPv4 is false: the network has no use for it", o.publicIP)
	case q.PublicIPv6.IsValid() && !q.IPv6:
		return link, usageError("--public-ipv6 %s: EnableIPv6 is not true: the network has no use for it", o.publicIPv6)
	}
	if link, err = control.FindUnderlay(q); err != nil {
		return link, err
	}
	switch {
	case conf.Network.Contains(link.Addr):
		return link, fmt.Errorf("underlay address %s of %s lies inside the cluster network %s: choose another Network or --public-ip", link.Addr, link.Name, conf.Network)
	case conf.IPv6Network.Contains(link.Addr6):
		return link, fmt.Errorf("underlay address %s of %s lies inside the cluster network %s: choose another IPv6Network or --public-ipv6", link.Addr6, link.Name, conf.IPv6Network)
	}
	return link, nil
}

func globalIPv6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.IsGlobalUnicast() && a.Zone() == ""
}

// gossipConfig reads the cluster key. Gossip without one has to be asked for.
func (o *nodeOptions) gossipConfig() (*gossipConfig, error) {
	g := &gossipConfig{port: o.gossipPort, stateDir: o.stateDir, reclaim: o.reclaim, majority: o.majority}
	for seed := range strings.SplitSeq(o.join, ",") {
		if seed = strings.TrimSpace(seed); seed != "" {
			g.join = append(g.join, seed)
		}
	}
	if o.keyFile == "" {
		slog.Warn("gossip runs without a cluster key: whoever reaches its port can join and speak for a node")
		return g, nil
	}
	var err error
	g.key, err = readKey(o.keyFile)
	return g, err
}

// loadConfig reads net-conf.json, which etcd has unless a file is given. Only the default file may be absent.
func (o *nodeOptions) loadConfig(given bool) (*netconf.Config, error) {
	if o.store == storeEtcd && !given {
		return o.etcd.network(o.stateDir)
	}
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
	if err := runnable(o.config, conf); err != nil {
		return nil, err
	}
	return conf, nil
}

// parseSubnets reads --subnet: one prefix for each family at most, separated by a comma.
func (o *nodeOptions) parseSubnets(conf *netconf.Config) (v4, v6 netip.Prefix, err error) {
	for text := range strings.SplitSeq(o.subnet, ",") {
		p, err := parseSubnet(strings.TrimSpace(text), conf)
		if err != nil {
			return v4, v6, err
		}
		of := &v4
		if p.Addr().Is6() {
			of = &v6
		}
		if of.IsValid() {
			return v4, v6, usageError("--subnet %s: %s and %s are of one family: give one IPv4 and one IPv6 subnet at most", o.subnet, *of, p)
		}
		*of = p
	}
	switch {
	case conf.EnableIPv4 && !v4.IsValid():
		return v4, v6, usageError("--subnet %s: the IPv4 subnet is missing, such as --subnet 10.244.1.0/24,%s", o.subnet, v6)
	case conf.EnableIPv6 && !v6.IsValid() && o.store == storeFile:
		return v4, v6, usageError("--subnet %s: the IPv6 subnet is missing, such as --subnet %s,%s", o.subnet, v4, firstSubnet(conf))
	}
	return v4, v6, nil
}

// firstSubnet returns the first IPv6 node subnet of the network, for examples.
func firstSubnet(conf *netconf.Config) netip.Prefix {
	return netip.PrefixFrom(conf.IPv6SubnetMin, conf.IPv6SubnetLen)
}

func parseSubnet(s string, conf *netconf.Config) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, usageError("--subnet %s: a prefix such as 10.244.1.0/24 is needed", s)
	}
	network, longest := conf.Network, 30
	if p.Addr().Is6() {
		network, longest = conf.IPv6Network, 126
	}
	switch {
	case !network.IsValid():
		return p, usageError("--subnet %s: the cluster network has none of this family", s)
	case p != p.Masked():
		return p, usageError("--subnet %s has host bits: write %s", s, p.Masked())
	case p.Bits() > longest || p.Bits() < network.Bits() || !network.Contains(p.Addr()):
		return p, usageError("--subnet %s: it must lie inside the cluster network %s and be /%d or shorter", s, network, longest)
	}
	return p, nil
}

// checkTunnel works out codec, port and the largest inner packets, and refuses an underlay that is too small for them.
func (c *daemonConfig) checkTunnel() error {
	underlay, backend := c.link.MTU, c.conf.Backend
	c.codec, c.port = encap.PlainUDP{}, backend.UDP.Port
	if c.tunnels() && !c.plainUDP() {
		vxlan, err := encap.NewVXLAN(backend.VXLAN.VNI)
		if err != nil {
			return err
		}
		c.codec, c.port = vxlan, backend.VXLAN.Port
		underlay = cmp.Or(backend.VXLAN.MTU, underlay)
	}
	overhead := c.overhead(c.conf.EnableIPv6) // one MTU for all pods: that of the larger header
	least := minMTU4
	if c.conf.EnableIPv6 {
		least = minMTU6 // the kernel turns IPv6 off on a smaller link
	}
	if c.mtu = underlay - overhead; c.mtu < least {
		return fmt.Errorf("underlay MTU %d of %s leaves %d bytes for pods after %d of %s (needed: %d)", underlay, c.link.Name, c.mtu, overhead, backend.Type, least)
	}
	c.limits = [2]int{underlay - c.overhead(false), underlay - c.overhead(true)}
	return nil
}

// overhead is what the tunnel's headers take of a packet over IPv4 or IPv6, bytes.
func (c *daemonConfig) overhead(ipv6 bool) int {
	if !c.tunnels() {
		return 0
	}
	return c.codec.Overhead(ipv6)
}

// tunnels says whether the backend encapsulates. host-gw does not: the kernel's routes carry all between nodes, and the engine what is for
// the node's own pods.
func (c *daemonConfig) tunnels() bool { return c.conf.Backend.Type != netconf.TypeHostGW }

// direct says whether packets to nodes on the underlay's link leave as they are.
func (c *daemonConfig) direct() bool {
	return c.conf.Backend.Type == netconf.TypeVXLAN && c.conf.Backend.VXLAN.DirectRouting || !c.tunnels()
}

// plainUDP says whether the backend is flannel's udp.
func (c *daemonConfig) plainUDP() bool { return c.conf.Backend.Type == netconf.TypeUDP }
