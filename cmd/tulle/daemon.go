package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/etcd"
	"github.com/tulle-net/tulle/control/gossip"
	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/control/netfilter"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// tapName is the node's TAP. There is one daemon in a network namespace.
const tapName = "tulle-tap"

// daemonConfig is what resolve made of the flags: complete and checked.
type daemonConfig struct {
	self        control.Node // the subnet is valid iff it was given
	conf        *netconf.Config
	codec       tunnelCodec
	port        uint16 // UDP port of the tunnel
	link        control.UnderlayLink
	mtu         int           // largest IP packet of pods, bytes
	limits      [2]int        // largest inner IP packet that the link takes in one piece, by family: IPv4, IPv6; bytes
	store       string        // storeGossip, storeEtcd or storeFile
	gossip      *gossipConfig // nil with another store
	etcd        *etcd.Server  // nil with another store
	etcdTTL     time.Duration // of a lease
	etcdMargin  time.Duration // before its end
	peersFile   string
	runDir      string
	stateDir    string
	cni         cniInstall
	subnetFile  string
	metricsAddr string
	device      tap.Kind
	underlay    string // underlayUDP or underlayPacket
	tunnelGSO   string // tunnelGSOAuto or tunnelGSOOff
	holder      string // holderAuto or holderOff
	workers     int
	maxFlows    int // of each family
	perSource   int // 0 for a part of maxFlows
	mode        netfilter.Mode
	noNetfilter bool // the kernel has none
	keep        bool
	takeover    bool // from a daemon that runs
	copyDSCP    bool
	busyPoll    time.Duration
}

// gossipConfig is what only the gossip store needs.
type gossipConfig struct {
	join     []string
	port     int
	key      []byte // nil: unencrypted
	stateDir string
	reclaim  time.Duration // after which a node that is gone loses its subnet; 0: never
	majority int           // nodes of which more than half must be in sight for a subnet to be claimed; 0: any number claims
}

// A daemon is one running node.
type daemon struct {
	config     *daemonConfig
	started    time.Time
	forwarder  *forwarder
	reconciler *control.Reconciler
	network    *network
	file       *control.FileStore
	store      control.Store // beside the file; nil with static peers alone
	gossip     *gossip.Store // is store, or nil
	traces     atomic.Int32  // running
	captures   captures
	pods       *pods
	stop       func() // ends serve

	yielding sync.Mutex  // guards goOn
	goOn     *time.Timer // ends a pause; nil before the first
}

// runDaemon runs the node until ctx ends, and removes what it made.
func runDaemon(ctx context.Context, c *daemonConfig) (err error) {
	collect := debug.SetGCPercent(-1) // packets wait: what the start leaves behind is collected after it
	var peers []control.Node
	if c.peersFile != "" {
		if peers, err = control.LoadPeers(c.peersFile); err != nil { // a wrong file stops the start, and only that
			return err
		}
	}
	d := &daemon{config: c, started: time.Now()}
	if c.takeover {
		if d.forwarder, err = takeOver(ctx, c); err != nil {
			return err
		}
	}
	lock, err := lockRunDir(c.runDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if filter, err := control.ReversePathFilter(); err != nil || filter != "0" {
		slog.Warn("net.ipv4.conf.all.rp_filter is not 0: packets from peers' own addresses may be dropped by the kernel", "value", filter)
	}
	if d.forwarder == nil {
		if d.forwarder, err = openForwarder(c, dataplane.Fragments{}); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if d.pods, err = openPods(d); err != nil {
		return err
	}
	d.pods.restoreTAPs()
	d.prepare(peers)
	// What was adopted waits: it is forwarded with what was inherited before gossip has its disk and its sockets.
	forwarding := begin(ctx, func(ctx context.Context) error { return d.forwarder.run(ctx, d.reconciler.Wake) })
	defer forwarding.end()
	debug.SetGCPercent(collect)
	if err := d.openStore(); err != nil {
		return err
	}
	slog.Info("node runs", "name", c.self.Name, "subnet", c.self.Subnet, "ipv6Subnet", c.self.IPv6Subnet, "underlay", c.link.Addr, "underlay6", c.link.Addr6, "link", c.link.Name,
		"mtu", c.mtu, "backend", c.conf.Backend.Type, "vni", c.self.VNI, "port", c.port, "tap", d.forwarder.tap.String(), "sockets", d.forwarder.socketOffloads())
	return d.serve(ctx, forwarding)
}

// A background is a part that begins before the others.
type background struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid once done is closed
}

func begin(ctx context.Context, part func(context.Context) error) *background {
	ctx, cancel := context.WithCancel(ctx)
	b := &background{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		b.err = part(ctx)
	}()
	return b
}

// end ends the part and waits for that.
func (b *background) end() {
	b.cancel()
	<-b.done
}

// wait returns what the part returns, which ends with ctx.
func (b *background) wait(ctx context.Context) error {
	defer context.AfterFunc(ctx, b.cancel)()
	<-b.done
	return b.err
}

// kernel is the node's kernel side in a state.
func (c *daemonConfig) kernel(s control.State) control.Kernel {
	k := control.Kernel{TAP: tapName, State: s, L3: c.device.L3(), Mode: c.mode, NoNetfilter: c.noNetfilter, Underlay: c.link.Name}
	if c.wholeFrames() {
		k.Tunnel = c.tunnel()
	}
	if k.L3 {
		k.GSOMaxSegs = tap.MaxSegments
	}
	return k
}

// prepare wires the stores to tables and kernel state, and publishes what is known without gossip.
func (d *daemon) prepare(peers []control.Node) {
	c := d.config
	base := control.State{Self: c.self, Network: c.conf.Network, IPv6Network: c.conf.IPv6Network, Port: c.port, MTU: c.mtu, Limits: c.limits, Direct: c.direct(), Pods: d.forwarder.pods.tables()}
	idle := base
	idle.Self.Subnet, idle.Self.IPv6Subnet = netip.Prefix{}, netip.Prefix{}
	d.reconciler = control.NewReconciler(c.kernel(idle), d.reached)
	d.reconciler.SetPods(d.pods.known())
	held := d.forwarder.held
	d.file = control.NewFileStore(c.self, c.peersFile, peers)
	d.network = &network{base: base, publish: d.forwarder.publish, settle: d.reconciler.Set, paths: d.forwarder.prober.reports, file: d.file.View(), source: c.store, remember: held.setState}
	if c.store != storeFile {
		// The subnets, even given ones, are used once the store has confirmed them.
		d.network.base = idle
		held.adoptState(func(state json.RawMessage) error { return d.network.inherit(state, c.self.Subnet, c.self.IPv6Subnet) })
	}
	d.forwarder.wayOut.onLink = d.network.setOnLink
	d.network.setFile(d.file.View())
	d.forwarder.pods.publish = d.network.setPods
	d.forwarder.wayOut.resolver.Look() // what the kernel knows, before the first packet asks
}

// openStore opens the store beside the file, if there is one.
func (d *daemon) openStore() error {
	var err error
	switch d.config.store {
	case storeGossip:
		err = d.openGossip()
	case storeEtcd:
		err = d.openEtcd()
	default:
		return nil
	}
	if err == nil {
		d.network.live = d.store.View
	}
	return err
}

func (d *daemon) openGossip() (err error) {
	c := d.config
	d.gossip, err = gossip.Open(gossip.Config{
		Self: c.self, Network: c.conf.Network, SubnetLen: c.conf.SubnetLen, SubnetMin: c.conf.SubnetMin, SubnetMax: c.conf.SubnetMax,
		IPv6Network: c.conf.IPv6Network, IPv6SubnetLen: c.conf.IPv6SubnetLen, IPv6SubnetMin: c.conf.IPv6SubnetMin, IPv6SubnetMax: c.conf.IPv6SubnetMax,
		TunnelPort: c.port, BindPort: c.gossip.port, Join: c.gossip.join, Key: c.gossip.key, StateDir: c.gossip.stateDir, ReclaimAfter: c.gossip.reclaim, Nodes: c.gossip.majority,
		Reserved: d.network.reserved, Log: slog.Default(),
	})
	d.store = d.gossip
	return err
}

func (d *daemon) openEtcd() (err error) {
	c := d.config
	d.store, err = etcd.Open(etcd.Config{
		Server: *c.etcd, Self: c.self, TTL: c.etcdTTL, Margin: c.etcdMargin, StateDir: c.stateDir, Reserved: d.network.reserved, Log: slog.Default(),
		Pool:  etcd.Pool{Network: c.conf.Network, Bits: c.conf.SubnetLen, Min: c.conf.SubnetMin, Max: c.conf.SubnetMax},
		Pool6: etcd.Pool{Network: c.conf.IPv6Network, Bits: c.conf.IPv6SubnetLen, Min: c.conf.IPv6SubnetMin, Max: c.conf.IPv6SubnetMax},
	})
	return err
}

// serve runs all parts until ctx ends or one of them fails.
func (d *daemon) serve(ctx context.Context, forwarding *background) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.stop = cancel
	api, err := listenAPI(d)
	if err != nil {
		return err
	}
	metrics, err := listenMetrics(d)
	if err != nil {
		return err
	}
	parts := []func(context.Context) error{
		forwarding.wait, d.forwarder.sweep, func(ctx context.Context) error { return d.forwarder.prober.run(ctx, d.network.setPathMTU) },
		d.reconciler.Run, api.run, metrics.run, d.pods.run, d.forwarder.held.run, d.network.forget,
		d.forwarder.wayOut.resolver.Run, d.forwarder.wayOut.run,
	}
	if d.store != nil {
		parts = append(parts, func(ctx context.Context) error { return d.store.Run(ctx, d.network.setStore) })
	}
	if d.config.peersFile != "" {
		parts = append(parts, func(ctx context.Context) error { return d.file.Run(ctx, d.network.setFile) })
	}
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Go(func() {
			defer cancel()
			errs[i] = part(ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// reached writes subnet.env and the CNI configuration: kernel and engine do now what the files promise.
func (d *daemon) reached(s control.State) {
	if !s.Self.HasSubnet() {
		return
	}
	if err := control.WriteSubnetEnv(d.config.subnetFile, control.SubnetEnv(s, d.config.mode != netfilter.Unset)); err != nil {
		slog.Error("not written", "error", err)
		return
	}
	if err := d.config.cni.install(d.config.runDir); err != nil {
		slog.Error("not installed", "error", err)
		return
	}
	slog.Info("node is ready", "subnet", s.Self.Subnet, "ipv6Subnet", s.Self.IPv6Subnet, "file", d.config.subnetFile)
}

// ready returns why pods of this node cannot reach the others yet, nil when they can.
func (d *daemon) ready() error {
	if d.forwarder.tables() == nil {
		_, problems, _ := d.network.report()
		return errors.New(cmp.Or(firstOf(problems), "no subnet of the cluster network is confirmed for this node yet"))
	}
	return d.reconciler.Err()
}

func firstOf(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func secondsSince(t time.Time) float64 { return time.Since(t).Seconds() }

// close removes what the daemon made, unless it is to be kept.
func (d *daemon) close() error {
	err := errors.Join(d.config.cni.withdraw(), d.forwarder.close(d.config.keep))
	if d.pods != nil {
		err = errors.Join(err, d.pods.store.Close())
	}
	if d.config.keep {
		return err
	}
	return errors.Join(err, d.config.kernel(control.State{}).Remove())
}
