package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

const parallel = 6 // pings at a time

// demo is one run. rtt and gbps are what the summary shows, of each family.
type demo struct {
	lab   *lab.Lab
	nodes []lab.Node
	bytes int64 // of all families together
	rtt   []string
	gbps  []string
}

// families is the number of them; each step of one family is given its place.
func (d *demo) families() int { return len(d.nodes[0].Pods[0].Addrs()) }

// eachFamily makes one step of a step for every family of the lab.
func (d *demo) eachFamily(step func(context.Context, int) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		var details []string
		for f := range d.families() {
			detail, err := step(ctx, f)
			if err != nil {
				return "", fmt.Errorf("%s: %w", d.far(f, 2).Addr, err)
			}
			details = append(details, detail)
		}
		return strings.Join(details, "; IPv6: "), nil
	}
}

// far goes from the first pod of the first node to an address of the first pod of another.
func (d *demo) far(f, number int) lab.Pair {
	to := d.nodes[number-1].Pods[0]
	return lab.Pair{From: d.nodes[0].Pods[0].Namespace, To: to.Namespace, Addr: to.Addrs()[f]}
}

func (d *demo) pingPods(ctx context.Context) (string, error)  { return pingAll(ctx, d.lab.PodPairs()) }
func (d *demo) pingNodes(ctx context.Context) (string, error) { return pingAll(ctx, d.lab.NodePairs()) }

// pingAll demands that nothing is lost on any of the pairs.
func pingAll(ctx context.Context, pairs []lab.Pair) (string, error) {
	slots := make(chan struct{}, parallel)
	errs := make([]error, len(pairs))
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			_, errs[i] = pingWhole(ctx, p, bench.Ping{Count: 5, Interval: 10 * time.Millisecond, Size: 56})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d pairs, 5 of 5 answered on each", len(pairs)), nil
}

func ping(ctx context.Context, p lab.Pair, opts bench.Ping) (bench.PingResult, error) {
	var pinger *bench.Pinger
	err := lab.In(p.From, func() (err error) {
		pinger, err = bench.NewPinger(p.Addr, opts)
		return err
	})
	if err != nil {
		return bench.PingResult{}, err
	}
	defer pinger.Close()
	return pinger.Run(ctx)
}

// pingWhole takes anything but one right answer to each request for an error.
func pingWhole(ctx context.Context, p lab.Pair, opts bench.Ping) (bench.PingResult, error) {
	r, err := ping(ctx, p, opts)
	if err == nil && (r.Lost() > 0 || r.Duplicates > 0 || r.Corrupt > 0) {
		err = fmt.Errorf("%d of %d answered, %d late, %d twice, %d changed", r.Received, r.Sent, r.Late, r.Duplicates, r.Corrupt)
		if r.Err != nil {
			err = fmt.Errorf("%w (%w)", err, r.Err)
		}
	}
	if err != nil {
		err = fmt.Errorf("%s to %s: %w", p.From, p.To, err)
	}
	return r, err
}

func (d *demo) latency(ctx context.Context, f int) (string, error) {
	r, err := pingWhole(ctx, d.far(f, 2), bench.Ping{Count: 200, Interval: 5 * time.Millisecond, Size: 56})
	us := time.Microsecond
	d.rtt = append(d.rtt, r.Median().Round(us).String())
	return fmt.Sprintf("200 of 200, min %v median %v max %v", r.Min().Round(us), r.Median().Round(us), r.Max().Round(us)), err
}

// transfer sends the family's part of the random bytes and holds the daemons' counters against what was sent.
func (d *demo) transfer(ctx context.Context, f int) (string, error) {
	bytes := d.bytes / int64(d.families())
	source, err := os.Open("/dev/urandom")
	if err != nil {
		return "", err
	}
	defer source.Close()
	var before, after [2]status
	if before, err = d.twoStatuses(ctx); err != nil {
		return "", err
	}
	from, to, err := d.far(f, 2).TCP(ctx)
	if err != nil {
		return "", err
	}
	defer from.Close()
	defer to.Close()
	r, err := bench.Transfer(ctx, source, bytes, from, to)
	if err != nil {
		return "", err
	}
	d.gbps = append(d.gbps, fmt.Sprintf("%.2f", r.Gbps()))
	if after, err = d.twoStatuses(ctx); err != nil {
		return "", err
	}
	if err := d.checkCounters(before, after, bytes); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes of /dev/urandom in %v, SHA-256 equal (%x...), both daemons counted them", r.Received,
		r.Duration.Round(10*time.Millisecond), r.SentSum[:4]), nil
}

// checkCounters holds the counters of the sender's and the receiver's daemon against the size of the transfer.
func (d *demo) checkCounters(before, after [2]status, sent int64) error {
	for _, c := range []struct {
		node  int
		what  string
		bytes int64
	}{
		{0, "tap in", after[0].port("tap").BytesIn - before[0].port("tap").BytesIn},
		{0, "underlay out", after[0].port("underlay").BytesOut - before[0].port("underlay").BytesOut},
		{1, "underlay in", after[1].port("underlay").BytesIn - before[1].port("underlay").BytesIn},
		{1, "tap out", after[1].port("tap").BytesOut - before[1].port("tap").BytesOut},
	} {
		if c.bytes < sent {
			return fmt.Errorf("%d bytes sent, but the daemon of %s counts %d %s", sent, d.nodes[c.node].Name, c.bytes, c.what)
		}
	}
	return nil
}

func (d *demo) exchange(ctx context.Context, f, size int) (string, error) {
	const count = 100
	from, to, err := d.far(f, 3).UDP()
	if err != nil {
		return "", err
	}
	defer from.Close()
	defer to.Close()
	r, err := bench.Exchange(ctx, from, to, size, count, time.Second)
	if err == nil && r.Answered != count {
		err = fmt.Errorf("%d of %d answered, %d changed", r.Answered, r.Sent, r.Mismatched)
	}
	return fmt.Sprintf("%d of %d echoed, every byte equal both ways", r.Answered, r.Sent), err
}

// pause proves that the daemon carries the packets: pings through it fail exactly while it is stopped.
func (d *demo) pause(ctx context.Context, f int) (detail string, err error) {
	through, past := d.far(f, 2), d.far(f, 3)
	if err := d.lab.SignalNode(2, syscall.SIGSTOP); err != nil {
		return "", err
	}
	r, err := ping(ctx, through, bench.Ping{Count: 5, Interval: 20 * time.Millisecond, Timeout: 300 * time.Millisecond})
	_, errPast := pingWhole(ctx, past, bench.Ping{Count: 5, Interval: 20 * time.Millisecond})
	if err := errors.Join(err, errPast, d.lab.SignalNode(2, syscall.SIGCONT)); err != nil {
		return "", err
	}
	if r.Received > 0 {
		return "", fmt.Errorf("%s stopped, and %d of %d pings to its pod answered", d.nodes[1].Name, r.Received, r.Sent)
	}
	began := time.Now()
	for {
		if _, err = pingWhole(ctx, through, bench.Ping{Count: 5, Interval: 10 * time.Millisecond, Timeout: 500 * time.Millisecond}); err == nil {
			break
		}
		if ctx.Err() != nil || time.Since(began) > 5*time.Second {
			return "", fmt.Errorf("after SIGCONT: %w", err)
		}
	}
	return fmt.Sprintf("0 of %d answered by pods of %s while stopped, 5 of 5 by pods of %s; all again %v after SIGCONT", r.Sent,
		d.nodes[1].Name, d.nodes[2].Name, time.Since(began).Round(time.Millisecond)), nil
}

// status is what the demo reads of `tulle status -o json`.
type status struct {
	Engine struct {
		Ports  []port `json:"ports"`
		Ledger ledger `json:"ledger"`
	} `json:"engine"`
	Verdicts map[string]int64 `json:"verdicts"`
}

type port struct {
	Name     string `json:"name"`
	BytesIn  int64  `json:"bytesIn"`
	BytesOut int64  `json:"bytesOut"`
}

type ledger struct {
	In, Generated, Inherited, Out, Consumed, Dropped, Queued int64
}

func (l ledger) balanced() bool {
	return l.In+l.Generated+l.Inherited == l.Out+l.Consumed+l.Dropped+l.Queued
}

// port adds up the ports whose names begin with name: there is an underlay for each address family.
func (s status) port(name string) (sum port) {
	for _, p := range s.Engine.Ports {
		if strings.HasPrefix(p.Name, name) {
			sum.BytesIn += p.BytesIn
			sum.BytesOut += p.BytesOut
		}
	}
	return sum
}

// drops names what the daemon dropped.
func (s status) drops() map[string]int64 {
	m := map[string]int64{}
	for name, n := range s.Verdicts {
		if strings.HasPrefix(name, "drop_") && n > 0 {
			m[name] = n
		}
	}
	return m
}

func (d *demo) status(ctx context.Context, number int) (s status, err error) {
	out, err := d.lab.Status(ctx, number)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("status of node %d: %w", number, err)
	}
	return s, nil
}

// twoStatuses are those of the nodes that the transfer runs between.
func (d *demo) twoStatuses(ctx context.Context) (s [2]status, err error) {
	for i := range s {
		if s[i], err = d.status(ctx, i+1); err != nil {
			return s, err
		}
	}
	return s, nil
}

// ledger waits until a node's counters rest, then holds it to: what came in or was made went out, was consumed, was
// dropped under a name, or is queued. Counters that never rest are judged as they are after 5 s.
func (d *demo) ledger(ctx context.Context) (string, error) {
	var segments, dropped int64
	for _, n := range d.nodes {
		s, err := d.rested(ctx, n.Number)
		if err != nil {
			return "", err
		}
		l := s.Engine.Ledger
		if !l.balanced() || l.In == 0 {
			return "", fmt.Errorf("node %s: %+v does not add up", n.Name, l)
		}
		var named int64
		for _, c := range s.drops() {
			named += c
		}
		if named != l.Dropped {
			return "", fmt.Errorf("node %s: %d dropped, but %d by name: %v", n.Name, l.Dropped, named, s.drops())
		}
		segments += l.In
		dropped += l.Dropped
	}
	return fmt.Sprintf("%d segments into %d engines, in + generated + inherited = out + consumed + dropped (%d) + queued on each",
		segments, len(d.nodes), dropped), nil
}

func (d *demo) rested(ctx context.Context, number int) (s status, err error) {
	var last ledger
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if s, err = d.status(ctx, number); err != nil {
			return s, err
		}
		if s.Engine.Ledger == last || time.Now().After(end) {
			return s, nil
		}
		last = s.Engine.Ledger
	}
}
