// Package restarts owns what it costs the traffic when a node's daemon is killed and started again, or gives way to another one: how long
// nothing comes, what is lost, doubled or out of order, which connections and which flows live on.
//
// It measures in a lab that somebody else made, of two nodes with a pod each and a holder beside each daemon.
package restarts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/scripts/lab"
)

// Plan says what to do to node 1's daemon, and under what. Zero values: nothing.
type Plan struct {
	Takeover    bool     // another daemon takes over; else SIGKILL and a start
	Times       int      // how often
	Streams     int      // TCP connections, half of them each way
	Rate        int      // datagrams a second, over all flows
	Size        int      // of each, bytes of payload; 0 for 200
	Executables []string // of the next daemons, in turns; none: always the lab's
}

const (
	udpFlows    = 4 // two each way
	udpSize     = 200
	streamPace  = 20 * time.Millisecond // of one connection: 200 bring 10,000 writes a second
	streamsEnd  = time.Minute
	roundLength = 1200 * time.Millisecond // of the datagrams around one restart: longer than a start takes
	quiet       = 300 * time.Millisecond
)

// Run does it. After each restart it calls after, if that is there.
func (p Plan) Run(ctx context.Context, l *lab.Lab, progress io.Writer, after func() error) (*result.Restarts, error) {
	r := &run{Plan: p, lab: l, out: &result.Restarts{What: "killed and started again", Rate: p.Rate}, builds: map[string]bool{}, processes: map[int]bool{}}
	if p.Takeover {
		r.out.What = "gave way to another"
	}
	defer r.close()
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	for i := range p.Times {
		if err := r.round(ctx, i); err != nil {
			return nil, fmt.Errorf("restart %d of %d: %w", i+1, p.Times, err)
		}
		if after != nil {
			if err := after(); err != nil {
				return nil, fmt.Errorf("after restart %d of %d: %w", i+1, p.Times, err)
			}
		}
		if (i+1)%10 == 0 && i+1 < p.Times {
			fmt.Fprintf(progress, "%s %d times of %d: %s\n", r.out.What, i+1, p.Times, r.out.Sum())
		}
	}
	return r.out, r.end(ctx)
}

type run struct {
	Plan
	lab       *lab.Lab
	out       *result.Restarts
	streams   bench.Streams
	sockets   []io.Closer
	udp       [][2]*net.UDPConn
	flows     map[string]Flow
	builds    map[string]bool
	processes map[int]bool
}

// begin opens all connections and notes node 1's flows.
func (r *run) begin(ctx context.Context) error {
	nodes := r.lab.Nodes()
	if len(nodes) != 2 || len(nodes[0].Pods) == 0 || len(nodes[1].Pods) == 0 {
		return errors.New("restarts: a lab of two nodes with a pod each is needed")
	}
	for i := range max(r.Streams, udpFlows) {
		from, to := nodes[i%2].Pods[0], nodes[1-i%2].Pods[0]
		way := lab.Pair{From: from.Namespace, To: to.Namespace, Addr: to.Addrs()[0]}
		if i < r.Streams {
			a, b, err := way.TCP(ctx)
			if err != nil {
				return err
			}
			r.sockets = append(r.sockets, a, b)
			r.streams.Start(a.(*net.TCPConn), b, streamPace)
		}
		if i < udpFlows {
			a, b, err := way.UDP()
			if err != nil {
				return err
			}
			r.sockets = append(r.sockets, a, b)
			r.udp = append(r.udp, [2]*net.UDPConn{a, b})
		}
	}
	if _, err := r.datagrams(ctx, 10); err != nil {
		return err
	}
	if err := r.notice(ctx); err != nil {
		return err
	}
	var err error
	r.flows, err = r.flowsNow(ctx)
	if err == nil && len(r.flows) < r.Streams+udpFlows {
		err = fmt.Errorf("node 1 has %d flows of %d connections", len(r.flows), r.Streams+udpFlows)
	}
	return err
}

// close ends everything that end has not.
func (r *run) close() {
	r.streams.Stop()
	for _, s := range r.sockets {
		s.Close()
	}
}

// datagrams sends so many over each of the UDP flows.
func (r *run) datagrams(ctx context.Context, count int) ([]bench.SequenceResult, error) {
	s := bench.Sequence{Count: count, Size: cmp.Or(r.Size, udpSize), Interval: time.Second * udpFlows / time.Duration(r.Rate), Quiet: quiet}
	results, errs := make([]bench.SequenceResult, len(r.udp)), make([]error, len(r.udp))
	var all sync.WaitGroup
	for i, c := range r.udp {
		all.Go(func() { results[i], errs[i] = s.Run(ctx, c[0], c[1]) })
	}
	all.Wait()
	return results, errors.Join(errs...)
}

// round is one restart, at a moment of chance of some datagrams.
func (r *run) round(ctx context.Context, i int) error {
	type sent struct {
		results []bench.SequenceResult
		err     error
	}
	done := make(chan sent, 1)
	go func() {
		results, err := r.datagrams(ctx, int(roundLength.Seconds()*float64(r.Rate)/udpFlows))
		done <- sent{results, err}
	}()
	time.Sleep(100*time.Millisecond + rand.N(300*time.Millisecond))
	err := r.restart(ctx, i)
	d := <-done
	if err := errors.Join(err, d.err); err != nil {
		return err
	}
	r.out.Times++
	for _, one := range d.results {
		r.out.Gaps = append(r.out.Gaps, one.LongestGap)
		r.out.Datagrams += one.Sent
		r.out.Lost += one.Lost()
		r.out.Doubled += one.Duplicates
		r.out.Reordered += one.Reordered
		r.out.Corrupt += one.Corrupt
	}
	return r.notice(ctx)
}

func (r *run) restart(ctx context.Context, i int) error {
	if len(r.Executables) > 0 {
		if err := r.lab.SetExecutable(ctx, r.Executables[i%len(r.Executables)]); err != nil {
			return err
		}
	}
	if r.Takeover {
		return r.lab.TakeOver(ctx, 1)
	}
	if err := r.lab.StopNode(ctx, 1, syscall.SIGKILL); err != nil {
		return err
	}
	return r.lab.StartNode(ctx, 1)
}

// notice asks the daemon which one it is.
func (r *run) notice(ctx context.Context) error {
	var status struct {
		PID     int    `json:"pid"`
		BuildID string `json:"buildID"`
	}
	n, err := r.lab.Node(1)
	if err == nil {
		err = ask(ctx, n, "/v1/status", &status)
	}
	if err != nil {
		return err
	}
	r.processes[status.PID], r.builds[status.BuildID] = true, true
	r.out.Processes, r.out.Builds = len(r.processes), len(r.builds)
	return nil
}

func (r *run) flowsNow(ctx context.Context) (map[string]Flow, error) {
	n, err := r.lab.Node(1)
	if err != nil {
		return nil, err
	}
	return Flows(ctx, n)
}

func ask(ctx context.Context, n lab.Node, path string, into any) error {
	b, err := n.Ask(ctx, path)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	return err
}

// A Flow is what one has for life.
type Flow struct {
	ID      string
	Created float64 // seconds of CLOCK_MONOTONIC
}

// Flows lists a node's TCP and UDP flows by what they are of.
func Flows(ctx context.Context, n lab.Node) (map[string]Flow, error) {
	var listed struct {
		Flows []struct {
			ID             string  `json:"id"`
			Proto          string  `json:"proto"`
			Src            string  `json:"src"`
			Dst            string  `json:"dst"`
			SrcPort        int     `json:"srcPort"`
			DstPort        int     `json:"dstPort"`
			CreatedSeconds float64 `json:"createdSeconds"`
		} `json:"flows"`
	}
	if err := ask(ctx, n, "/v1/flows", &listed); err != nil {
		return nil, err
	}
	flows := map[string]Flow{}
	for _, f := range listed.Flows {
		if f.Proto == "tcp" || f.Proto == "udp" {
			flows[fmt.Sprintf("%s %s:%d %s:%d", f.Proto, f.Src, f.SrcPort, f.Dst, f.DstPort)] = Flow{f.ID, f.CreatedSeconds}
		}
	}
	return flows, nil
}

// end compares the flows, and lets all connections end.
func (r *run) end(ctx context.Context) error {
	now, err := r.flowsNow(ctx)
	if err != nil {
		return err
	}
	for key, was := range r.flows {
		if now[key] == was {
			r.out.FlowsKept++
		}
	}
	r.out.Flows = len(r.flows)
	streams, all := r.streams.End(streamsEnd)
	if !all {
		return fmt.Errorf("TCP connections do not end within %v", streamsEnd)
	}
	r.out.Connections, r.out.ConnectionsLost, r.out.Stall = streams.Connections, len(streams.Lost), streams.Stall
	slices.Sort(r.out.Gaps)
	return nil
}
