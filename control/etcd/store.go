// Package etcd owns this node's part in a network of flannel's kept in etcd: its lease on a subnet, and what it knows of the other nodes'
// leases (flannel v0.28, pkg/subnet/etcd: keys, values and lease times are flannel's, so that tulle nodes and flanneld nodes share one
// network). It gives a control.View; routes and kernel state are others' work.
//
// Unlike flannel's, it takes nothing from a peer because of an outage: a peer whose lease went stays for Config.Grace, in which it
// gets it back if it lives, as long as etcd is not reached for all time. A node keeps its subnet on disk and uses it at once, with or
// without etcd; when its key is gone it takes the same one again. Keys without a lease are reservations and stay so. A race for a
// subnet that is lost begins anew. Everything is listed again now and then and after each trouble: nothing relies on having seen an event.
//
// What it does not do: it never deletes or changes another node's key.
package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/control"
)

// Defaults of Config.
const (
	DefaultTTL    = 24 * time.Hour // as flannel's
	DefaultMargin = time.Hour
	defaultGrace  = time.Minute
	defaultProbe  = 2 * time.Second

	leastRetry = 200 * time.Millisecond
	mostRetry  = 5 * time.Second
)

// A Config says who this node is and where its etcd. The zero value does not work.
type Config struct {
	Server Server
	Self   control.Node // subnets valid iff given instead of chosen
	Pool   Pool         // of IPv4, which flannel's keys cannot do without
	Pool6  Pool         // zero without IPv6
	// TTL is that of the lease, and Margin how long before its end at the latest it is renewed; it is renewed after a third of its time anyway.
	TTL, Margin time.Duration
	// Grace is how long a peer stays whose lease went, counted from when etcd said so.
	Grace    time.Duration
	Probe    time.Duration // between two questions whether etcd answers, and is still the same
	StateDir string
	Reserved func() []netip.Prefix // subnets that nobody may choose: those of static peers; may be nil
	Log      *slog.Logger          // nil: slog.Default
}

// A Store is one node's part. Open makes it, Run runs it once; View may be called beside it.
type Store struct {
	config Config
	prefix string // of all leases' keys

	// Run's alone.
	client  *clientv3.Client // nil until it is needed
	leases  map[string]*lease
	gone    map[string]goneLease
	own     *lease // the one that this node has or wants; nil before it has chosen
	before  string // own's value when the node had another address; empty: it had not
	held    bool   // own is valid and may be used: etcd has it, or had it when it was asked last
	renewed time.Time
	cluster uint64            // etcd's, that the leases are of; 0 before it is known
	trouble error             // of the last session; nil while etcd answers
	refused map[string]string // by key, in words

	refusals, withdrawn uint64

	leaving atomic.Bool // the lease ends with Run

	mu   sync.Mutex // guards the rest
	view control.View
}

// A goneLease is one that etcd does not have any more.
type goneLease struct {
	*lease
	since time.Time
}

var _ control.Store = (*Store)(nil)

// Open reads the node's state. etcd is asked for nothing yet.
func Open(c Config) (*Store, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Store{config: c, prefix: c.Server.Prefix + "/subnets/", leases: map[string]*lease{}, gone: map[string]goneLease{}, refused: map[string]string{}}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.view = s.look()
	return s, nil
}

// complete fills in defaults, and says what does not fit.
func (c *Config) complete() error {
	c.Log = cmp.Or(c.Log, slog.Default())
	c.TTL, c.Grace, c.Probe = cmp.Or(c.TTL, DefaultTTL), cmp.Or(c.Grace, defaultGrace), cmp.Or(c.Probe, defaultProbe)
	c.Margin = cmp.Or(c.Margin, min(DefaultMargin, c.TTL/2))
	switch {
	case !c.Pool.Network.IsValid():
		return errors.New("etcd: flannel's keys need an IPv4 network: a network of IPv6 alone cannot be kept there")
	case !c.Self.PublicIP.Is4():
		return errors.New("etcd: this node needs an IPv4 address on the underlay")
	case c.Margin >= c.TTL:
		return fmt.Errorf("etcd: the renewal margin of %v is not less than the lease's %v", c.Margin, c.TTL)
	case c.Pool6.Network.IsValid() && c.Self.Subnet.IsValid() != c.Self.IPv6Subnet.IsValid():
		return errors.New("etcd: a given subnet needs one of both families")
	}
	return c.Server.Check()
}

// Leave makes the end of Run give the subnet back. It is safe beside Run.
func (s *Store) Leave() { s.leaving.Store(true) }

// Run keeps the node's lease and watches the others until ctx ends. Then the lease stays, for when the node comes back, unless Leave was
// called.
func (s *Store) Run(ctx context.Context, update func(control.View)) error {
	defer s.hangUp()
	defer s.leave()
	update(s.View())
	retry := leastRetry
	for ctx.Err() == nil {
		begun := time.Now()
		err := s.session(ctx, update)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			retry = leastRetry
			continue // it is time to look at everything again
		}
		err = s.config.Server.explain(err)
		if s.trouble == nil || s.trouble.Error() != err.Error() {
			s.config.Log.Warn("etcd: what it said last stays", "error", err)
		}
		s.trouble = err
		s.publish(update)
		if time.Since(begun) > mostRetry {
			retry = leastRetry
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, mostRetry)
	}
	return nil
}

func (s *Store) hangUp() {
	if s.client != nil {
		s.client.Close()
	}
}

// publish makes the view and hands it over if it is another one.
func (s *Store) publish(update func(control.View)) {
	v := s.look()
	s.mu.Lock()
	same := sameView(v, s.view)
	s.view = v
	s.mu.Unlock()
	if same {
		return
	}
	if err := s.save(); err != nil {
		s.config.Log.Error("etcd: the state is not kept", "error", err)
	}
	update(v)
}

// View returns what was handed over last.
func (s *Store) View() control.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

func sameView(a, b control.View) bool {
	return a.Self == b.Self && a.Withdrawn == b.Withdrawn && slices.Equal(a.Peers, b.Peers) && slices.Equal(a.Problems, b.Problems) &&
		maps.Equal(a.Refused, b.Refused) && maps.Equal(a.LastRefused, b.LastRefused)
}

// States of peers.
const (
	Leased   = "leased"
	Reserved = "reserved"
	Gone     = "gone"
)

// refusedLease is the reason by which keys and values are counted that are no lease.
const refusedLease = "malformed_lease"

// Reasons lists the reasons of View.Refused.
func Reasons() []string { return []string{refusedLease} }

// look makes the view of what is known now.
func (s *Store) look() control.View {
	v := control.View{Self: s.config.Self, Members: 1, Withdrawn: s.withdrawn, Refused: map[string]uint64{refusedLease: s.refusals}, LastRefused: map[string]string{}}
	v.Self.Subnet, v.Self.IPv6Subnet = netip.Prefix{}, netip.Prefix{}
	if s.held {
		v.Self.Subnet, v.Self.IPv6Subnet = s.own.node.Subnet, s.own.node.IPv6Subnet
	}
	for _, l := range s.leases {
		if !s.isOwn(l) {
			v.Peers = append(v.Peers, peerOf(l))
			v.Members++
		}
	}
	for _, g := range s.gone {
		p := peerOf(g.lease)
		p.State, p.Reason = Gone, fmt.Sprintf("etcd has no lease of it any more: routed for %v more in case it comes back", s.config.Grace)
		v.Peers = append(v.Peers, p)
	}
	slices.SortFunc(v.Peers, func(a, b control.Peer) int {
		return cmp.Or(a.PublicIP.Compare(b.PublicIP), cmp.Compare(a.Subnet.String(), b.Subnet.String()))
	})
	if s.trouble != nil {
		v.Problems = append(v.Problems, fmt.Sprintf("etcd: %v (what it said last is forwarded)", s.trouble))
	}
	for _, key := range slices.Sorted(maps.Keys(s.refused)) {
		v.LastRefused[refusedLease] = s.refused[key]
		v.Problems = append(v.Problems, "etcd: ignored: "+s.refused[key])
	}
	return v
}

// isOwn says whether a lease is this node's.
func (s *Store) isOwn(l *lease) bool {
	return l.node.PublicIP == s.config.Self.PublicIP || s.held && l.key == s.own.key && l.value == s.before
}

func peerOf(l *lease) control.Peer {
	p := control.Peer{Node: l.node, State: Leased, Routable: true}
	if l.id == 0 {
		p.State = Reserved
	}
	return p
}
