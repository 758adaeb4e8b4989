package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/encap"
)

const (
	// maxPings bounds the pings that run at a time, minPingInterval the load that one makes.
	maxPings        = 64
	minPingInterval = time.Millisecond
	maxPingWait     = time.Minute
	// pingAnswers is how many answers of one ping may wait to be looked at. Further ones are lost.
	pingAnswers = 256
)

// What a ping asks on the other node.
const (
	pingNode   = "node"   // its own address in the network: its kernel answers
	pingEngine = "engine" // its engine's
	pingBoth   = "both"
)

// A pingLine is a line of a ping's stream: a head, then replies, then the end.
type pingLine struct {
	Head  *pingHead   `json:"head,omitempty"`
	Reply *pingReply  `json:"reply,omitempty"`
	End   *pathReport `json:"end,omitempty"`
}

// A pingHead says who is asked.
type pingHead struct {
	SchemaVersion int    `json:"schemaVersion"`
	Node          string `json:"node"`
	Outer         string `json:"outer"`                // the other node's address on the underlay
	NodeAddr      string `json:"nodeAddr,omitempty"`   // the address asked, unless only the engine is
	EngineAddr    string `json:"engineAddr,omitempty"` // the address asked, unless only the node is
	Length        int    `json:"length"`               // of a request as inner IP packet, bytes
}

// A pingReply is what became of one request.
type pingReply struct {
	Seq int    `json:"seq"`
	To  string `json:"to"` // node or engine
	// RTTMillis is from just before the request's send call until the engine has taken the answer; absent without one.
	RTTMillis *float64 `json:"rttMilliseconds,omitempty"`
	// EngineMillis is the part of it in this node's engine: since the worker began to read the batch that the answer came in.
	EngineMillis float64 `json:"engineMilliseconds,omitempty"`
	// PathMillis is the rest: this kernel's sending, the wire, the other node, and the wait in this node's socket.
	PathMillis float64 `json:"pathMilliseconds,omitempty"`
	Problem    string  `json:"problem,omitempty"` // why there is no answer, as far as it is known
	Duplicate  bool    `json:"duplicate,omitempty"`
}

// A pingRequest is what a ping is asked for.
type pingRequest struct {
	node     string
	family   int    // 4, 6, or 0 for what there is, IPv4 first
	to       string // pingNode, pingEngine or pingBoth
	count    int    // 0 for no end
	interval time.Duration
	wait     time.Duration // for each answer
	size     int           // of the ICMP payload, bytes
}

func parsePing(q url.Values) (p pingRequest, err error) {
	p = pingRequest{node: q.Get("node"), to: q.Get("to")}
	if p.node == "" {
		return p, errors.New("a node is needed: its name, or an address of its")
	}
	if p.to != pingNode && p.to != pingEngine && p.to != pingBoth {
		return p, fmt.Errorf("--to %s: unknown (allowed: node, engine, both)", p.to)
	}
	for _, n := range []struct {
		key, flag string
		to        *int
		from, up  int
	}{{"family", "family", &p.family, 0, 6}, {"count", "--count", &p.count, 0, 1 << 30}, {"size", "--size", &p.size, 0, 65535 - 48}} {
		if *n.to, err = strconv.Atoi(q.Get(n.key)); err != nil || *n.to < n.from || *n.to > n.up {
			return p, fmt.Errorf("%s %s: out of range (allowed: %d to %d)", n.flag, q.Get(n.key), n.from, n.up)
		}
	}
	for _, d := range []struct {
		key      string
		to       *time.Duration
		from, up time.Duration
	}{{"interval", &p.interval, minPingInterval, time.Hour}, {"timeout", &p.wait, time.Millisecond, maxPingWait}} {
		if *d.to, err = time.ParseDuration(q.Get(d.key)); err != nil || *d.to < d.from || *d.to > d.up {
			return p, fmt.Errorf("--%s %s: out of range (allowed: %v to %v)", d.key, q.Get(d.key), d.from, d.up)
		}
	}
	return p, nil
}

// pings are those that run, by the identifier of their requests. The zero value is ready. Its methods are safe for concurrent use.
type pings struct {
	mu  sync.Mutex // held for a look-up only: the engine's workers take it
	all map[uint16]*pingRun
}

// begin gives a ping its identifier, which is not the path MTU search's; false when too many run.
func (p *pings) begin(run *pingRun, taken uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) >= maxPings {
		return false
	}
	if p.all == nil {
		p.all = map[uint16]*pingRun{}
	}
	for run.id == 0 || run.id == taken || p.all[run.id] != nil {
		run.id = uint16(rand.Uint32())
	}
	p.all[run.id] = run
	return true
}

func (p *pings) end(run *pingRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, run.id)
}

func (p *pings) answered(answer pingAnswer, id uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if run := p.all[id]; run != nil {
		select {
		case run.answers <- answer:
		default:
		}
	}
}

// answered is called by the engine's workers with each answer to a probe.
func (f *forwarder) answered(peer netip.Addr, id, seq uint16, _ int, read time.Duration) {
	if id == f.prober.id {
		f.prober.answered(peer, seq)
		return
	}
	f.pings.answered(pingAnswer{peer: peer, seq: seq, read: read, taken: f.now()}, id)
}

// A pingAnswer is an answer as the engine took it.
type pingAnswer struct {
	peer        netip.Addr // outer
	seq         uint16
	read, taken time.Duration
}

// A pingRun is one ping under way. It belongs to one goroutine, but for answers.
type pingRun struct {
	pingRequest
	forwarder *forwarder
	out       *lineWriter
	id        uint16
	answers   chan pingAnswer
	batch     *packet.Batch
	sent      int // of requests, rounds
	waiting   map[uint16]*pingProbe
	recent    map[uint16]*pingProbe // answered, for duplicates
}

// A pingProbe is one request.
type pingProbe struct {
	round int
	to    string
	outer netip.Addr
	at    time.Duration
}

// answerPing runs a ping for as long as its client wants.
func (d *daemon) answerPing(w http.ResponseWriter, r *http.Request) {
	request, err := parsePing(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	peer, status, err := d.findPeer(request.node, request.family)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	if !d.config.tunnels() {
		http.Error(w, fmt.Sprintf("backend %s has no tunnel to ping through: ping %s, which the kernel sends natively", d.config.conf.Backend.Type, peer.Probe), http.StatusBadRequest)
		return
	}
	run := &pingRun{
		pingRequest: request, forwarder: d.forwarder, answers: make(chan pingAnswer, pingAnswers), batch: packet.NewBatch(0),
		waiting: map[uint16]*pingProbe{}, recent: map[uint16]*pingProbe{},
	}
	run.node, run.family = peer.Name, 6
	if peer.Sources[0].Addr().Is4() {
		run.family = 4
	}
	if !d.forwarder.pings.begin(run, d.forwarder.prober.id) {
		http.Error(w, fmt.Sprintf("%d pings run on this node already: end one of them", maxPings), http.StatusServiceUnavailable)
		return
	}
	defer d.forwarder.pings.end(run)
	run.out = newLineWriter(w)
	run.run(r.Context(), peer)
}

// A pingTarget is an address to ask.
type pingTarget struct {
	to   string // node or engine
	addr netip.Addr
}

func (r *pingRun) targets(peer *tables.Peer) (targets []pingTarget) {
	if r.to != pingEngine && peer.Probe.IsValid() {
		targets = append(targets, pingTarget{pingNode, peer.Probe})
	}
	if r.to != pingNode {
		targets = append(targets, pingTarget{pingEngine, control.EngineAddr(peer.Sources[0])})
	}
	return targets
}

func (r *pingRun) run(ctx context.Context, peer *tables.Peer) {
	head := &pingHead{SchemaVersion: schemaVersion, Node: peer.Name, Outer: peer.Endpoint.Addr().String(), Length: r.length()}
	for _, t := range r.targets(peer) {
		*map[string]*string{pingNode: &head.NodeAddr, pingEngine: &head.EngineAddr}[t.to] = t.addr.String()
	}
	if r.out.write(pingLine{Head: head}) != nil {
		return
	}
	ticker := time.NewTicker(r.interval)
	defer ticker.Stop()
	expiry := time.NewTicker(min(r.wait, 20*time.Millisecond))
	defer expiry.Stop()
	err := r.round()
	for err == nil && (r.count == 0 || r.sent < r.count || len(r.waiting) > 0) {
		select {
		case <-ctx.Done():
			return
		case a := <-r.answers:
			err = r.take(a)
		case <-expiry.C:
			err = r.expire()
		case <-ticker.C:
			if r.count == 0 || r.sent < r.count {
				err = r.round()
			}
		}
	}
	if err == nil {
		r.out.write(pingLine{End: r.path(peer)})
	}
}

// path is what the path MTU search knows.
func (r *pingRun) path(peer *tables.Peer) *pathReport {
	if all := r.forwarder.prober.reports(peer.Endpoint.Addr()); len(all) > 0 {
		return &all[0]
	}
	return &pathReport{To: peer.Endpoint.Addr().String(), MTU: peer.MTU}
}

func (r *pingRun) length() int {
	const icmpHeader = 8
	if r.family == 6 {
		return 40 + icmpHeader + r.size
	}
	return 20 + icmpHeader + r.size
}

// round sends a request to each target, by the tables of this moment. A failure of the client's connection is the error.
func (r *pingRun) round() error {
	r.sent++
	set := r.forwarder.tables()
	peer := peerCalled(set, r.node, r.family)
	if peer == nil {
		return r.report(&pingProbe{round: r.sent, to: r.first()}, "there is no route to it any more")
	}
	for _, t := range r.targets(peer) {
		probe := &pingProbe{round: r.sent, to: t.to, outer: peer.Endpoint.Addr()}
		seq := uint16(r.sent * 2)
		if t.to == pingEngine {
			seq++
		}
		delete(r.recent, seq)
		if err := r.send(set, peer, t.addr, seq, probe); err != nil {
			if err := r.report(probe, err.Error()); err != nil {
				return err
			}
			continue
		}
		r.waiting[seq] = probe
	}
	return nil
}

// first is what is asked, or the first of both.
func (r *pingRun) first() string {
	if r.to == pingEngine {
		return pingEngine
	}
	return pingNode
}

func (r *pingRun) send(set *tables.Set, peer *tables.Peer, to netip.Addr, seq uint16, probe *pingProbe) error {
	r.batch.Reset()
	f, err := r.forwarder.prober.request(r.batch, set, peer, to, r.id, seq, r.length())
	if err != nil {
		return err
	}
	probe.at = r.forwarder.now()
	err = r.forwarder.prober.sockets[peer.Endpoint.Addr().Is6()].Send(f)
	if errors.Is(err, encap.ErrTooBig) {
		return fmt.Errorf("%d bytes do not go through the link in one piece", r.length())
	}
	return err
}

// take reports an answer.
func (r *pingRun) take(a pingAnswer) error {
	probe, duplicate := r.waiting[a.seq], false
	if probe == nil {
		probe, duplicate = r.recent[a.seq], true
	}
	if probe == nil || probe.outer != a.peer { // too late, or another's
		return nil
	}
	delete(r.waiting, a.seq)
	r.recent[a.seq] = probe
	rtt, engine := milliseconds(a.taken-probe.at), milliseconds(a.taken-max(a.read, probe.at))
	return r.out.write(pingLine{Reply: &pingReply{
		Seq: probe.round, To: probe.to, RTTMillis: &rtt, EngineMillis: engine, PathMillis: rtt - engine, Duplicate: duplicate,
	}})
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// expire reports the requests that had no answer in time, and forgets old answers.
func (r *pingRun) expire() error {
	now := r.forwarder.now()
	maps.DeleteFunc(r.recent, func(_ uint16, p *pingProbe) bool { return now-p.at > r.wait })
	for _, seq := range slices.Sorted(maps.Keys(r.waiting)) {
		probe := r.waiting[seq]
		if now-probe.at < r.wait {
			continue
		}
		delete(r.waiting, seq)
		if err := r.report(probe, fmt.Sprintf("no answer within %v", r.wait)); err != nil {
			return err
		}
	}
	return nil
}

func (r *pingRun) report(p *pingProbe, problem string) error {
	return r.out.write(pingLine{Reply: &pingReply{Seq: p.round, To: p.to, Problem: problem}})
}
