package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/dataplane/tap"
	"github.com/tulle-net/tulle/encap"
)

const (
	// tapRetry is waited between two tries to make the TAP again.
	tapRetry = 50 * time.Millisecond

	// flowsPerFamily bounds the flow table unless --max-flows does: 32 MiB for IPv4 and 64 MiB for IPv6, used page by page as flows come.
	flowsPerFamily = 1 << 18
	// sweepInterval and sweepSteps let the table be looked through for expired flows every 13 seconds, in steps of less than a
	// millisecond.
	sweepInterval = 100 * time.Millisecond
	sweepSteps    = 128
)

// A tunnelCodec is what the engine and the underlay need of the encapsulation.
type tunnelCodec interface {
	dataplane.Codec
	encap.Framing
}

// A forwarder is the packet path of the node: sockets, TAP, flow table and the engine between them. Sockets and flows live as
// long as it does; TAP and engine are made again when somebody removes the TAP. Its methods are safe for concurrent use.
type forwarder struct {
	config     *daemonConfig
	underlays  []underlay // one for each worker; none without IPv4
	underlays6 []underlay // none without IPv6
	wayOut     *wayOut
	flows      *conntrack.Table
	prober     *prober
	pings      pings
	held       *held
	pods       *podTAPs
	now        func() time.Duration // the kernel's monotonic clock, the engine's and the flows': it goes on where the daemon before was killed

	mu        sync.Mutex // guards the rest
	tap       *tap.Device
	engine    *dataplane.Engine
	set       *tables.Set
	observers map[*dataplane.Observer]func() // with what stops each
	fragments dataplane.Fragments            // that the engine before left
	linkBase  control.LinkCounts             // when linkOf began
	linkOf    *dataplane.Engine
	past      dataplane.Counters // of engines that ended
	pastTAP   tap.Counts         // of these TAPs
	reopened  uint64
	stop      context.CancelFunc // of the engine that runs; nil before run
	paused    *pause             // nil while the engine runs or is to run

	sweeping sync.Mutex // held while the flow table is swept, and during a pause: then nobody uses it
}

// openForwarder adopts what the daemon before left with the holder, and makes the rest: sockets, flow table and TAP, in this order: a port
// that is taken is found before anything was made. fragments are what a daemon that yields knew, if there is one.
func openForwarder(c *daemonConfig, fragments dataplane.Fragments) (*forwarder, error) {
	f := &forwarder{config: c, now: sinceBoot(), fragments: fragments}
	f.held = newHeld(c, f.parts)
	f.pods = newPodTAPs(f)
	f.wayOut = newWayOut(c)
	f.wayOut.restored = f.held.changed
	err := f.adopt()
	if err == nil {
		err = f.openUnderlays()
	}
	if err == nil && f.flows == nil {
		f.flows, err = conntrack.New(f.flowsConfig())
	}
	switch {
	case err != nil:
	case f.tap != nil:
		err = f.attach(f.tap)
	default:
		if err = c.kernel(control.State{}).CheckFree(); err == nil {
			err = f.openTAP()
		}
	}
	switch {
	case err == nil:
	case c.takeover:
		return nil, errors.Join(err, f.abandon())
	default:
		return nil, errors.Join(err, f.close(false))
	}
	f.held.changed() // what is new goes to the holder once packets flow
	return f, nil
}

// sinceBoot returns a clock that is CLOCK_MONOTONIC, without a system call for each look.
func sinceBoot() func() time.Duration {
	at, start := monotonicNow(), time.Now()
	return func() time.Duration { return at + time.Since(start) }
}

// openTAP makes the TAP and an engine for it.
func (f *forwarder) openTAP() error {
	device, err := f.config.device.Open(tapName, f.config.workers)
	if err != nil {
		return err
	}
	if err := f.attach(device); err != nil {
		return errors.Join(err, device.Close())
	}
	return nil
}

// attach makes an engine for the TAP, with the tables that were published last.
func (f *forwarder) attach(device *tap.Device) error {
	ports := make([]dataplane.Ports, f.config.workers)
	for i := range ports {
		ports[i].TAP = device.Queues[i]
		if f.underlays != nil {
			ports[i].Underlay = f.underlays[i]
		}
		if f.underlays6 != nil {
			ports[i].Underlay6 = f.underlays6[i]
		}
	}
	engine, err := dataplane.New(dataplane.Config{
		Fragments: f.left(),
		Codec:     f.config.codec, Ports: ports, Flows: f.flows, Clock: f.now, Probe: f.answered,
		Join: device.Joining(), DecrementTTL: f.config.plainUDP(), CopyDSCP: f.config.copyDSCP, BusyPoll: f.config.busyPoll,
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pods.ports() {
		if err := engine.SetPods([]dataplane.PodPort{p}); err != nil { // the others have theirs
			slog.Error("no port to a pod", "addresses", p.Pod.Addrs(), "error", err)
		}
	}
	engine.Publish(f.set)
	f.handOver(engine)
	f.tap, f.engine, f.fragments = device, engine, dataplane.Fragments{}
	return nil
}

// sweep takes expired flows out of the table until ctx ends.
func (f *forwarder) sweep(ctx context.Context) error {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			f.sweeping.Lock()
			f.flows.Sweep(f.now(), 4*f.config.maxFlows/sweepSteps)
			f.sweeping.Unlock()
		}
	}
}

// run forwards until ctx ends. reopened is called after the TAP was made again.
func (f *forwarder) run(ctx context.Context, reopened func()) error {
	for {
		err := f.runEngine(ctx)
		if err == nil && ctx.Err() == nil {
			if err := f.restAndGoOn(ctx); err != nil || ctx.Err() != nil {
				return err
			}
			continue
		}
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
		f.held.changed()
		reopened()
	}
}

// retire keeps the counters of an engine that ended and closes what is left of its TAP.
func (f *forwarder) retire() error {
	if err := f.tally(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pastTAP = f.pastTAP.Add(f.tap.Counts())
	f.reopened++
	f.tap.Close() // the device is gone: closing may well fail
	return nil
}

// tally keeps the counters of an engine that ended.
func (f *forwarder) tally() error {
	all, err := f.engine.Counters(context.Background()) // the engine has ended: this does not wait
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.past = dataplane.Sum(append(all, f.past))
	return nil
}

// publish makes set the tables of this and every later engine. nil forwards nothing.
func (f *forwarder) publish(set *tables.Set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set = set
	f.prober.follow(set)
	f.engine.Publish(set)
	f.wayOut.follow(set)
}

// tables returns the published tables, or nil.
func (f *forwarder) tables() *tables.Set {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set
}

// tapReport says what the node has towards the kernel.
func (f *forwarder) tapReport() tapReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, counts := f.tap, f.tap.Counts().Add(f.pastTAP)
	return tapReport{
		Name: d.Name, Device: d.Kind, Queues: len(d.Queues), Offloads: d.Offloads.Names(), Reopened: f.reopened, Cannot: d.Kind.Cannot(),
		Read: counts.Read, Written: counts.Written, Lost: counts.Lost,
	}
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

// tableReport says how full the flow table is and what became of flows.
func (f *forwarder) tableReport() tableReport {
	s := f.flows.Stats()
	return tableReport{
		Flows4: s.Flows4, Flows6: s.Flows6, Capacity4: f.config.maxFlows, Capacity6: f.config.maxFlows,
		Inserted: s.Inserted, Expired: s.Expired, Evicted: s.Evicted, Full: s.Full, PerSource: f.config.flowsPerSource(), OverQuota: s.OverQuota,
	}
}

// abandon closes what was adopted, and leaves it to whoever has it too.
func (f *forwarder) abandon() error {
	var errs []error
	if f.tap != nil {
		errs = append(errs, f.tap.Close())
	}
	for _, u := range f.allUnderlays() {
		errs = append(errs, u.Close())
	}
	if f.prober != nil {
		errs = append(errs, f.prober.close())
	}
	return errors.Join(append(errs, f.pods.close(), f.wayOut.close())...)
}

// close closes TAP and sockets. keep leaves the TAP in the kernel, and everything that a holder has with it.
func (f *forwarder) close(keep bool) error {
	var errs []error
	if !keep {
		errs = append(errs, f.held.drop())
	}
	if f.tap != nil {
		if !f.tap.Kind.SingleQueue() {
			errs = append(errs, f.tap.SetPersistent(keep))
		}
		errs = append(errs, f.tap.Close())
	}
	for _, u := range f.allUnderlays() {
		errs = append(errs, u.Close())
	}
	if f.prober != nil {
		errs = append(errs, f.prober.close())
	}
	errs = append(errs, f.pods.close(), f.wayOut.close())
	// The flow table is left mapped: a listing may still be under way, and the process ends.
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// flowsPerSource leaves, unless it is told otherwise, room for others beside three sources that open all they can.
func (c *daemonConfig) flowsPerSource() int { return cmp.Or(c.perSource, c.maxFlows/4) }
