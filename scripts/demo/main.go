// Command demo builds a lab of three nodes with two pods each, shows that packets get where they should, and removes it.
//
// It owns the run and its verdict, not the lab (scripts/lab) nor the traffic (bench). Each step is a line with a tick or a
// cross; the exit code is 0 iff all have ticks, 1 if not, 2 on wrong usage.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/scripts/lab"
)

// limit is how long lab and steps may take in all; the wait for another lab to end is not counted.
const limit = 60 * time.Second

func main() {
	tulle := flag.String("tulle", "bin/tulle", "the binary to show")
	bytes := flag.Int64("bytes", 0, "size of the TCP transfer; with two families, of both together (default: 1 GiB; 256 MiB with a device that is not tap)")
	dir := flag.String("dir", "/run/tulle-demo", "directory of the lab")
	store := flag.String("store", lab.StoreGossip, "where the nodes learn of each other: gossip or file")
	family := flag.String("family", lab.FamilyV4, "addresses of underlay and pods: v4, v6 or dual")
	backend := flag.String("backend", lab.BackendVXLAN, "how packets get from node to node: vxlan or udp")
	device := flag.String("device", lab.DeviceTAP, "what the daemons have towards their kernels: tap, tun or water")
	underlay := flag.String("underlay", "udp", "sockets of the daemons that carry the tunnel: udp or packet")
	routed := flag.Bool("routed", false, "put a router between the nodes")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo:", lab.ErrNotRoot)
		os.Exit(2)
	}
	if _, err := os.Stat(*tulle); err != nil {
		fmt.Fprintf(os.Stderr, "demo: -tulle: %v: build it with: make build\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := lab.Config{Dir: *dir, Nodes: 3, Pods: 2, Store: *store, Family: *family, Backend: *backend, Device: *device, Routed: *routed,
		NodeArgs: []string{"--underlay", *underlay}, Executable: *tulle, Ephemeral: true, Progress: os.Stderr}
	if err := c.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	if *bytes == 0 {
		*bytes = transferSize(*device)
	}
	if !run(ctx, c, *bytes) {
		os.Exit(1)
	}
}

// transferSize leaves a busy machine time within the limit.
func transferSize(device string) int64 {
	if device == lab.DeviceTAP {
		return 1 << 30
	}
	return 1 << 28
}

// run says whether all went well, the removal of the lab included.
func run(ctx context.Context, c lab.Config, bytes int64) bool {
	l, err := lab.Up(ctx, c)
	if err != nil {
		fmt.Printf("✗ lab: %v\n", err)
		return false
	}
	start := l.Created()
	fmt.Printf("✓ lab: %d nodes with %d pods each; %v after the last daemon's start all know all (store %s, family %s, backend %s, device %s)\n",
		c.Nodes, c.Pods, l.Converged().Round(time.Millisecond), l.Store(), l.Family(), l.Backend(), l.Device())
	d := &demo{lab: l, nodes: l.Nodes(), bytes: bytes}
	failed := d.steps(ctx, start.Add(limit))
	if failed != nil {
		printLogs(l)
	}
	if err := l.Down(); err != nil {
		fmt.Printf("✗ remove the lab: %v\n", err)
		return false
	}
	elapsed := time.Since(start).Round(100 * time.Millisecond)
	if failed != nil {
		fmt.Printf("FAILED after %v: %v\n", elapsed, failed)
		return false
	}
	fmt.Printf("all passed: ping median RTT %s, TCP %s Gb/s (reading the source and hashing at both ends included), elapsed %v\n",
		strings.Join(d.rtt, ", "), strings.Join(d.gbps, ", "), elapsed)
	return true
}

// steps ends with the first that fails.
func (d *demo) steps(ctx context.Context, end time.Time) error {
	ctx, cancel := context.WithDeadlineCause(ctx, end, fmt.Errorf("the demo takes longer than %v", limit))
	defer cancel()
	exchange := func(size int) func(context.Context, int) (string, error) {
		return func(ctx context.Context, f int) (string, error) { return d.exchange(ctx, f, size) }
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) (string, error)
	}{
		{"ping every pod from every other pod", d.pingPods},
		{"ping every pod from every node", d.pingNodes},
		{"round trip between pods of two nodes", d.eachFamily(d.latency)},
		{"TCP between pods of two nodes", d.eachFamily(d.transfer)},
		{"UDP, 64 bytes", d.eachFamily(exchange(64))},
		{"UDP, 9000 bytes in fragments", d.eachFamily(exchange(9000))},
		{"no daemon, no packets: SIGSTOP, then SIGCONT", d.eachFamily(d.pause)},
		{"every packet accounted for", d.ledger},
	} {
		detail, err := step.run(ctx)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if err != nil {
			fmt.Printf("✗ %s: %v\n", step.name, err)
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Printf("✓ %s: %s\n", step.name, detail)
	}
	return nil
}

// printLogs shows the end of each daemon's log, for the lab's removal takes the files away.
func printLogs(l *lab.Lab) {
	for _, n := range l.Nodes() {
		b, _ := os.ReadFile(n.LogFile)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(os.Stderr, "log of %s (process %d, alive %t):\n", n.Name, n.PID, n.Alive)
		for _, line := range lines[max(0, len(lines)-10):] {
			fmt.Fprintln(os.Stderr, "  "+line)
		}
	}
}
