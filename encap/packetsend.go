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

// Write sends each frame to the next hop of its Remote. Super-packets leave as one GSO frame of equal datagrams, which the
// device or the kernel cuts; their outer checksums are finished there too.
func (u *PacketUnderlay) Write(b *packet.Batch) error {
	u.hops, u.waited = u.nextHops.load(), false
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
	first := u.begin(1, 0)
	u.out.iovec(f.Bytes())
	u.add(f, hop, first, 1, f.Len(), 0)
}

// queueSuper cuts a super-packet into as few frames as the outer length fields allow. Segments that are fragments on this
// path go one by one.
func (u *PacketUnderlay) queueSuper(f *packet.Frame, hop *NextHop) {
	cut := packet.NewSegmenter(f)
	size := cut.HeaderLen() + int(f.VNet.GSOSize) // of each datagram but the last
	most := 1
	if fits := u.fits(size, hop); fits && u.gso.Load() {
		most = max(1, min(maxSegments, u.family.maxPayload/size))
	} else if !fits {
		u.fallbacks.Add(1)
	}
	for more := true; more; {
		first := u.begin(2*most, most*cut.HeaderLen())
		var segments, bytes int
		if segments, bytes, more = u.out.cut(&cut, most); segments > 0 {
			u.add(f, hop, first, segments, bytes, size)
		}
	}
}

func (u *PacketUnderlay) fits(datagram int, hop *NextHop) bool {
	return datagram <= u.family.maxPayload && u.family.ipLen+outerUDPLen+datagram <= hop.MTU
}

// begin makes room for one more message, by sending what is queued if need be, and starts it with the iovec of the outer
// headers, whose index it returns. The rest of the message follows at once.
func (u *PacketUnderlay) begin(iovecs, headers int) int {
	if u.count == maxMessages || !u.out.hasRoom(1+iovecs, maxOuter+headers) {
		u.flush()
	}
	first := u.out.nIovecs
	u.out.iovec(u.out.header(packet.VNetLen + packet.EthernetLen + u.family.ipLen + outerUDPLen))
	return first
}

// add queues the message whose iovecs begin with the outer headers at index first, or sends it in fragments.
func (u *PacketUnderlay) add(f *packet.Frame, hop *NextHop, first, segments, bytes, segmentSize int) {
	iovecs := u.out.iovecs[first:u.out.nIovecs]
	if segments == 1 && !u.fits(bytes, hop) {
		u.sendFragments(f, hop, iovecs[1:], bytes)
		return
	}
	id := u.ids.Add(uint32(segments)) - uint32(segments)
	u.putOuter(bytesOf(&iovecs[0]), f, hop, id, segments, bytes, segmentSize)
	u.push(f, iovecs, segments, bytes)
}

// bytesOf returns what an iovec points to.
func bytesOf(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// putOuter writes all headers in front of datagrams of so many bytes together. Their UDP checksum is left to the device.
func (u *PacketUnderlay) putOuter(b []byte, f *packet.Frame, hop *NextHop, id uint32, segments, bytes, segmentSize int) {
	ip := u.outerIP(f)
	ip.id, ip.payload = id, outerUDPLen+bytes
	l4 := packet.EthernetLen + u.family.ipLen
	vnet := packet.VNet{
		Flags: packet.VNetNeedsCsum, HdrLen: uint16(l4 + outerUDPLen), CsumStart: uint16(l4), CsumOffset: udpChecksumOffset,
	}
	if segments > 1 {
		vnet.GSOType, vnet.GSOSize = u.gsoType, uint16(segmentSize)
	}
	vnet.Encode(b)
	b = b[packet.VNetLen:]
	putEthernet(b, hop, u.family.etherType)
	ip.put(b[packet.EthernetLen:])
	putUDP(b[l4:], u.SourcePort(f), f.Remote.Port(), bytes, ip.pseudoHeader(ip.payload).Fold())
}

// outerIP returns what the outer IP headers of a frame have in common.
func (u *PacketUnderlay) outerIP(f *packet.Frame) outerIP {
	return outerIP{src: u.local.Addr(), dst: f.Remote.Addr().Unmap(), tos: f.OuterTOS, label: f.Hash & 0xfffff}
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
	u.send(u.sendSingly)
	u.out.reset()
}

// sendSingly sends message i datagram by datagram, after errno refused it whole. When that works super-packets are
// cut here from then on: the kernel does not know GSO of UDP on packet sockets (before Linux 6.2).
func (u *PacketUnderlay) sendSingly(i int, errno syscall.Errno) {
	u.fallbacks.Add(1)
	m, h := &u.meta[i], &u.msgs[i].hdr
	iovecs := unsafe.Slice(h.Iov, h.Iovlen) // the outer headers, then header and payload of each segment
	outer := iovecs[0]
	hop := NextHop{MAC: packet.MAC(bytesOf(&outer)[packet.VNetLen:]), Source: packet.MAC(bytesOf(&outer)[packet.VNetLen+6:])}
	id := u.ids.Add(uint32(m.segments)) - uint32(m.segments)
	for ; len(iovecs) >= 3; iovecs = iovecs[2:] {
		iovecs[0] = outer // in the place of a payload that has been sent
		bytes := int(iovecs[1].Len + iovecs[2].Len)
		u.putOuter(bytesOf(&outer), m.frame, &hop, id, 1, bytes, 0)
		id++
		h.Iov = &iovecs[0]
		h.SetIovlen(3)
		u.sendPart(i, bytes)
	}
	if errno != unix.EMSGSIZE && m.frame.Refused == 0 {
		u.gso.Store(false)
	}
}

// sendFragments sends one datagram, which is larger than the path's MTU, as fragments, with its checksum. It leaves whole
// or counts as refused.
func (u *PacketUnderlay) sendFragments(f *packet.Frame, hop *NextHop, parts []unix.Iovec, bytes int) {
	ip := u.outerIP(f)
	ip.fragment = true
	room := (hop.MTU - ip.len()) &^ 7
	if bytes > u.family.maxPayload || room <= 0 {
		f.Refused++
		return
	}
	b := u.finished(&ip, f, parts)
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
	if u.piece.Refused > 0 {
		f.Refused++
		return
	}
	f.Sent++
	f.SentBytes += bytes
}

// finished puts a datagram together, with a checksum that nobody has to finish.
func (u *PacketUnderlay) finished(ip *outerIP, f *packet.Frame, parts []unix.Iovec) []byte {
	b := u.datagram[:outerUDPLen]
	for i := range parts {
		b = append(b, bytesOf(&parts[i])...)
	}
	putUDP(b, u.SourcePort(f), f.Remote.Port(), len(b)-outerUDPLen, 0)
	ip.finishUDP(b)
	return b
}

func (u *PacketUnderlay) queueFragment(ip *outerIP, hop *NextHop, data []byte) {
	if u.count == maxMessages || !u.out.hasRoom(2, maxOuter) {
		u.flush()
	}
	header := u.out.header(packet.VNetLen + packet.EthernetLen + ip.len())
	packet.VNet{}.Encode(header)
	putEthernet(header[packet.VNetLen:], hop, u.family.etherType)
	ip.put(header[packet.VNetLen+packet.EthernetLen:])
	first := u.out.nIovecs
	u.out.iovec(header)
	u.out.iovec(data)
	u.push(&u.piece, u.out.iovecs[first:u.out.nIovecs], 1, len(data))
}
