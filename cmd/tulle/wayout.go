package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/dataplane/tap"
	"github.com/tulle-net/tulle/encap"
)

// Values of --tunnel-gso.
const (
	tunnelGSOAuto = "auto"
	tunnelGSOOff  = "off"
)

const (
	// tunnelName is the TAP for encapsulated super-packets.
	tunnelName = "tulle-gso"
	// tunnelRetry is waited between two looks whether somebody removed it.
	tunnelRetry = time.Second
)

// A wayOut is the underlay's link and who is on it. Those share it who send whole frames there, of all workers and families: raw underlays,
// and the queues for super-packets; and the kernel's routes and netfilter, which need to know the peers on link.
type wayOut struct {
	raw      []*encap.PacketUnderlay
	tunnel   *tap.Tunnel // nil without tunnel GSO
	nextHops encap.NextHops
	resolver *control.Resolver
	restored func()                          // is told that the TAP was made again
	onLink   func(map[netip.Addr]tables.MAC) // is told of the peers on link; nil before Look
	link     int                             // that all are bound to; the resolver's goroutine's alone
	config   *daemonConfig
}

// newWayOut returns one without a TAP for super-packets: adopt comes next.
func newWayOut(c *daemonConfig) *wayOut {
	w := &wayOut{link: c.link.Index, config: c}
	w.resolver = control.NewResolver(c.link, w.take)
	w.resolver.Passive = c.underlay == underlayUDP && c.tunnels()
	return w
}

// adopt takes over the TAP for super-packets of the daemon before, or makes it, if it is wanted and the kernel has all that it takes;
// super-packets leave in segments without it.
func (w *wayOut) adopt(h *held) {
	c := w.config
	if !c.wholeFrames() || h.adopt(partTunnel, w.fit(), w.adoptTunnel) {
		return
	}
	t, err := tap.OpenTunnel(tunnelName, c.workers)
	if err == nil {
		if _, err = c.tunnel().Apply(); err != nil {
			t.Close()
		}
	}
	if err != nil {
		slog.Info("super-packets leave in segments: no tunnel GSO", "why", err)
		return
	}
	w.tunnel = t
}

// adoptTunnel leaves the kernel's side to the reconciler.
func (w *wayOut) adoptTunnel(files []int) error {
	t, err := tap.AdoptTunnel(tunnelName, files)
	if err == nil {
		w.tunnel = t
	}
	return err
}

// fit says in words what the TAP's descriptors depend on.
func (w *wayOut) fit() string { return fmt.Sprintf("%d queues", w.config.workers) }

// wholeFrames says whether super-packets are to leave encapsulated but uncut.
func (c *daemonConfig) wholeFrames() bool {
	return c.tunnelGSO != tunnelGSOOff && c.tunnels() && !c.plainUDP()
}

func (c *daemonConfig) tunnel() control.Tunnel {
	return control.Tunnel{TAP: tunnelName, Link: c.link.Name}
}

// tunnelGSO returns nil without it.
func (w *wayOut) tunnelGSO() *encap.TunnelGSO {
	if w.tunnel == nil {
		return nil
	}
	return &encap.TunnelGSO{Queues: w.tunnel.Files(), NextHops: &w.nextHops}
}

// follow makes the outer addresses of the tables those that are resolved.
func (w *wayOut) follow(set *tables.Set) {
	var addrs []netip.Addr
	if set != nil {
		for p := range set.AllPeers() {
			addrs = append(addrs, p.Endpoint.Addr())
		}
	}
	w.resolver.Want(addrs)
}

// take hands the resolver's next hops to the ports, and moves these to the link if that was made again.
func (w *wayOut) take(h control.Hops) error {
	next := make(map[netip.Addr]encap.NextHop, len(h.Next))
	for addr, hop := range h.Next {
		next[addr] = encap.NextHop(hop)
	}
	w.nextHops.Publish(next)
	w.onLink(h.OnLink)
	if h.Link == 0 || h.Link == w.link {
		return nil
	}
	var errs []error
	for _, u := range w.raw {
		errs = append(errs, u.Rebind(h.Link))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	w.link = h.Link
	return nil
}

// run keeps the TAP for super-packets until ctx ends: somebody may remove it. What the kernel's side of it has to be is the
// reconciler's.
func (w *wayOut) run(ctx context.Context) error {
	if w.tunnel == nil {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(tunnelRetry)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		restored, err := w.tunnel.Restore()
		if restored {
			w.restored()
		}
		if restored || err != nil {
			slog.Warn("the TAP for super-packets was removed by somebody else; making it again", "link", tunnelName, "error", err)
		}
	}
}

func (w *wayOut) close() error {
	if w == nil || w.tunnel == nil {
		return nil
	}
	return w.tunnel.Close()
}

func (w *wayOut) report(to *underlayReport) {
	for _, u := range w.raw {
		for v, n := range u.OuterDrops() {
			to.OuterDrops[v.String()] += n
		}
	}
	if !w.resolver.Passive {
		to.NoNextHop = w.resolver.Problems()
	}
}
