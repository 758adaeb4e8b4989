package encap

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Read appends the datagrams that wait in the socket, up to 16 frames of it. Datagrams that the kernel joined become
// a frame each; fragments become one when their datagram is whole. While the link is down or gone nothing comes.
func (u *PacketUnderlay) Read(b *packet.Batch) (int, error) {
	armed := u.recv.arm(b)
	if armed == 0 {
		return 0, nil
	}
	n, errno := recvmmsg(u.fd, u.recv.msgs[:armed])
	switch errno {
	case 0:
	case unix.EINVAL: // the kernel threw one away: virtio_net_hdr cannot say what is left to do with it
		u.refuse(packet.DropOffload)
		return 0, nil
	case unix.EAGAIN, unix.EINTR, unix.ENETDOWN, unix.ENODEV, unix.ENXIO:
		return 0, nil
	default:
		return 0, fmt.Errorf("read underlay: %w", errno)
	}
	before := len(b.Frames)
	for i := range n {
		u.take(b, i)
	}
	return len(b.Frames) - before, nil
}

// take appends the frames of message i to the batch.
func (u *PacketUnderlay) take(b *packet.Batch, i int) {
	m, slot := &u.recv.msgs[i], u.recv.slots[i]
	start := packet.Headroom - u.recv.front
	if m.len < packet.VNetLen {
		u.refuse(packet.DropFrameTruncated)
		return
	}
	j := joined{slot: slot, truncated: m.hdr.Flags&unix.MSG_TRUNC != 0}
	vnet := packet.DecodeVNet(slot[start:])
	f, v := u.outer(slot, start+packet.VNetLen, start+int(m.len))
	if v == packet.None && f.Fragment {
		if f, v = u.reassemble(f, slot); f == nil && v == packet.None {
			return // it waits for others
		}
		vnet = packet.VNet{} // nobody has seen the datagram whole before
	}
	if v == packet.None {
		v = u.payloadOf(&j, f, vnet)
	}
	switch {
	case v != packet.None:
		u.refuse(v)
	case j.end > 0:
		j.split(b, u.framing)
	}
}

// outer parses a frame, which becomes the one of u.frames. Its data lies at Headroom or behind it.
func (u *PacketUnderlay) outer(slot []byte, start, end int) (*packet.Frame, packet.Verdict) {
	u.frames.Reset()
	f := u.frames.Append(slot, start, end)
	v := f.Parse()
	if v == packet.None && f.EtherType != u.family.etherType {
		v = packet.DropEtherType
	}
	return f, v
}

// payloadOf finds the datagram in an outer frame. It checks what UDP of the kernel checks; j stays empty for a datagram
// to another port, which only fragments can be.
func (u *PacketUnderlay) payloadOf(j *joined, f *packet.Frame, vnet packet.VNet) packet.Verdict {
	l4 := f.L4Bytes()
	if f.Proto != packet.ProtoUDP || len(l4) < outerUDPLen {
		return packet.DropFrameTruncated
	}
	length := int(binary.BigEndian.Uint16(l4[4:]))
	src, dst := f.Ports()
	switch {
	case length < outerUDPLen || length > len(l4):
		return packet.DropFrameTruncated
	case dst != u.local.Port():
		return packet.None
	case vnet.Flags&(packet.VNetNeedsCsum|packet.VNetDataValid) == 0:
		if v := f.CheckL4(); v != packet.None {
			return v
		}
	}
	j.start, j.end = f.Payload, f.L4+length
	j.remote, j.tos = netip.AddrPortFrom(f.Src, src), f.TOS()
	if vnet.GSOType != packet.GSONone {
		j.size = int(vnet.GSOSize)
		outer := f.L4 - f.L2
		j.whole = vnet.GSOType != packet.GSOUDPL4 || vnet.NeedsCsum() && int(vnet.CsumStart) != outer
	}
	return packet.None
}

// reassemble adds a fragment to its datagram. It returns the whole datagram in one frame, in the fragment's slot, or nil
// while there are others to come.
func (u *PacketUnderlay) reassemble(f *packet.Frame, slot []byte) (*packet.Frame, packet.Verdict) {
	ip, data, v := u.partial.add(f, u.local.Port(), u.clock(), u.refuse)
	if data == nil {
		return nil, v
	}
	start := packet.Headroom - u.recv.front + packet.VNetLen
	b := slot[start:]
	putEthernet(b, &NextHop{}, u.family.etherType)
	ip.put(b[packet.EthernetLen:])
	headers := packet.EthernetLen + u.family.ipLen
	copy(b[headers:], data)
	return u.outer(slot, start, start+headers+len(data))
}

func (u *PacketUnderlay) refuse(v packet.Verdict) { u.refused[v].Add(1) }
