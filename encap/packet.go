package encap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A PacketUnderlay carries datagrams of one address family as whole Ethernet frames on a raw socket of one link, a
// dataplane.Port (packet(7)). What it puts on the wire is what an Underlay puts there, with any outer source port of
// the dynamic range instead of 16, and super-packets leave as one frame with virtio_net_hdr too. Where frames go first is
// told by NextHops: there is no ARP, no ND and no routing here. Firewall rules of the kernel see none of it.
//
// The socket's queue and not a ring (PACKET_RX_RING) hands frames over. TPACKET_V3 gives no frame away before its block is
// full or a millisecond is over: from send to poll 1.0 ms in the median and 3.2 ms at the 99th percentile were measured where the
// queue takes 8 us. TPACKET_V2 takes 9 us, but its slots have to hold the largest frame: 16 MiB are 240 of them, where the
// queue holds some 20,000 small frames. All three copy each frame once.
type PacketUnderlay struct {
	queue
	guard    int // the UDP socket that keeps the port, of the first underlay of a group; else -1
	gro      bool
	local    netip.AddrPort
	framing  Framing
	fixed    bool // all datagrams leave from the local port
	nextHops *NextHops
	clock    func() time.Duration

	recv    receiveRing
	frames  packet.Batch // of one frame, the received one with its outer headers
	partial reassembler
	refused [packet.NumVerdicts]atomic.Uint64

	hops      map[netip.Addr]NextHop // of this batch
	ids       *atomic.Uint32         // of outer IP packets, of the whole group
	datagram  []byte                 // that is being cut into fragments
	header    [packet.MaxHeaders]byte
	piece     packet.Frame // whose fragments are being sent
	gsoType   uint8        // of virtio_net_hdr, for super-packets
	gso       atomic.Bool
	tunnel    tunnelSender
	fallbacks atomic.Uint64
}

// PacketConfig is what the raw underlays of one node and one address family have in common.
type PacketConfig struct {
	Config
	Link     int // index of an Ethernet link, which has the local address
	NextHops *NextHops
	Clock    func() time.Duration // monotonic; asked for fragments
}

// OpenPacket opens the raw underlays, one for each worker. It fails when another socket has the tunnel's port, and on links
// without Ethernet headers.
func OpenPacket(c PacketConfig) ([]*PacketUnderlay, error) {
	c.Local = netip.AddrPortFrom(c.Local.Addr().Unmap(), c.Local.Port())
	c.Workers = max(1, c.Workers)
	err := checkLocal(c.Local.Addr())
	if err == nil && c.Local.Addr().IsUnspecified() {
		err = errors.New("a raw underlay needs an address")
	}
	if err != nil {
		return nil, fmt.Errorf("underlay %s: %w", c.Local, err)
	}
	guard, gro, err := openGuard(c.Local)
	if err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	all := newPacketUnderlays(&c, guard, gro)
	for i := range all {
		if err := all[i].open(&c, i); err != nil {
			for _, u := range all[:i+1] {
				u.Close()
			}
			return nil, fmt.Errorf("underlay: %w", err)
		}
	}
	return all, nil
}

// newPacketUnderlays returns those of all workers, without sockets but for the guard, which is the first one's.
func newPacketUnderlays(c *PacketConfig, guard int, gro bool) []*PacketUnderlay {
	all, ids := make([]*PacketUnderlay, c.Workers), new(atomic.Uint32)
	ids.Store(rand.Uint32())
	for i := range all {
		all[i] = newPacketUnderlay(c, ids, gro)
		all[i].guard, guard = guard, -1
	}
	senders := make([]*tunnelSender, len(all))
	for i := range senders {
		senders[i] = &all[i].tunnel
	}
	c.TunnelGSO.open(c.Local.Addr(), senders)
	return all
}

func newPacketUnderlay(c *PacketConfig, ids *atomic.Uint32, gro bool) *PacketUnderlay {
	u := &PacketUnderlay{
		queue: newQueue(-1, familyOf(c.Local.Addr())), gro: gro, local: c.Local, framing: c.Framing, fixed: c.FixedSource,
		nextHops: c.NextHops, clock: c.Clock, ids: ids, gsoType: packet.GSOUDPL4,
		partial: newReassembler(), datagram: make([]byte, maxDatagram+outerUDPLen),
	}
	u.recv.init(packet.VNetLen + packet.EthernetLen + u.family.ipLen + outerUDPLen)
	u.gso.Store(true)
	return u
}

func (u *PacketUnderlay) open(c *PacketConfig, worker int) (err error) {
	if u.fd, err = openPacket(tunnelFilter(c.Local, worker, c.Workers)); err != nil {
		return err
	}
	return u.Rebind(c.Link)
}

// Rebind moves the underlay to another link, such as the same one that was removed and made again. Until then nothing comes
// in and what is written is refused. It may be called from any goroutine.
func (u *PacketUnderlay) Rebind(link int) error { return bindPacket(u.fd, link, u.family.etherType) }

// FD returns the socket, for polling.
func (u *PacketUnderlay) FD() int { return u.fd }

// Close closes all sockets.
func (u *PacketUnderlay) Close() error {
	var errs []error
	for _, fd := range []int{u.fd, u.guard} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// Offloads names what the socket does in one call for many segments, as long as the kernel did not refuse it. It may be
// called from any goroutine.
func (u *PacketUnderlay) Offloads() []string {
	names := append(u.tunnel.offloads(), "vnet_hdr")
	if u.gso.Load() {
		names = append(names, "udp_l4_gso")
	}
	if u.gro {
		names = append(names, "udp_gro")
	}
	return names
}

// Fallbacks returns how many sends of a super-packet, or of a part of one, were done segment by segment because the kernel
// refused it as one frame, or because its segments are larger than the path's MTU. It may be called from any goroutine.
func (u *PacketUnderlay) Fallbacks() uint64 { return u.fallbacks.Load() }

// QueueDepth returns the bytes that wait in the socket and the frames that the kernel dropped there because it was full
// (SO_MEMINFO), of which joined ones count as one. It may be called from any goroutine.
func (u *PacketUnderlay) QueueDepth() (bytes, drops uint64, err error) { return queueDepth(u.fd) }

// OuterDrops returns how many packets came in with an outer header, or as a fragment, that the kernel would have taken no
// datagram from, by reason. It may be called from any goroutine.
func (u *PacketUnderlay) OuterDrops() map[packet.Verdict]uint64 {
	drops := map[packet.Verdict]uint64{}
	for v := range u.refused {
		if n := u.refused[v].Load(); n > 0 {
			drops[packet.Verdict(v)] = n
		}
	}
	return drops
}
