package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/impair"
	"github.com/tulle-net/tulle/scripts/lab"
)

// A fault is something that happens to one node, of chance. It returns when it is over, what has to be undone by people undone.
type fault struct {
	name  string
	spoil spoil
	do    func(ctx context.Context, c *chaos, n lab.Node) error
}

// A spoil is what a fault does to traffic that is nobody's fault.
type spoil uint8

const (
	clean     spoil = iota
	overtaken       // packets wait for an answer to ARP, and the kernel lets those overtake them that come when it is there (neigh_update)
	badWire         // the wire doubles and reorders
)

const (
	tapName  = "tulle-tap"
	linkName = "eth0"
	// patience is how long everybody may take to reach everybody after a fault.
	patience = 15 * time.Second
)

var faults = []fault{
	{"daemon killed", clean, restart(syscall.SIGKILL)},
	{"daemon restarted", clean, restart(syscall.SIGTERM)},
	{"daemon stopped for 3 s", clean, pause},
	{"TAP deleted", clean, inNode(func() error { return onLink(tapName, netlink.LinkDel) })},
	{"TAP down", clean, inNode(func() error { return onLink(tapName, netlink.LinkSetDown) })},
	{"routes deleted", clean, inNode(deleteRoutes)},
	{"addresses deleted", clean, inNode(deleteAddrs)},
	{"neighbours deleted", overtaken, inNode(deleteNeighbours)},
	{"underlay down for 2 s", clean, flap},
	{"underlay MTU 1400 for 4 s", clean, narrow},
	{"cut off for 4 s", clean, wire(4*time.Second, impair.Spec{Loss: 1}, impair.Spec{Loss: 1})},
	{"cut off one way for 4 s", clean, wire(4*time.Second, impair.Spec{Loss: 1}, impair.Spec{})},
	{"bad wire for 5 s: 1% lost, 5% twice, 25% reordered, 1% corrupted", badWire, wire(5*time.Second,
		impair.Spec{Loss: 0.01, Duplicate: 0.05, Reorder: 0.25, Corrupt: 0.01}, impair.Spec{Loss: 0.01, Duplicate: 0.05, Reorder: 0.25, Corrupt: 0.01})},
}

// notHere are the faults that the machine of a lab cannot show, and why.
var notHere = []string{
	"clock +-1 h, +-10 y: the clock is the machine's, not a namespace's (CLOCK_REALTIME has none)",
	"disk full, read-only, EIO: a lab's state directory is one of the machine's file system",
	"state file damaged: a daemon that finds it so says what to do and ends, and somebody has to do that",
	"1,000 nodes, cloned nodes: tests of their own",
}

func names() (all []string) {
	for _, f := range faults {
		all = append(all, f.name)
	}
	return all
}

func chosen(only string) (some []fault) {
	for _, f := range faults {
		if strings.Contains(f.name, only) {
			some = append(some, f)
		}
	}
	return some
}

// strike lets a fault happen to a node of chance, and waits until everybody reaches everybody.
func (c *chaos) strike(ctx context.Context, f fault) event {
	nodes := c.lab.Nodes()
	n := nodes[c.random.IntN(len(nodes))]
	e := event{Fault: f.name, Node: n.Name, spoil: f.spoil}
	if err := f.do(ctx, c, n); err != nil {
		e.Error = err.Error()
		return e
	}
	over := time.Now()
	for {
		err := c.everybody(ctx)
		if err == nil {
			e.Recovery = time.Since(over)
			return e
		}
		if ctx.Err() != nil || time.Since(over) > patience {
			e.Error = fmt.Sprintf("not over after %v: %v", time.Since(over).Round(time.Second), err)
			return e
		}
	}
}

// everybody pings every pod once from every pod.
func (c *chaos) everybody(ctx context.Context) error {
	pairs := c.lab.PodPairs()
	errs := make([]error, len(pairs))
	var all sync.WaitGroup
	for i, p := range pairs {
		all.Go(func() { errs[i] = pingOnce(ctx, p) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func pingOnce(ctx context.Context, p lab.Pair) error {
	var pinger *bench.Pinger
	err := lab.In(p.From, func() (err error) {
		pinger, err = bench.NewPinger(p.Addr, bench.Ping{Timeout: 200 * time.Millisecond})
		return err
	})
	if err != nil {
		return err
	}
	defer pinger.Close()
	r, err := pinger.Run(ctx)
	if err == nil && r.Received == 0 {
		err = fmt.Errorf("%s does not reach %s", p.From, p.Addr)
	}
	return err
}

// restart ends a daemon and starts it again, as a supervisor does.
func restart(sig syscall.Signal) func(context.Context, *chaos, lab.Node) error {
	return func(ctx context.Context, c *chaos, n lab.Node) error {
		if err := c.lab.StopNode(ctx, n.Number, sig); err != nil {
			return err
		}
		return c.lab.StartNode(ctx, n.Number)
	}
}

func pause(ctx context.Context, c *chaos, n lab.Node) error {
	if err := c.lab.SignalNode(n.Number, syscall.SIGSTOP); err != nil {
		return err
	}
	sleep(ctx, 3*time.Second)
	return c.lab.SignalNode(n.Number, syscall.SIGCONT)
}

// inNode runs a change to the node's kernel in its namespace.
func inNode(change func() error) func(context.Context, *chaos, lab.Node) error {
	return func(_ context.Context, _ *chaos, n lab.Node) error { return lab.In(n.Namespace, change) }
}

func onLink(name string, change func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return change(link)
}

func deleteRoutes() error {
	return onLink(tapName, func(link netlink.Link) error {
		routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
		for i := range routes {
			err = errors.Join(err, netlink.RouteDel(&routes[i]))
		}
		return err
	})
}

func deleteAddrs() error {
	return onLink(tapName, func(link netlink.Link) error {
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		for i := range addrs {
			err = errors.Join(err, netlink.AddrDel(link, &addrs[i]))
		}
		return err
	})
}

func deleteNeighbours() error {
	for _, name := range []string{tapName, linkName} {
		err := onLink(name, func(link netlink.Link) error {
			all, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
			for i := range all {
				netlink.NeighDel(&all[i]) // one that has gone by itself is as well
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func flap(ctx context.Context, _ *chaos, n lab.Node) error {
	set := func(change func(netlink.Link) error) error {
		return lab.In(n.Namespace, func() error { return onLink(linkName, change) })
	}
	if err := set(netlink.LinkSetDown); err != nil {
		return err
	}
	sleep(ctx, 2*time.Second)
	return set(netlink.LinkSetUp)
}

func narrow(ctx context.Context, c *chaos, n lab.Node) error {
	set := func(mtu int) error {
		return lab.In(n.Namespace, func() error {
			return onLink(linkName, func(link netlink.Link) error { return netlink.LinkSetMTU(link, mtu) })
		})
	}
	if err := set(1400); err != nil {
		return err
	}
	sleep(ctx, 4*time.Second)
	return set(c.lab.MTU())
}

// wire puts a bad wire before the node for a while.
func wire(d time.Duration, out, in impair.Spec) func(context.Context, *chaos, lab.Node) error {
	return func(ctx context.Context, c *chaos, n lab.Node) error {
		out, in := out, in
		out.Seed, in.Seed = c.random.Uint64(), c.random.Uint64()
		i, err := c.lab.Impair(n.Number, out, in)
		if err != nil {
			return err
		}
		sleep(ctx, d)
		return i.Stop()
	}
}
