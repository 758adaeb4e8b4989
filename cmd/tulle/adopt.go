package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// The parts of what a daemon leaves with its holder.
const (
	partUnderlay  = "underlay"
	partUnderlay6 = "underlay6"
	partFlows     = "flows"
	partTAP       = "tap"
	partTunnel    = "tunnel"
	partState     = "state" // bytes, no descriptors
)

// adopt takes over what the daemon before left and what fits the configuration. From a daemon that is alive it takes all or nothing.
func (f *forwarder) adopt() error {
	f.held.take()
	f.wayOut.adopt(f.held)
	for _, family := range f.families() {
		f.held.adopt(family.part, f.underlayFit(family.local), func(files []int) (err error) {
			*family.underlays, err = f.openFamily(family.local, files)
			return err
		})
	}
	f.held.adopt(partFlows, f.flowsFit(), f.adoptFlows)
	f.held.adopt(partTAP, f.tapFit(), func(files []int) error {
		device, err := tap.Adopt(tapName, files)
		if err == nil && len(files) != f.config.workers {
			err = fmt.Errorf("%d queues", len(files))
		}
		if err == nil {
			f.tap = device
		}
		return err
	})
	f.pods.adopt(f.held)
	if f.config.takeover {
		return f.held.whole()
	}
	f.held.settle()
	return nil
}

// adoptFlows owns the descriptor unless it fails.
func (f *forwarder) adoptFlows(files []int) error {
	if len(files) != 1 {
		return fmt.Errorf("%d descriptors", len(files))
	}
	// A copy, since a File closes what it has.
	fd, err := unix.FcntlInt(uintptr(files[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "tulle-flows")
	table, got, err := conntrack.Adopt(f.flowsConfig(), file, f.now())
	if err != nil {
		file.Close()
		return err
	}
	unix.Close(files[0])
	f.flows = table
	slog.Info("flows adopted", "kept", got.Kept, "torn", got.Torn, "foreign", got.Foreign)
	f.held.note(func(r *holderReport) { r.Flows = got })
	return nil
}

func (f *forwarder) flowsConfig() conntrack.Config {
	return conntrack.Config{Flows4: f.config.maxFlows, Flows6: f.config.maxFlows, PerSource: f.config.flowsPerSource()}
}

// parts lists what there is to leave, with copies of the descriptors.
func (f *forwarder) parts() (all []part) {
	f.mu.Lock()
	defer f.mu.Unlock()
	add := func(name, fit string, files []int) {
		if files = copies(files); len(files) > 0 {
			all = append(all, part{name, fit, files})
		}
	}
	for _, family := range f.families() {
		var files []int
		for _, u := range *family.underlays {
			files = append(files, u.Files()...)
		}
		add(family.part, f.underlayFit(family.local), files)
	}
	if f.flows != nil {
		add(partFlows, f.flowsFit(), []int{int(f.flows.File().Fd())})
	}
	if f.tap != nil && f.tap.Kind == tap.TAP {
		add(partTAP, f.tapFit(), f.tap.Files())
	}
	if f.wayOut.tunnel != nil {
		add(partTunnel, f.wayOut.fit(), f.wayOut.tunnel.Files())
	}
	f.pods.parts(add)
	return all
}

// What each part depends on of the configuration, in words. A daemon with another has no use for it.

func (f *forwarder) underlayFit(local netip.AddrPort) string {
	c := f.config
	fit := fmt.Sprintf("%s sockets of %d workers at %s", c.underlay, c.workers, local)
	if c.underlay == underlayPacket {
		fit += fmt.Sprintf(" on link %d", c.link.Index)
	}
	if c.plainUDP() {
		fit += ", one source port"
	}
	return fit
}

// flowsFit names the network too: what was let through in another one is not known in this.
func (f *forwarder) flowsFit() string {
	c := f.config
	return fmt.Sprintf("%d flows of each family in %s", c.maxFlows, c.networkName())
}

func (f *forwarder) tapFit() string {
	return fmt.Sprintf("device %s with %d queues", f.config.device, f.config.workers)
}

// networkName tells the network from others.
func (c *daemonConfig) networkName() string {
	return fmt.Sprintf("network %s over %s, VNI %d", both(text(c.conf.Network), text(c.conf.IPv6Network)), c.conf.Backend.Type, c.self.VNI)
}
