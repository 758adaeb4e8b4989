package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/pmtu"
	"github.com/tulle-net/tulle/dataplane/tables"
	"github.com/tulle-net/tulle/encap"
)

const (
	// probeInterval is that of each path while there are few of them; probeBudget bounds how many probes all of them cost,
	// in time between two: 200 a second are 2.4 Mb/s of full-size packets.
	probeInterval = 500 * time.Millisecond
	probeBudget   = 5 * time.Millisecond
	// liveInterval is that of a path with traffic in the last liveFor, so that it is known in less than a second when it is cut.
	liveInterval = 150 * time.Millisecond
	liveFor      = 2 * time.Second
	// proberRest is the least time between two looks at all paths.
	proberRest = 10 * time.Millisecond
	// minMTU4 is what every IPv4 host takes (RFC 791), minMTU6 every IPv6 path (RFC 8200).
	minMTU4, minMTU6 = 576, 1280
)

// A prober measures how large an inner packet may be to reach each peer in one piece: it sends echo requests over the
// encapsulation to the peer's own address, the outer header marked DF, and sees which are answered. Data packets never carry
// DF. Its methods are safe for concurrent use; run is called once.
type prober struct {
	codec   dataplane.Codec
	sockets map[bool]*encap.Probe // by whether the peer's underlay is IPv6
	now     func() time.Duration
	id      uint16
	wake    chan struct{}

	mu    sync.Mutex // guards the rest
	set   *tables.Set
	paths map[netip.Addr]*path
	batch *packet.Batch
}

// A path leads to one peer in one family.
type path struct {
	peer     *tables.Peer
	activity *tables.Activity // the peer's in every generation
	search   *pmtu.Search
	watch    pmtu.Watch
	interval time.Duration // between two probes
	mtu      int           // as told last
	inForce  int           // what packets are held to: mtu, once the tables have it
}

// newProber returns a prober for the peers in the families of locals. fixedSource lets probes leave from the locals' ports.
func newProber(codec dataplane.Codec, now func() time.Duration, fixedSource bool, locals ...netip.AddrPort) (*prober, error) {
	p := &prober{codec: codec, sockets: map[bool]*encap.Probe{}, now: now, id: uint16(rand.Uint32()), wake: make(chan struct{}, 1),
		paths: map[netip.Addr]*path{}, batch: packet.NewBatch(0)}
	for _, local := range locals {
		open := func() (*encap.Probe, error) { return encap.OpenProbe(local.Addr()) }
		if fixedSource {
			open = func() (*encap.Probe, error) { return encap.OpenProbeFixed(local) }
		}
		socket, err := open()
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.sockets[local.Addr().Is6()] = socket
	}
	return p, nil
}

func (p *prober) close() error {
	var errs []error
	for _, s := range p.sockets {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// follow makes the peers of set, which nobody uses yet, the ones to measure. What is known of those that stay is kept.
func (p *prober) follow(set *tables.Set) {
	p.mu.Lock()
	defer p.mu.Unlock()
	paths := map[netip.Addr]*path{}
	if p.set = set; set != nil {
		for peer := range set.AllPeers() {
			addr := peer.Endpoint.Addr()
			if !peer.Probe.IsValid() || p.sockets[addr.Is6()] == nil {
				continue
			}
			paths[addr] = p.pathTo(peer, set)
			peer.Activity = paths[addr].activity
		}
	}
	p.paths = paths
	p.look()
}

func (p *prober) pathTo(peer *tables.Peer, set *tables.Set) *path {
	known := p.paths[peer.Endpoint.Addr()]
	if known != nil && known.peer.Probe == peer.Probe {
		known.peer = peer
		return known
	}
	floor := minMTU4
	if peer.Probe.Is6() {
		floor = minMTU6
	}
	interval := restInterval(set.Peers())
	ceiling := max(floor, min(set.Node.Limit(peer.Probe), set.Node.MTU)) // nothing larger comes from this node's pods
	search := pmtu.New(pmtu.Config{Interval: interval}, floor, ceiling, p.now())
	return &path{peer: peer, activity: new(tables.Activity), search: search, interval: interval, mtu: ceiling, inForce: ceiling}
}

// answered is called by the engine's workers with each answer to a request with p.id.
func (p *prober) answered(peer netip.Addr, seq uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if path := p.paths[peer]; path != nil {
		if path.search.Answered(seq, p.now()) {
			path.alive(p.now())
		}
		p.look()
	}
}

// look makes run look at the paths soon.
func (p *prober) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run sends probes until ctx ends, and tells changed all measured MTUs whenever one is new.
func (p *prober) run(ctx context.Context, changed func(map[netip.Addr]int)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-p.wake:
		}
		next, news := p.turn()
		if news != nil {
			changed(news)
			p.enforced(news)
		}
		timer.Reset(max(next-p.now(), proberRest))
		select { // the least rest, whoever wakes us
		case <-ctx.Done():
			return nil
		case <-time.After(proberRest):
		}
	}
}

// turn sends what is due. It returns when to look again, and all measured MTUs if one is new.
func (p *prober) turn() (next time.Duration, news map[netip.Addr]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next = p.now() + probeInterval
	changed, live := false, p.live()
	for _, path := range p.paths {
		path.pace(p.now(), len(p.paths), live)
		for _, probe := range path.search.Due(p.now()) {
			if err := p.send(path.peer, probe); errors.Is(err, encap.ErrTooBig) {
				path.search.Refused(probe.Seq, p.now())
			}
			path.watch.Sent(p.now())
		}
		patience := path.patience(len(p.paths))
		path.judge(p.now(), patience)
		next = min(next, path.search.Next())
		if at, ok := path.watch.Next(patience); ok {
			next = min(next, at)
		}
		if mtu := path.search.MTU(); mtu != path.mtu {
			slog.Info("path MTU changed", "peer", path.peer.Name, "endpoint", path.peer.Endpoint.Addr(), "from", path.mtu, "to", mtu)
			path.mtu, changed = mtu, true
		}
	}
	if !changed {
		return next, nil
	}
	news = map[netip.Addr]int{}
	for addr, path := range p.paths {
		news[addr] = path.mtu
	}
	return next, news
}

// enforced notes MTUs that packets are held to from now on: before, nobody is told that they are.
func (p *prober) enforced(mtus map[netip.Addr]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, mtu := range mtus {
		if path := p.paths[addr]; path != nil {
			path.inForce = mtu
		}
	}
}

func (p *prober) send(peer *tables.Peer, probe pmtu.Probe) error {
	p.batch.Reset()
	f, err := p.request(p.batch, p.set, peer, peer.Probe, p.id, probe.Seq, probe.Size)
	if err != nil {
		return err
	}
	return p.sockets[peer.Endpoint.Addr().Is6()].Send(f)
}

// request appends to dst an echo request of size bytes of IP to an inner address of a peer's, encapsulated and ready to be sent.
func (p *prober) request(dst *packet.Batch, set *tables.Set, peer *tables.Peer, to netip.Addr, id, seq uint16, size int) (*packet.Frame, error) {
	from := set.Node.Engine
	if to.Is6() {
		from = set.Node.Engine6
	}
	f, ok := packet.EchoRequest(dst, from, to, id, seq, size)
	if !ok {
		return nil, fmt.Errorf("probe of %d bytes to %s: no room", size, peer.Name)
	}
	f.SetMACs(peer.VTEP, set.Node.VTEP)
	f.Remote = peer.Endpoint
	if v := p.codec.Encap(f); v != packet.None {
		return nil, fmt.Errorf("probe to %s: %s", peer.Name, v)
	}
	return f, nil
}
