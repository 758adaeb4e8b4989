// Package gossip owns what the nodes tell each other without a store: who is there, which subnet is whose, and
// this node's own claim on one. It gives a View; routes and kernel state are others' work.
//
// Every node signs one record of itself (Ed25519; the node's ID is derived from the key). Records travel as memberlist's
// Meta and, those of dead nodes too, in its push/pull state; each node keeps the newest record of every other, and
// ownership is a pure function of the records, never of who is a member. memberlist (v0.7.0) is the
// failure detector and the carriage. It never touches traffic: a node that believes itself cut off keeps its routes.
//
// The claim is control/claim's machine, which this package feeds with records, letters and the time. Letters to witnesses and
// their answers are signed and sent directly. After a partition the younger of two owners withdraws and claims again: two nodes
// that cannot hear each other may confirm overlapping blocks until they can. In a dual-stack network one claim, on an IPv4 block, is enough:
// the IPv6 block of the same number goes with it.
//
// Hygiene: control/gossip/gate stands between the sockets and memberlist, owns encryption, and refuses what no node sends; each address may
// have 16 connections and open 10 a second, every TCP exchange has a deadline of 5 s on both sides, memberlist takes 128 push/pulls at once
// and bounds state (20 MiB) and queues; records are bounded and verified before they count. What this does not give: the
// cluster key is shared, so whoever has it can feign a member's death or say what it likes of itself, its tenure included; a message that
// is played again is known for some ten minutes (later a record is old news, and anything else at most costs a
// refutation); whether a node is behind its public IP is not verified.
package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/claim"
	"github.com/tulle-net/tulle/control/gossip/gate"
)

// MaxNodes is how many nodes one keeps track of.
const MaxNodes = claim.MaxRecords

// A Config says who this node is and where it finds the others. The zero value does not work.
type Config struct {
	Self      control.Node // subnets valid iff given instead of claimed
	Network   netip.Prefix // zero without IPv4, like the three that follow
	SubnetLen int
	SubnetMin netip.Addr // first block
	SubnetMax netip.Addr // last block

	IPv6Network   netip.Prefix // zero without IPv6, like the three that follow
	IPv6SubnetLen int
	IPv6SubnetMin netip.Addr
	IPv6SubnetMax netip.Addr

	TunnelPort uint16
	BindPort   int      // at Self.PublicIP, or at Self.PublicIPv6 without IPv4; 0: 7946
	Join       []string // host[:port]; this node's own address is skipped
	Key        []byte   // 32 bytes; nil: unencrypted
	StateDir   string
	Reserved   func() []netip.Prefix // blocks that nobody may claim: subnets of static peers; may be nil
	Log        *slog.Logger          // nil: slog.Default
	// ReclaimAfter is how long a node must be gone before its subnet is taken away; 0: never.
	ReclaimAfter time.Duration
	// Nodes is how many nodes there are at most, of which more than half must be in sight for a subnet to be claimed; 0: any number claims.
	Nodes int

	// listen opens what carries the gossip, and its dials end with the context. Nil: sockets. Tests have networks in memory.
	listen func(context.Context, netip.AddrPort, *log.Logger) (memberlist.NodeAwareTransport, error)
	open   func(raw []byte) (*claim.Record, error) // nil: claim.OpenRecord
}

// A Store is one node's part in the gossip. Open makes it, Run runs it once; only View may be called beside Run.
type Store struct {
	config   Config
	pools    claim.Pools
	endpoint netip.AddrPort
	started  time.Time // of the monotonic clock

	// Run's goroutine alone (and Open before it).
	key       ed25519.PrivateKey
	disk      diskState
	claimer   *claim.Claimer         // of machine
	list      *memberlist.Memberlist // nil between two boots
	stop      context.CancelFunc     // of the list's dials
	transport memberlist.Transport   // of the list
	diskErr   error                  // of the last write
	ring      *gate.Keyring          // nil: unencrypted; of keys
	keysAt    time.Duration          // until when their grace was counted
	keysSaved time.Duration

	wake  chan struct{} // room for one
	calls chan func()   // for Run, between two turns
	hurry chan struct{} // room for one: the search for others goes on at once

	mu           sync.Mutex     // guards what follows; never held while calling memberlist
	id           claim.NodeID   // written by Run's goroutine only
	self         *claim.Record  // the newest own record, also in known
	machine      *claim.Machine // its claimer is Run's
	known        claim.Records  // of machine
	answers      []claim.Answer // to be counted in the next turn
	keys         keyring        // written by Run's goroutine only
	heardKeys    []clusterKey   // to be taken in the next turn
	outbox       []outgoing     // letters to be sent then
	unsaved      bool           // fences or claims were heard of that are not on disk
	lives        lives
	rumors       rumors
	refusals     refusals
	joined       bool // the first attempt to join is over
	flood        int  // rounds of exchanging everything that are left
	news         int  // records of others that were new since counted
	outdated     uint64
	counted      time.Duration
	joinProblems map[netip.AddrPort]joinProblem
	seedProblems map[string]string
	kept         []netip.AddrPort          // endpoints from disk
	conflicts    map[claim.NodeID]conflict // live nodes that are refused, as of the last turn
	dirty        bool
	view         View
}

// Open reads the node's identity and state, counts the boot, and binds the socket: from here on the node is heard.
// Close or a Run that ended releases everything.
func Open(c Config) (*Store, error) {
	s, err := newStore(c)
	if err != nil {
		return nil, err
	}
	if s.key, err = openIdentity(c.StateDir); err != nil {
		return nil, err
	}
	if err := s.openKeys(); err != nil {
		return nil, err
	}
	if err := s.boot(0); err != nil {
		return nil, err
	}
	return s, nil
}

func newStore(c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.BindPort == 0 {
		c.BindPort = defaultPort
	}
	p, err := poolsOf(c)
	if err != nil {
		return nil, err
	}
	for _, seed := range c.Join {
		if _, _, err := parseSeed(seed); err != nil {
			return nil, err
		}
	}
	switch {
	case len(c.Key) != 0 && len(c.Key) != 32:
		return nil, fmt.Errorf("cluster key of %d bytes: 32 are needed, or none", len(c.Key))
	case c.BindPort < 0 || c.BindPort > 65535:
		return nil, fmt.Errorf("gossip port %d: 1 to 65535 is possible", c.BindPort)
	case c.Network.IsValid() && !c.Self.PublicIP.Is4(), c.IPv6Network.IsValid() && !c.Self.PublicIPv6.Is6():
		return nil, fmt.Errorf("public addresses %s and %s of this node: one of each family in %s is needed", c.Self.PublicIP, c.Self.PublicIPv6, p)
	}
	if err := checkGiven(p, c.Self); err != nil {
		return nil, err
	}
	machine := claim.NewMachine(claim.NodeID{}, p, 0, claim.Memory{}, 0)
	s := &Store{
		machine: machine, claimer: &machine.Claimer, known: machine.Known,
		config: c, pools: p, endpoint: netip.AddrPortFrom(c.Self.Underlay(), uint16(c.BindPort)), started: time.Now(),
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), calls: make(chan func()), refusals: refusals{}, joinProblems: map[netip.AddrPort]joinProblem{}, seedProblems: map[string]string{},
	}
	return s, nil
}

func poolsOf(c Config) (claim.Pools, error) {
	return claim.NewPools(
		claim.Pool{Network: c.Network, Bits: c.SubnetLen, Min: c.SubnetMin, Max: c.SubnetMax},
		claim.Pool{Network: c.IPv6Network, Bits: c.IPv6SubnetLen, Min: c.IPv6SubnetMin, Max: c.IPv6SubnetMax},
	)
}

// checkGiven checks the subnets that are given instead of claimed.
func checkGiven(p claim.Pools, self control.Node) error {
	for _, given := range []netip.Prefix{self.Subnet, self.IPv6Subnet} {
		if longest := given.Addr().BitLen() - 2; given.IsValid() && (given != given.Masked() || !p.Contain(given) || given.Bits() > longest) {
			return fmt.Errorf("--subnet %s: a masked prefix of /%d or shorter inside %s is needed", given, longest, p)
		}
	}
	switch {
	case !p.Dual():
	case self.IPv6Subnet.IsValid() && !self.Subnet.IsValid():
		return fmt.Errorf("--subnet %s: the IPv4 subnet is missing: the IPv6 one goes with it", self.IPv6Subnet)
	case self.Subnet.IsValid() && !self.IPv6Subnet.IsValid() && !p.Claimed.Has(self.Subnet):
		return fmt.Errorf("--subnet %s: it is none of the %s, so that no IPv6 subnet goes with it: give both, such as --subnet %[1]s,%[3]s", self.Subnet, p.Claimed, p.Paired.Block(0))
	}
	return nil
}

// boot counts a boot, above the epoch least, and starts to speak: in this order.
func (s *Store) boot(least uint64) error {
	id := claim.IDOf(s.key.Public().(ed25519.PublicKey))
	disk, older, err := loadState(s.config.StateDir, id)
	if err != nil {
		return err
	}
	if older != nil {
		s.config.Log.Warn("gossip: goes on with the state before the last one", "reason", older)
	}
	memory := disk.memory()
	disk.BootEpoch = max(disk.BootEpoch, least) + 1
	disk.Nonce, disk.Seq = newNonce(), 0
	if err := disk.save(s.config.StateDir); err != nil {
		return err
	}
	s.disk = disk
	s.mu.Lock()
	lost := s.claimer.Lost
	s.machine = claim.NewMachine(id, s.pools, disk.BootEpoch, memory, s.now())
	s.machine.ReclaimAfter = s.config.ReclaimAfter
	s.claimer, s.id, s.self, s.known, s.answers, s.outbox = &s.machine.Claimer, id, nil, s.machine.Known, nil, nil
	s.conflicts = nil
	s.lives = lives{of: map[claim.NodeID]*life{}, lastAck: s.now()}
	s.joined, s.kept = false, disk.Endpoints
	s.mu.Unlock()
	s.claimer.Given, s.claimer.Lost, s.claimer.Nodes = s.config.Self.Subnet, lost, s.config.Nodes
	if s.pools.Dual() {
		s.claimer.Given6 = s.config.Self.IPv6Subnet
	} else if s.endpoint.Addr().Is6() {
		s.claimer.Given = s.config.Self.IPv6Subnet
	}
	s.adoptKept()
	if err := s.renew(0); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	if s.list, err = s.openMembers(ctx); err != nil {
		stop()
		return err
	}
	s.stop = stop
	s.config.Log.Info("gossip runs", "node", id, "boot", disk.BootEpoch, "at", s.endpoint, "encrypted", s.config.Key != nil)
	return nil
}

// adoptKept takes the claim from disk, unless the configuration has changed under it.
func (s *Store) adoptKept() {
	for _, d := range s.disk.Claims {
		kept, err := d.claim()
		if err == nil && s.claimer.Fits(kept) {
			s.claimer.Adopt(kept, s.machine.Fences, s.now())
			return
		}
		s.config.Log.Warn("gossip: the kept subnet is not one that this node may have now: it claims anew", "subnet", d.Block)
	}
}

func newNonce() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// renew makes the next own record. Others get it with announce.
func (s *Store) renew(flags uint64) error {
	c := s.config.Self
	r := &claim.Record{
		Epoch: s.disk.BootEpoch, Nonce: s.disk.Nonce, Seq: s.disk.Seq + 1, Flags: flags,
		Name: c.Name, Endpoint: s.endpoint, Backend: c.BackendType, VNI: c.VNI, TunnelPort: s.config.TunnelPort, VTEP: c.VTEP,
		Claims: s.claimer.Claims(),
	}
	if s.pools.Dual() {
		r.Addrs = []netip.Addr{c.PublicIPv6}
	}
	if s.ring != nil {
		r.SetKeyTag(s.keys.newest().tag())
	}
	if err := r.Sign(s.key); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	s.disk.Seq = r.Seq
	s.mu.Lock()
	defer s.mu.Unlock()
	s.self, s.machine.Self = r, r
	s.known[s.id] = r
	s.dirty = true
	return nil
}

// announce hands the own record to memberlist, which gossips it. It does not wait.
func (s *Store) announce() {
	s.mu.Lock()
	s.rumors.spread(s.self, len(s.known))
	s.mu.Unlock()
	_ = s.list.UpdateNode(1)
}

// Close ends a Store whose Run was never called.
func (s *Store) Close() error { return s.shutdown() }

// shutdown ends the list and its dials.
func (s *Store) shutdown() error {
	if s.list == nil {
		return nil
	}
	s.stop()
	err := s.list.Shutdown()
	s.list = nil
	return err
}

// now is the time since the store was made, on the monotonic clock.
func (s *Store) now() time.Duration { return time.Since(s.started) }

// poke makes Run look.
func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Store) refuse(reason, words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals.add(reason, words, s.now())
	s.dirty = true // Run's next tick sees it: a flood of refusals must not keep it busy
}

// errRan: a Store runs once.
var errRan = errors.New("gossip: this store has ended: open a new one")
