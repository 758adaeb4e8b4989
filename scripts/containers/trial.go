package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

const (
	transferSize = 100_000_000 // bytes
	transferPort = 7000
	// hostPort is mapped by tulle, chainedPort by the upstream plugin.
	hostPort, chainedPort = 18080, 18081
)

// trial is one run.
type trial struct {
	tulle      string
	lab        *lab.Lab
	machines   []*machine
	before     []string
	containers []*container
}

// run builds the lab and goes through the steps, each a line. What is left at the end goes with the namespaces.
func (t *trial) run(ctx context.Context) (err error) {
	t.lab, err = lab.Up(ctx, lab.Config{Dir: filepath.Join(work, "lab"), Nodes: 2, Executable: t.tulle, NodeArgsFor: cniArgs, Ephemeral: true, Progress: os.Stderr})
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer func() {
		for _, m := range t.machines {
			m.stop()
		}
		err = errors.Join(err, t.lab.Down())
	}()
	for _, step := range []struct {
		name string
		run  func(context.Context) (string, error)
	}{
		{"containerd and podman on each node, with an image", t.prepare},
		{"containers by ctr run --cni and by podman", t.start},
		{"ping from each to each, across nodes and on one", t.ping},
		{"100 MB of TCP both ways", t.transfer},
		{"through a port of the node", t.ports},
		{"gone without a trace", t.end},
	} {
		start := time.Now()
		detail, err := step.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Printf("✓ %s: %s (%v)\n", step.name, detail, time.Since(start).Round(100*time.Millisecond))
	}
	return nil
}

func (t *trial) prepare(ctx context.Context) (string, error) {
	archive := filepath.Join(work, "image.tar")
	if err := writeImage(archive); err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	for _, n := range t.lab.Nodes() {
		m, err := newMachine(ctx, n, archive)
		if m != nil {
			t.machines = append(t.machines, m)
		}
		if err != nil {
			return "", err
		}
	}
	var err error
	if t.before, err = t.traces(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, native snapshotter, vfs", image), nil
}

// start makes, on each node, one container by containerd, one by podman, and one whose port the upstream plugin maps.
func (t *trial) start(ctx context.Context) (string, error) {
	for _, m := range t.machines {
		own := &byPodman{network: "tulle", port: hostPort}
		for kind, how := range map[string]handler{"ctr": &byContainerd{}, "podman": own, "chained": &byPodman{network: chained, port: chainedPort}} {
			t.containers = append(t.containers, &container{name: m.Name + "-" + kind, on: m, how: how})
		}
	}
	errs := make([]error, len(t.containers))
	var wg sync.WaitGroup
	for i, c := range t.containers {
		wg.Go(func() { errs[i] = c.begin(ctx) })
	}
	wg.Wait()
	var names []string
	for _, c := range t.containers {
		names = append(names, fmt.Sprintf("%s %v", c.name, c.addr))
	}
	return strings.Join(names, ", "), errors.Join(errs...)
}

func (t *trial) ping(ctx context.Context) (string, error) {
	errs := make([]error, len(t.containers))
	var wg sync.WaitGroup
	for i, from := range t.containers {
		wg.Go(func() { errs[i] = t.pingAll(ctx, from) })
	}
	wg.Wait()
	return fmt.Sprintf("%d pairs, 3 of 3 answered on each", len(errs)*(len(errs)-1)), errors.Join(errs...)
}

func (t *trial) pingAll(ctx context.Context, from *container) error {
	for _, to := range t.containers {
		if from == to {
			continue
		}
		out, err := from.exec(ctx, "ping -c 3 -i 0.2 %v", to.addr)
		if err == nil && !strings.Contains(out, " 0% packet loss") {
			err = fmt.Errorf("%s to %s: %s", from.name, to.name, out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find gives the container of a kind on a node.
func (t *trial) find(m *machine, kind string) *container {
	for _, c := range t.containers {
		if c.name == m.Name+"-"+kind {
			return c
		}
	}
	return nil
}

func (t *trial) transfer(ctx context.Context) (string, error) {
	a, b := t.machines[0], t.machines[1]
	var pairs [][2]*container
	for _, kind := range []string{"ctr", "podman"} {
		pairs = append(pairs, [2]*container{t.find(a, kind), t.find(b, kind)}, [2]*container{t.find(b, kind), t.find(a, kind)})
	}
	details, errs := make([]string, len(pairs)), make([]error, len(pairs))
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() {
			sum, err := send(ctx, p[0], p[1])
			if err != nil {
				errs[i] = fmt.Errorf("%s to %s: %w", p[0].name, p[1].name, err)
				return
			}
			details[i] = fmt.Sprintf("%s to %s SHA-256 %s...", p[0].name, p[1].name, sum[:8])
		})
	}
	wg.Wait()
	return strings.Join(details, ", "), errors.Join(errs...)
}

// send has both ends hash what passes, and compares. The receiver's input stays open: its nc would say that it is done, and the sender's
// would believe it.
func send(ctx context.Context, from, to *container) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		out string
		err error
	}
	received := make(chan answer, 1)
	go func() {
		out, err := to.exec(ctx, "rm -f /h; mkfifo /h; sleep 300 >/h & nc -l -p %d </h | sha256sum; kill $!", transferPort)
		received <- answer{out, err}
	}()
	err := until(ctx, func() error { _, err := to.exec(ctx, "netstat -ltn | grep -q :%d", transferPort); return err })
	if err != nil {
		return "", err
	}
	sent, err := from.exec(ctx, "rm -f /f; mkfifo /f; sha256sum </f & head -c %d /dev/urandom | tee /f | nc %v %d; wait", transferSize, to.addr, transferPort)
	if err != nil {
		return "", err
	}
	select {
	case r := <-received:
		if r.err != nil {
			return "", r.err
		}
		if r.out != sent || len(sent) < 64 {
			return "", fmt.Errorf("sent %s, received %s", sent, r.out)
		}
		return sent, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// ports asks for each node's mapped ports: from the other node, from a container there and, where tulle itself maps them, from one of the same
// node. With the upstream plugin that one gets no answer: between containers of a node the engine carries it past the kernel's NAT.
func (t *trial) ports(ctx context.Context) (string, error) {
	asked := 0
	for i, m := range t.machines {
		for _, kind := range []string{"podman", "chained"} {
			to := t.find(m, kind)
			at := netip.AddrPortFrom(m.PublicIP, uint16(to.how.(*byPodman).port))
			for who, answer := range t.answers(ctx, t.machines[1-i], to, at) {
				out, err := answer()
				if err == nil && out != to.name {
					err = fmt.Errorf("%q answered", out)
				}
				if err != nil {
					return "", fmt.Errorf("port %v from %s, which %s should answer: %w", at, who, to.name, err)
				}
				asked++
			}
		}
	}
	return fmt.Sprintf("%d requests answered by the right container", asked), nil
}

// answers gives, by who asks, the ways to ask at a mapped port of a container's node.
func (t *trial) answers(ctx context.Context, other *machine, to *container, at netip.AddrPort) map[string]func() (string, error) {
	ways := map[string]func() (string, error){other.Name: func() (string, error) { return other.get(ctx, at) }}
	askers := []*container{t.find(other, "ctr")}
	if to.how.(*byPodman).network != chained {
		askers = append(askers, t.find(to.on, "ctr"))
	}
	for _, c := range askers {
		ways[c.name] = func() (string, error) { return c.exec(ctx, "timeout 10 wget -q -O - http://%v/", at) }
	}
	return ways
}

// end removes the containers and compares what is there with what was before.
func (t *trial) end(ctx context.Context) (string, error) {
	for _, c := range t.containers {
		if err := c.how.remove(ctx, c); err != nil {
			return "", err
		}
	}
	err := until(ctx, func() error {
		after, err := t.traces(ctx)
		if err != nil {
			return err
		}
		if d := difference(t.before, after); len(d) > 0 {
			return fmt.Errorf("it differs from before (-: gone, +: left):\n%s", strings.Join(d, "\n"))
		}
		return nil
	})
	return fmt.Sprintf("%d facts are as they were: links, addresses, routes, rules, nftables, leases, namespaces, mounts, processes, cgroups", len(t.before)), err
}
