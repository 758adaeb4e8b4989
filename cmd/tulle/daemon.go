package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/tap"
	"github.com/tulle-net/tulle/encap"
)

// tapName is the node's TAP. There is one daemon in a network namespace.
const tapName = "tulle-tap"

// daemonConfig is what resolve made of the flags: complete and checked.
type daemonConfig struct {
	self      control.Node
	network   netip.Prefix
	vxlan     netconf.VXLAN
	codec     *encap.VXLAN
	link      control.UnderlayLink
	mtu       int // largest inner IP packet, bytes
	peersFile string
	runDir    string
	workers   int
	keep      bool
}

// A daemon is one running node.
type daemon struct {
	config    *daemonConfig
	started   time.Time
	tap       *tap.Device
	underlays []*encap.Underlay
	engine    *dataplane.Engine
	kernel    control.Kernel
	view      atomic.Pointer[peerView]
}

// A peerView is what the last reading of the peers file came to. Immutable.
type peerView struct {
	nodes   []control.Node
	ignored []control.Ignored
	problem string // of the file; the nodes are then those of the last good reading
}

// runDaemon runs the node until ctx ends, and removes what it made.
func runDaemon(ctx context.Context, c *daemonConfig) (err error) {
	peers, err := c.loadPeers()
	if err != nil {
		return err
	}
	lock, err := lockRunDir(c.runDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	d := &daemon{config: c, started: time.Now()}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.open(); err != nil {
		return err
	}
	if err := d.apply(peers, nil); err != nil {
		return err
	}
	slog.Info("node runs", "name", c.self.Name, "subnet", c.self.Subnet, "underlay", c.link.Addr, "link", c.link.Name,
		"mtu", c.mtu, "vni", c.vxlan.VNI, "port", c.vxlan.Port, "tap", d.tap.String(), "sockets", d.underlays[0].Offloads())
	return d.serve(ctx)
}

// loadPeers reads the peers file for the first time: a wrong one stops the start.
func (c *daemonConfig) loadPeers() ([]control.Node, error) {
	if c.peersFile == "" {
		return nil, nil
	}
	return control.LoadPeers(c.peersFile)
}

// open makes sockets and TAP, in this order: a port that is taken is found before anything was made.
func (d *daemon) open() error {
	c := d.config
	local := netip.AddrPortFrom(c.link.Addr, c.vxlan.Port)
	for range c.workers {
		u, err := encap.Open(local, c.codec)
		if err != nil {
			return err
		}
		d.underlays = append(d.underlays, u)
	}
	var err error
	d.kernel = control.Kernel{TAP: tapName, State: d.state(nil)}
	if err := d.kernel.CheckFree(); err != nil {
		return err
	}
	if d.tap, err = tap.Open(tapName, c.workers); err != nil {
		return err
	}
	ports := make([]dataplane.Ports, c.workers)
	for i := range ports {
		ports[i] = dataplane.Ports{TAP: d.tap.Queues[i], Underlay: d.underlays[i]}
	}
	if d.engine, err = dataplane.New(c.codec, ports); err != nil {
		return err
	}
	if filter, err := control.ReversePathFilter(); err != nil || filter != "0" {
		slog.Warn("net.ipv4.conf.all.rp_filter is not 0: packets from peers' own addresses may be dropped by the kernel", "value", filter)
	}
	return d.kernel.Apply()
}

// serve runs the engine, the API and the watch on the peers file until ctx ends or one of them fails.
func (d *daemon) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	api, err := listenAPI(d)
	if err != nil {
		return err
	}
	parts := []func(context.Context) error{d.engine.Run, api.run}
	if d.config.peersFile != "" {
		parts = append(parts, d.watchPeers)
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

func (d *daemon) watchPeers(ctx context.Context) error {
	control.WatchPeers(ctx, d.config.peersFile, func(nodes []control.Node, err error) {
		if aerr := d.apply(nodes, err); aerr != nil {
			slog.Error("peers not applied", "error", aerr)
		}
	})
	return nil
}

// apply compiles and publishes the tables for the peers. When the file could not be read the
// tables stay as they are.
func (d *daemon) apply(nodes []control.Node, fileErr error) error {
	old := d.view.Load()
	if fileErr != nil {
		slog.Error("peers file is not usable; the peers stay as they are", "error", fileErr)
		view := peerView{problem: fileErr.Error()}
		if old != nil {
			view.nodes, view.ignored = old.nodes, old.ignored
		}
		d.view.Store(&view)
		return nil
	}
	state := d.state(nodes)
	generation := uint64(1)
	if set := d.engine.Tables(); set != nil {
		generation = set.Generation + 1
	}
	set, ignored, err := control.Compile(generation, state)
	if err != nil {
		return err
	}
	for _, i := range ignored {
		slog.Warn("peer ignored", "peer", i.Peer.Name, "reason", i.Reason)
	}
	d.engine.Publish(set)
	d.view.Store(&peerView{nodes: state.Peers, ignored: ignored})
	slog.Info("tables published", "generation", generation, "peers", set.Peers())
	return nil
}

// state is this node with the given others. The node's own entry in a list for all nodes is left out.
func (d *daemon) state(nodes []control.Node) control.State {
	c := d.config
	s := control.State{Self: c.self, Network: c.network, Port: c.vxlan.Port, MTU: c.mtu}
	for _, n := range nodes {
		if n.PublicIP != c.self.PublicIP || n.Subnet != c.self.Subnet {
			s.Peers = append(s.Peers, n)
		}
	}
	return s
}

// close removes what open made, as far as it came.
func (d *daemon) close() error {
	var errs []error
	if d.tap != nil && d.config.keep {
		errs = append(errs, d.tap.SetPersistent(true))
	} else if d.tap != nil {
		errs = append(errs, d.tap.SetPersistent(false), d.kernel.Remove())
	}
	if d.tap != nil {
		errs = append(errs, d.tap.Close())
	}
	for _, u := range d.underlays {
		errs = append(errs, u.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
