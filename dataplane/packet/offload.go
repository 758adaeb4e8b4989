package packet

import "encoding/binary"

// checkOffload holds the frame's offload metadata against its headers and counts the
// wire segments that it stands for.
func (f *Frame) checkOffload() Verdict {
	if f.VNet.NeedsCsum() {
		if f.Fragment {
			return DropOffload // the checksum covers what is in other frames
		}
		field := f.L2 + int(f.VNet.CsumStart) + int(f.VNet.CsumOffset)
		if f.L2+int(f.VNet.CsumStart) < f.L4 || field+2 > f.end {
			return DropOffload
		}
	}
	if f.VNet.GSOType == GSONone {
		return None
	}
	if f.VNet.GSOType != f.gsoType() || f.VNet.GSOSize == 0 {
		return DropOffload
	}
	if f.VNet.NeedsCsum() && int(f.VNet.CsumStart) != f.L4-f.L2 {
		return DropOffload
	}
	size := int(f.VNet.GSOSize)
	f.Segments = max(1, (f.end-f.Payload+size-1)/size)
	return None
}

// gsoType returns the GSO type that fits the frame's headers; GSONone where none does.
func (f *Frame) gsoType() uint8 {
	if f.Payload == f.L4 {
		return GSONone
	}
	switch {
	case f.Proto == ProtoUDP:
		return GSOUDPL4
	case f.isIPv6():
		return GSOTCPv6
	}
	return GSOTCPv4
}

// l4ChecksumOffset returns where the L4 checksum lies behind L4. Valid iff Payload > L4.
func (f *Frame) l4ChecksumOffset() int {
	if f.Proto == ProtoTCP {
		return 16
	}
	return 6
}

// CompleteChecksum fills in the checksum that the sender left to the device, so that
// any receiver can take the frame. It does nothing for super-packets, whose segments get
// theirs one by one (Segmenter). Valid iff Parse returned None.
func (f *Frame) CompleteChecksum() {
	if !f.VNet.NeedsCsum() || f.VNet.GSOType != GSONone {
		return
	}
	start := f.L2 + int(f.VNet.CsumStart)
	field := start + int(f.VNet.CsumOffset)
	sum := Sum(0).Add(f.buf[start:f.end]).Checksum()
	if sum == 0 && f.VNet.CsumOffset == 6 {
		sum = 0xffff // UDP: zero says "no checksum" (RFC 768)
	}
	binary.BigEndian.PutUint16(f.buf[field:], sum)
	f.VNet = VNet{}
}

// AdoptOffload recognizes work that a kernel on the same machine left undone because no
// device ever was in between: over veth a kernel VXLAN peer's packets arrive with only
// the pseudo-header sum in the inner checksum field, and its super-packets whole. It sets
// VNet and Segments accordingly. limit is the largest packet that can have come uncut, mtu the largest that this
// node's pods take, which TCP is cut down to; gsoSize is the segment size that the socket reported for the datagram, or 0. Valid iff
// Parse returned None and the frame came without metadata.
func (f *Frame) AdoptOffload(limit, mtu, gsoSize int) Verdict {
	if f.Payload == f.L4 {
		return None
	}
	superPacket := gsoSize > 0 || f.Proto == ProtoTCP && f.end-f.L3 > limit
	if !f.checksumIsPartial(superPacket) {
		return None
	}
	f.VNet.Flags = VNetNeedsCsum
	f.VNet.CsumStart = uint16(f.L4 - f.L2)
	f.VNet.CsumOffset = uint16(f.l4ChecksumOffset())
	if f.end-f.L3 <= limit && gsoSize == 0 {
		return None
	}
	if gsoSize == 0 && f.Proto == ProtoTCP {
		gsoSize = mtu - (f.Payload - f.L3) // any size will do: TCP is a stream
	}
	if gsoSize <= 0 || gsoSize > 0xffff {
		return DropOffload // UDP of unknown segment size: the boundaries are lost
	}
	f.VNet.GSOType = f.gsoType()
	f.VNet.GSOSize = uint16(gsoSize)
	f.VNet.HdrLen = uint16(f.Payload - f.L2)
	return f.checkOffload()
}

// checksumIsPartial reports whether the checksum field holds just the sum of the pseudo-header. A
// finished checksum can look the same once in 65,536 packets: then it also verifies. So does one
// in 65,536 of the partial ones, which matters only for a super-packet: it must be cut.
func (f *Frame) checksumIsPartial(superPacket bool) bool {
	length := f.end - f.L4
	pseudo := f.pseudoHeader(length)
	field := binary.BigEndian.Uint16(f.buf[f.L4+f.l4ChecksumOffset():])
	return field == pseudo.Fold() && (superPacket || pseudo.Add(f.buf[f.L4:f.end]).Fold() != 0xffff)
}
