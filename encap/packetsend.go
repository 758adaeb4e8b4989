package encap

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// The outer source ports: the dynamic range, which RFC 7348 section 4.1 recommends. 16,384 of them.
const (
	firstPort = 0xc000
	portMask  = 0x3fff
)

// Write sends each frame to the next hop of its Remote. What goes the same way in datagrams of one size leaves as one GSO
// frame, which the device or the kernel cuts; their outer checksums are finished there too.
func (u *PacketUnderlay) Write(b *packet.Batch) error {
	u.hops, u.waited = u.nextHops.load(), false
	u.tunnel.load()
	for _, f := range b.Frames {
		f.Sent, f.Refused, f.SentBytes, f.RefusedAs = 0, 0, 0, packet.None
		hop, ok := u.hops[f.Remote.Addr().Unmap()]
		switch {
		case familyOf(f.Remote.Addr()) != u.family || f.Remote.Port() == 0:
			f.Refused = f.Segments
		case !ok:
			f.Refused, f.RefusedAs = f.Segments, packet.DropNextHop
		case f.VNet.GSOType == packet.GSONone:
			u.queueOne(f, &hop)
		default:
			u.queueSuper(f, &hop)
		}
	}
	u.flush()
	return nil
}

func (u *PacketUnderlay) queueOne(f *packet.Frame, hop *NextHop) {
	if !u.fits(f.Len(), hop) {
		u.sendFragments(f, hop, f.Bytes())
		return
	}
	u.message(f, hop, f.Len(), 0)
	u.out.iovec(f.Bytes())
	u.add(f, 1, f.Len())
}

// queueSuper sends a super-packet whole or cuts it into messages. Segments that are fragments on this path go one by one.
func (u *PacketUnderlay) queueSuper(f *packet.Frame, hop *NextHop) {
	if u.tunnel.trySend(f, u.SourcePort(f), u.flush, &u.fallbacks) {
		return
	}
	cut := packet.NewSegmenter(f)
	size := cut.HeaderLen() + int(f.VNet.GSOSize) // of each datagram but the last
	if !u.fits(size, hop) {
		u.fallbacks.Add(1)
		u.sendLarge(f, hop, &cut)
		return
	}
	for !cut.Done() {
		room := u.message(f, hop, size, cut.HeaderLen())
		segments, bytes := u.out.cut(&cut, room)
		u.add(f, segments, bytes)
	}
}

func (u *PacketUnderlay) fits(datagram int, hop *NextHop) bool {
	return datagram <= u.family.maxPayload && u.family.ipLen+outerUDPLen+datagram <= hop.MTU
}

// message makes the last message one that datagrams of size bytes may join, each with so many bytes of headers of its own, and
// returns how many may. A message begins with the iovec of the outer headers.
func (u *PacketUnderlay) message(f *packet.Frame, hop *NextHop, size, header int) int {
	d := datagrams{way: u.wayOf(f), size: size, header: header, most: 1}
	if u.gso.Load() {
		d.most = maxSegments
	}
	room, fresh := u.place(&d, u.flush)
	if fresh {
		outer := u.out.header(packet.VNetLen + packet.EthernetLen + u.family.ipLen + outerUDPLen)
		putEthernet(outer[packet.VNetLen:], hop, u.family.etherType)
		u.out.iovec(outer)
	}
	return room
}

// bytesOf returns what an iovec points to.
func bytesOf(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// putOuter writes the headers in front of datagrams of so many bytes together, but for Ethernet's. Their UDP checksum is left
// to the device.
func (u *PacketUnderlay) putOuter(b []byte, m *message, segments, bytes int) {
	ip := u.outerIP(m.way)
	ip.id, ip.payload = u.ids.Add(uint32(segments))-uint32(segments), outerUDPLen+bytes
	l4 := packet.EthernetLen + u.family.ipLen
	vnet := packet.VNet{
		Flags: packet.VNetNeedsCsum, HdrLen: uint16(l4 + outerUDPLen), CsumStart: uint16(l4), CsumOffset: udpChecksumOffset,
	}
	if segments > 1 {
		vnet.GSOType, vnet.GSOSize = u.gsoType, uint16(m.size)
	}
	vnet.Encode(b)
	b = b[packet.VNetLen:]
	ip.put(b[packet.EthernetLen:])
	putUDP(b[l4:], m.port, m.remote.Port(), bytes, ip.pseudoHeader(ip.payload).Fold())
}

// outerIP returns what the outer IP headers of datagrams that go one way have in common. The flow label has the entropy of
// the port and not more, so that a message is of one label.
func (u *PacketUnderlay) outerIP(w way) outerIP {
	return outerIP{src: u.local.Addr(), dst: w.remote.Addr().Unmap(), tos: w.tos, label: uint32(w.port)}
}

func (u *PacketUnderlay) wayOf(f *packet.Frame) way {
	return way{remote: f.Remote, tos: f.OuterTOS, port: u.SourcePort(f)}
}

// SourcePort returns the port that a frame leaves from: a hash of the inner flow, the same for both directions, unless the
// port is fixed. It may be called from any goroutine.
func (u *PacketUnderlay) SourcePort(f *packet.Frame) uint16 {
	if u.fixed {
		return u.local.Port()
	}
	return firstPort | uint16(f.Hash)&portMask
}

func (u *PacketUnderlay) flush() {
	for i := range u.count {
		if m := &u.meta[i]; m.size > 0 {
			u.putOuter(bytesOf(&u.iovecsOf(i)[0]), m, m.segments, m.bytes)
		}
	}
	u.send(u.sendSingly)
}

// sendSingly sends message i datagram by datagram, after errno refused it whole. When that works super-packets are
// cut here from then on: the kernel does not know GSO of UDP on packet sockets (before Linux 6.2).
func (u *PacketUnderlay) sendSingly(i int, errno syscall.Errno) {
	u.fallbacks.Add(1)
	outer := u.iovecsOf(i)[0]
	all := u.queue.sendSingly(i, 1, func(iovecs []unix.Iovec, bytes int) {
		iovecs[0] = outer // in the place of what has been sent
		u.putOuter(bytesOf(&outer), &u.meta[i], 1, bytes)
	})
	if errno != unix.EMSGSIZE && all {
		u.gso.Store(false)
	}
}

// sendLarge sends the segments of a super-packet as fragments, but for a last one that fits.
func (u *PacketUnderlay) sendLarge(f *packet.Frame, hop *NextHop, cut *packet.Segmenter) {
	header := u.header[:cut.HeaderLen()]
	for !cut.Done() {
		payload, _ := cut.Next(header)
		size := len(header) + len(payload)
		if !u.fits(size, hop) {
			u.sendFragments(f, hop, header, payload)
			continue
		}
		u.message(f, hop, size, len(header))
		kept := u.out.header(len(header))
		copy(kept, header)
		u.out.iovec(kept)
		u.out.iovec(payload)
		u.add(f, 1, size)
	}
}

// sendFragments sends one datagram, which is larger than the path's MTU, as fragments, with its checksum. It leaves whole
// or counts as refused.
func (u *PacketUnderlay) sendFragments(f *packet.Frame, hop *NextHop, parts ...[]byte) {
	ip := u.outerIP(u.wayOf(f))
	ip.fragment = true
	b := u.finished(&ip, f, parts)
	bytes, room := len(b)-outerUDPLen, (hop.MTU-ip.len())&^7
	if bytes > u.family.maxPayload || room <= 0 {
		f.Refused++
		return
	}
	u.piece.Sent, u.piece.Refused = 0, 0
	ip.id = u.ids.Add(1)
	for len(b) > 0 {
		n := min(room, len(b))
		ip.payload, ip.more = n, n < len(b)
		u.queueFragment(&ip, hop, b[:n])
		ip.offset += n
		b = b[n:]
	}
	u.flush()
	one := part{f, 1, bytes}
	one.settle(u.piece.Refused == 0)
}

// finished puts a datagram together, with a checksum that nobody has to finish.
func (u *PacketUnderlay) finished(ip *outerIP, f *packet.Frame, parts [][]byte) []byte {
	b := u.datagram[:outerUDPLen]
	for _, p := range parts {
		b = append(b, p...)
	}
	putUDP(b, u.SourcePort(f), f.Remote.Port(), len(b)-outerUDPLen, 0)
	ip.finishUDP(b)
	return b
}

func (u *PacketUnderlay) queueFragment(ip *outerIP, hop *NextHop, data []byte) {
	if u.isFull(2, maxOuter) {
		u.flush()
	}
	u.start(way{}, 0, 1) // its headers are finished here
	header := u.out.header(packet.VNetLen + packet.EthernetLen + ip.len())
	packet.VNet{}.Encode(header)
	putEthernet(header[packet.VNetLen:], hop, u.family.etherType)
	ip.put(header[packet.VNetLen+packet.EthernetLen:])
	u.out.iovec(header)
	u.out.iovec(data)
	u.add(&u.piece, 1, len(data))
}
