package gossip

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/tulle-net/tulle/control/claim"
	"github.com/tulle-net/tulle/control/gossip/gate"
)

// Timing. A dead node is noticed by the first probe that it does not answer (some 500 ms, whoever sends it), and declared
// dead when it does not refute within suspicion: 6 x 500 ms up to about 10 nodes.
const (
	probeInterval    = 500 * time.Millisecond
	suspicionMult    = 6
	suspicionMaxMult = 2 // without others who confirm
	// gossipNodes is how many nodes get a packet in each gossip interval, if there is news. With memberlist's usual 3 a hundred records a
	// second are more than reach everybody, and what is lost then are refutations: healthy nodes die.
	gossipNodes      = 8
	pushPullInterval = 10 * time.Second // for the records of dead nodes, which no member gossips
	streamTimeout    = 5 * time.Second  // of a whole TCP exchange, each side
	dialTimeout      = 2 * time.Second  // of its beginning: a node behind a cut link must not hold the search for the others up
)

// label keeps networks apart that share an underlay. It is no secret. In a dual-stack network it holds all that an IPv6
// subnet follows from.
func label(p claim.Pools) string {
	text := fmt.Sprintf("tulle %s /%d", p.Claimed.Network, p.Claimed.Bits)
	if p.Dual() {
		text += fmt.Sprintf(" from %s, %s /%d from %s to %s", p.Claimed.Min, p.Paired.Network, p.Paired.Bits, p.Paired.Min, p.Paired.Max)
	}
	sum := sha256.Sum256([]byte(text))
	return "tulle-" + hex.EncodeToString(sum[:8])
}

// openMembers binds the socket and starts memberlist with the current record as Meta. Its dials end with ctx.
func (s *Store) openMembers(ctx context.Context) (*memberlist.Memberlist, error) {
	at := s.endpoint
	logger := log.New(&logWriter{s}, "", 0)
	listen := s.config.listen
	if listen == nil {
		listen = listenSockets
	}
	inner, err := listen(ctx, at, logger)
	if err != nil {
		return nil, err
	}
	c := memberlist.DefaultLANConfig()
	through := gate.Config{Label: label(s.pools), Keys: s.ring, Refused: s.refuse}
	s.transport = gate.New(inner, through)
	c.Transport = s.transport
	c.UDPBufferSize -= through.Overhead()
	c.Name = claim.MemberName(s.id, s.disk.BootEpoch)
	c.BindAddr, c.BindPort = at.Addr().String(), int(at.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.GossipInterval, c.ProbeInterval, c.ProbeTimeout = claim.GossipInterval, probeInterval, claim.ProbeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	c.GossipNodes = gossipNodes
	c.PushPullInterval, c.TCPTimeout = pushPullInterval, streamTimeout
	c.EnableCompression = false // of what is carried, most is signatures
	c.Logger = logger
	d := &delegate{s}
	c.Delegate, c.Events, c.Alive, c.Ping = d, d, d, d
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gossip at %s: %w", at, err), s.transport.Shutdown())
	}
	return list, nil
}

// A delegate is what memberlist calls. It calls with its own locks held: nothing here may call memberlist, or block.
type delegate struct{ *Store }

func (d *delegate) NodeMeta(int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.self.Raw
}

// NotifyMsg takes a record or a letter that a node sent directly.
func (d *delegate) NotifyMsg(b []byte) {
	if claim.IsLetter(b) {
		d.letter(b)
		return
	}
	d.hear(b, "a record sent here")
}

// GetBroadcasts passes on what others may not have heard.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rumors.take(overhead, limit)
}

// LocalState is what memberlist does not tell anyway: the records that are not the Meta of a live member, and the fences.
func (d *delegate) LocalState(bool) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	state := claim.EncodeState(slices.DeleteFunc(d.machine.Records(), d.lives.told), d.machine.Fences)
	if d.ring == nil {
		return state
	}
	return claim.AppendSection(state, sectionKeys, d.keys.encode())
}

func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	raws, fences, err := claim.DecodeState(b)
	if err != nil {
		d.refuse(refusedSignature, "a node sent "+err.Error())
	}
	for _, raw := range raws {
		d.take(raw, "a record in another node's state")
	}
	d.hearFences(fences)
	d.hearKeys(b)
}

// mine says whether a record is of this node's identity.
func (d *delegate) mine(r *claim.Record) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return r.ID == d.id
}

// NotifyAlive refuses members that are not what their record says.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	at, _ := netip.AddrFromSlice(n.Addr)
	where := fmt.Sprintf("the node at %s", at.Unmap())
	r := d.hear(n.Meta, where)
	switch {
	case r == nil:
		return errors.New("its record is refused")
	case n.Name != r.Member():
		d.refuse(refusedSignature, fmt.Sprintf("%s: the record of %s under the name %.64q", where, r, n.Name))
		return errors.New("its record is another node's")
	case r.Endpoint != netip.AddrPortFrom(at.Unmap(), n.Port):
		d.refuse(refusedEndpoint, fmt.Sprintf("%s: its record says %s", where, r.Endpoint))
		return errors.New("its record is of another endpoint")
	case d.mine(r) && r.Endpoint != d.endpoint:
		d.meet(r)
	}
	return nil
}

func (d *delegate) NotifyJoin(n *memberlist.Node) { d.event(n, (*lives).joined) }

func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.event(n, (*lives).joined) }

func (d *delegate) NotifyLeave(n *memberlist.Node) { d.event(n, (*lives).left) }

func (d *delegate) event(n *memberlist.Node, apply func(*lives, claim.NodeID, uint64, time.Duration)) {
	id, epoch, ok := claim.ParseMember(n.Name)
	if !ok {
		return
	}
	d.mu.Lock()
	d.dirty = true
	apply(&d.lives, id, epoch, d.now())
	if l := d.lives.of[id]; l != nil && l.epoch == epoch {
		l.meta = n.Meta
	}
	d.mu.Unlock()
	d.poke()
}

func (d *delegate) AckPayload() []byte { return nil }

func (d *delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	id, _, ok := claim.ParseMember(n.Name)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lives.acked(id, d.now())
}
