package compare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/frames"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/scripts/lab"
)

// Sizes say how far Scale goes.
type Sizes struct {
	Flows, Peers, Pods []int // rising
	Duration           time.Duration
}

// ScaleSizes are those of a preset that has them: quick and full.
func ScaleSizes(preset string) (Sizes, error) {
	switch preset {
	case "quick":
		return Sizes{Flows: []int{1, 10_000}, Peers: []int{1, 50}, Pods: []int{1, 3}, Duration: 300 * time.Millisecond}, nil
	case "full":
		return Sizes{Flows: []int{1, 100, 1000, 10_000, 100_000, 1_000_000}, Peers: []int{1, 10, 100, 1000}, Pods: []int{1, 10, 50, 200}, Duration: 3 * time.Second}, nil
	}
	return Sizes{}, fmt.Errorf("preset %q: no such preset (have: quick, full)", preset)
}

const (
	scaleRate = 20_000 // frames a second, while costs are measured: far below what anything here can do
	fillRate  = 50_000 // while flows are made: a million have to be there before the first are forgotten
	scaleHops = 2      // the two nodes' kernels
)

// Scale sends traffic through two daemons whose tables grow, and writes what a packet costs them, in the format of Go benchmarks: CPU,
// allocations, memory, loss.
func Scale(ctx context.Context, sizes Sizes, o Options, out io.Writer) error {
	s := &scale{options: o, sizes: sizes, out: out}
	fmt.Fprintln(out, "pkg: github.com/tulle-net/tulle/bench/scale")
	for _, part := range []func(context.Context) error{s.flows, s.peers, s.pods, s.attach} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

type scale struct {
	options Options
	sizes   Sizes
	out     io.Writer
}

// up makes a lab of two tulle nodes.
func (s *scale) up(ctx context.Context, pods int, nodeArgs ...string) (*lab.Lab, error) {
	return lab.Up(ctx, lab.Config{Nodes: 2, Pods: pods, Dir: s.options.Dir, Store: lab.StoreFile, Executable: s.options.Executable, NodeArgs: nodeArgs, Ephemeral: true})
}

// withFrames makes a lab whose nodes are joined by frames while f runs.
func (s *scale) withFrames(ctx context.Context, f func(*lab.Lab, *frames.Pair) error, nodeArgs ...string) (err error) {
	l, err := s.up(ctx, 0, nodeArgs...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	p, err := openFrames(l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	return f(l, p)
}

// flows are frames of many flows.
func (s *scale) flows(ctx context.Context) error {
	return s.withFrames(ctx, func(l *lab.Lab, p *frames.Pair) error {
		for i, n := range s.sizes.Flows {
			fill := frames.Stream{Trial: uint64(2 * i), Count: n, Flows: n, Size: frames.MinSize, Rate: fillRate, Hops: scaleHops}
			r, err := p.Run(ctx, fill)
			if err != nil {
				return err
			}
			if fill.Late(r) && n > fillRate || r.Exact < n*99/100 {
				fmt.Fprintf(s.options.Progress, "flows=%d: refused: %d of %d flows made in %v\n", n, r.Exact, n, r.Elapsed)
				continue
			}
			if err := s.framePoint(ctx, l, p, fmt.Sprintf("flows=%d", n), uint64(2*i+1), n); err != nil {
				return err
			}
		}
		return nil
	}, "--max-flows", fmt.Sprint(frames.MaxFlows), "--max-flows-per-source", fmt.Sprint(frames.MaxFlows))
}

// peers are frames to one node of many: the others are only in the tables.
func (s *scale) peers(ctx context.Context) error {
	return s.withFrames(ctx, func(l *lab.Lab, p *frames.Pair) error {
		file := filepath.Join(l.Dir(), "peers.json")
		known, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for i, n := range s.sizes.Peers {
			if err := addPeers(file, known, n-1); err != nil {
				return err
			}
			if err := awaitPeers(ctx, l, n); err != nil {
				return err
			}
			if err := s.framePoint(ctx, l, p, fmt.Sprintf("peers=%d", n), uint64(i), 256); err != nil {
				return err
			}
		}
		return nil
	})
}

// pods are datagrams from all pods of one node to one of the other.
func (s *scale) pods(ctx context.Context) error {
	for _, n := range s.sizes.Pods {
		if err := s.podPoint(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *scale) podPoint(ctx context.Context, n int) (err error) {
	l, err := s.up(ctx, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	client, server, err := pinned()
	if err != nil {
		return err
	}
	place := func(node, pod, cpu int) bench.Place {
		p := l.Nodes()[node].Pods[pod]
		return End{p.Namespace, p.Addrs()[0]}.place(cpu)
	}
	ends := bench.Ends{Client: place(0, 0, client), Server: place(1, n-1, server)}
	for i := range n {
		ends.Sources = append(ends.Sources, place(0, i, client))
	}
	u, err := bench.OpenUDP(ends, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.Close()) }()
	stream := bench.Stream{Flows: n, Rate: scaleRate, Duration: s.sizes.Duration, Batch: 1}
	return s.point(ctx, l, fmt.Sprintf("pods=%d", n), func() (sent, arrived int, late bool, err error) {
		r, err := u.Run(ctx, stream)
		return int(r.Sent), int(r.Received), r.SentRate() < generatorShare*scaleRate, err
	})
}

func (s *scale) framePoint(ctx context.Context, l *lab.Lab, p *frames.Pair, label string, trial uint64, flows int) error {
	stream := frames.Stream{Trial: trial, Count: int(scaleRate * s.sizes.Duration.Seconds()), Flows: flows, Size: frames.MinSize + 64, Rate: scaleRate, Hops: scaleHops}
	return s.point(ctx, l, label, func() (sent, arrived int, late bool, err error) {
		r, err := p.Run(ctx, stream)
		if r.Changed > 0 {
			err = errors.Join(err, fmt.Errorf("%d frames changed on the way, the first to % x", r.Changed, r.FirstBad))
		}
		return r.Sent, r.Exact, stream.Late(r), err
	})
}

// point measures what run costs the daemons, and writes it unless the generator was too slow.
func (s *scale) point(ctx context.Context, l *lab.Lab, label string, run func() (sent, arrived int, late bool, err error)) error {
	m := &session{}
	for _, n := range l.Nodes() {
		m.daemons = append(m.daemons, daemon{n})
	}
	var sent, arrived int
	var late bool
	spent, err := m.spent(ctx, s.sizes.Duration, func() (err error) {
		sent, arrived, late, err = run()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	if late || arrived == 0 {
		fmt.Fprintf(s.options.Progress, "%s: refused: %d sent in %v, %d arrived\n", label, sent, s.sizes.Duration, arrived)
		return nil
	}
	n := float64(arrived)
	cpu, allocs, memory := spent.cpu*1e9/n, spent.allocs/n, spent.memory/float64(len(m.daemons))
	fmt.Fprintf(s.options.Progress, "%s: %s, %s, %s for each daemon, %d of %d lost\n", label, result.Format(cpu, result.CPUPacket),
		result.Format(allocs, result.Allocs), result.Format(memory, result.Bytes), sent-arrived, sent)
	_, err = fmt.Fprintf(s.out, "BenchmarkTraffic/%s %d %.0f %s %.4f %s %.2f MiB/daemon %.6f lost/packet\n", label, arrived, cpu, result.CPUPacket, allocs, result.Allocs,
		memory/(1<<20), float64(sent-arrived)/float64(sent))
	return err
}

// openFrames joins two addresses, one in each node's subnet, that are no pod's.
func openFrames(l *lab.Lab) (*frames.Pair, error) {
	var ends [2]frames.End
	for i, n := range l.Nodes() {
		a := n.Subnet.Addr().As4()
		a[3] += 251
		ends[i] = frames.End{Name: "tulle-frames", Addr: netip.AddrFrom4(a), In: func(f func() error) error { return lab.In(n.Namespace, f) }}
	}
	return frames.Open(ends[0], ends[1])
}

// addPeers writes a peers file of what was in it and n more, which nobody answers for.
func addPeers(file string, known []byte, n int) error {
	var peers []map[string]any
	if err := json.Unmarshal(known, &peers); err != nil {
		return err
	}
	for i := range n {
		subnet := netip.AddrFrom4([4]byte{10, 244, byte(128 + i>>4), byte(i << 4)})
		peers = append(peers, map[string]any{"name": fmt.Sprintf("x%d", i), "publicIP": netip.AddrFrom4([4]byte{172, 31, byte(i >> 8), byte(i)}),
			"subnet": netip.PrefixFrom(subnet, 28), "backendType": "vxlan",
			"backendData": map[string]any{"VNI": 1, "VtepMAC": fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255)}})
	}
	b, err := json.Marshal(peers)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// awaitPeers waits until both daemons route to n peers.
func awaitPeers(ctx context.Context, l *lab.Lab, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, node := range l.Nodes() {
		for {
			out, err := l.Status(ctx, node.Number)
			var s struct {
				Peers []struct {
					Routable bool `json:"routable"`
				} `json:"peers"`
			}
			if err == nil {
				err = json.Unmarshal(out, &s)
			}
			routable := 0
			for _, p := range s.Peers {
				if p.Routable {
					routable++
				}
			}
			if err == nil && routable == n {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s: %d of %d peers: %w", node.Name, routable, n, errors.Join(ctx.Err(), err))
			}
			sleep(ctx, 50*time.Millisecond)
		}
	}
	return nil
}
