package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/dataplane/tap"
	"github.com/tulle-net/tulle/encap"
)

// tapRetry is waited between two tries to make the TAP again.
const tapRetry = 50 * time.Millisecond

// A forwarder is the packet path of the node: sockets, TAP and the engine between them. The sockets live as long as it
// does; TAP and engine are made again when somebody removes the TAP. Its methods are safe for concurrent use.
type forwarder struct {
	codec     *encap.VXLAN
	workers   int
	underlays []*encap.Underlay

	mu       sync.Mutex // guards the rest
	tap      *tap.Device
	engine   *dataplane.Engine
	set      *tables.Set
	past     dataplane.Counters // of engines that ended with their TAP
	reopened uint64
}

// openForwarder makes sockets and TAP, in this order: a port that is taken is found before anything was made.
func openForwarder(c *daemonConfig) (*forwarder, error) {
	f := &forwarder{codec: c.codec, workers: c.workers}
	var err error
	if f.underlays, err = encap.Open(netip.AddrPortFrom(c.link.Addr, c.port), c.codec, c.workers); err != nil {
		return nil, err
	}
	if err = (control.Kernel{TAP: tapName}).CheckFree(); err == nil {
		err = f.openTAP()
	}
	if err != nil {
		return nil, errors.Join(err, f.close(false))
	}
	return f, nil
}

// openTAP makes the TAP and an engine for it, with the tables that were published last.
func (f *forwarder) openTAP() error {
	device, err := tap.Open(tapName, f.workers)
	if err != nil {
		return err
	}
	ports := make([]dataplane.Ports, f.workers)
	for i := range ports {
		ports[i] = dataplane.Ports{TAP: device.Queues[i], Underlay: f.underlays[i]}
	}
	engine, err := dataplane.New(f.codec, ports)
	if err != nil {
		return errors.Join(err, device.Close())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	engine.Publish(f.set)
	f.tap, f.engine = device, engine
	return nil
}

// run forwards until ctx ends. reopened is called after the TAP was made again.
func (f *forwarder) run(ctx context.Context, reopened func()) error {
	for {
		err := f.engine.Run(ctx)
		if err == nil || !errors.Is(err, tap.ErrGone) {
			return err
		}
		slog.Warn("the TAP was removed by somebody else; making it again", "link", tapName)
		if err := f.retire(); err != nil {
			return err
		}
		for err := f.openTAP(); err != nil; err = f.openTAP() {
			slog.Error("the TAP cannot be made", "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(tapRetry):
			}
		}
		reopened()
	}
}

// retire keeps the counters of an engine that ended and closes what is left of its TAP.
func (f *forwarder) retire() error {
	all, err := f.engine.Counters(context.Background()) // the engine has ended: this does not wait
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.past = dataplane.Sum(append(all, f.past))
	f.reopened++
	f.tap.Close() // the device is gone: closing may well fail
	return nil
}

// publish makes set the tables of this and every later engine. nil forwards nothing.
func (f *forwarder) publish(set *tables.Set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set = set
	f.engine.Publish(set)
}

// tables returns the published tables, or nil.
func (f *forwarder) tables() *tables.Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set
}

// device returns the TAP and how often it had to be made again.
func (f *forwarder) device() (*tap.Device, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tap, f.reopened
}

// counters returns everything counted since the start, at a batch boundary of each worker.
func (f *forwarder) counters(ctx context.Context) (dataplane.Counters, error) {
	f.mu.Lock()
	engine, past := f.engine, f.past
	f.mu.Unlock()
	all, err := engine.Counters(ctx)
	if err != nil {
		return dataplane.Counters{}, err
	}
	return dataplane.Sum(append(all, past)), nil
}

// close closes TAP and sockets. keep leaves the TAP in the kernel.
func (f *forwarder) close(keep bool) error {
	var errs []error
	if f.tap != nil {
		errs = append(errs, f.tap.SetPersistent(keep), f.tap.Close())
	}
	for _, u := range f.underlays {
		errs = append(errs, u.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
