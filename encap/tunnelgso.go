package encap

import (
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// TunnelGSO is a way for super-packets to leave whole, encapsulated once: a TAP that takes them with a virtio_net_hdr of
// packet.TunnelVNetLen bytes, and whose frames the kernel hands to the underlay's link. A device behind that link which can do it
// cuts them, else the kernel does, into the datagrams that an underlay would have sent; a peer on the same machine gets them
// uncut. Firewall rules for what the node sends see none of it.
type TunnelGSO struct {
	Queues   []int     // descriptors, one for each worker; they stay the caller's
	NextHops *NextHops // where there is none super-packets leave in segments
}

// A tunnelSender is one worker's queue of a TunnelGSO, for one address family. The zero value sends nothing.
type tunnelSender struct {
	fd       int
	local    netip.Addr
	family   *family
	nextHops *NextHops              // nil without TunnelGSO
	hops     map[netip.Addr]NextHop // of this batch
	ids      *atomic.Uint32         // of outer IP packets, of all workers
	works    atomic.Bool            // the kernel takes what is written
	header   [packet.TunnelVNetLen + packet.EthernetLen + outerIPv6Len + outerUDPLen]byte
	iovecs   [2]unix.Iovec
}

// open gives the sender of each worker its queue. senders are in the order of the workers.
func (t *TunnelGSO) open(local netip.Addr, senders []*tunnelSender) {
	if t == nil {
		return
	}
	ids := new(atomic.Uint32)
	ids.Store(rand.Uint32())
	for i, s := range senders {
		s.fd, s.local, s.family, s.nextHops, s.ids = t.Queues[i], local, familyOf(local), t.NextHops, ids
		s.works.Store(true)
	}
}

// offloads names what the sender does, as long as nobody refused it.
func (s *tunnelSender) offloads() []string {
	if s.works.Load() {
		return []string{"udp_tunnel_gso"}
	}
	return []string{}
}

// load begins a batch.
func (s *tunnelSender) load() {
	if s.nextHops != nil {
		s.hops = s.nextHops.load()
	}
}

// trySend sends a super-packet whole if it may leave so, behind what flush sends, which is of its flow too, and reports whether it left. What
// the kernel refuses counts as a fallback.
func (s *tunnelSender) trySend(f *packet.Frame, port uint16, flush func(), fallbacks *atomic.Uint64) bool {
	hop, ok := s.takes(f)
	if !ok {
		return false
	}
	flush()
	if s.send(f, &hop, port) {
		return true
	}
	fallbacks.Add(1)
	return false
}

// takes reports whether a super-packet may leave whole, and where to: the kernel then cuts it into what would have been sent.
func (s *tunnelSender) takes(f *packet.Frame) (hop NextHop, ok bool) {
	hop, ok = s.hops[f.Remote.Addr().Unmap()]
	segment := f.Payload - f.Start() + int(f.VNet.GSOSize)
	return hop, ok && s.works.Load() && f.VNet.NeedsCsum() && f.Len() <= s.family.maxPayload && s.family.ipLen+outerUDPLen+segment <= hop.MTU
}

// send sends a super-packet that it takes, from the port, and reports whether it left.
func (s *tunnelSender) send(f *packet.Frame, hop *NextHop, port uint16) bool {
	header := s.putHeaders(f, hop, port)
	for i, b := range [...][]byte{header, f.Bytes()} {
		s.iovecs[i].Base = &b[0]
		s.iovecs[i].SetLen(len(b))
	}
	errno := writev(s.fd, s.iovecs[:])
	if errno == unix.EINVAL {
		s.works.Store(false) // such headers mean nothing to this kernel
	}
	if errno != 0 {
		return false
	}
	f.Sent, f.SentBytes = f.Segments, f.Len()+(f.Segments-1)*(f.Payload-f.Start())
	return true
}

// putHeaders writes everything in front of the encapsulation. Lengths are those of the whole, and the outer checksum is that of
// the pseudo-header: who cuts it sets both right.
func (s *tunnelSender) putHeaders(f *packet.Frame, hop *NextHop, port uint16) []byte {
	l4 := packet.EthernetLen + s.family.ipLen
	outer := l4 + outerUDPLen
	header := s.header[:packet.TunnelVNetLen+outer]
	f.PutTunnelVNet(header, l4, outer, s.family == &inet6)
	b := header[packet.TunnelVNetLen:]
	putEthernet(b, hop, s.family.etherType)
	ip := outerIP{src: s.local, dst: f.Remote.Addr().Unmap(), tos: f.OuterTOS, label: uint32(port), payload: outerUDPLen + f.Len()}
	ip.id = s.ids.Add(uint32(f.Segments)) - uint32(f.Segments)
	ip.put(b[packet.EthernetLen:])
	putUDP(b[l4:], port, f.Remote.Port(), f.Len(), ip.pseudoHeader(ip.payload).Fold())
	return header
}

// writev is one frame's; a signal may interrupt it, and more than once is not worth a packet.
func writev(fd int, iovecs []unix.Iovec) (errno syscall.Errno) {
	for range 3 {
		if errno = rawWritev(fd, iovecs); errno != unix.EINTR {
			break
		}
	}
	return errno
}
