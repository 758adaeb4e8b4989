package packet

import "encoding/binary"

// TOS returns the IPv4 TOS or IPv6 traffic class byte (DSCP and ECN). Valid iff IP.
func (f *Frame) TOS() uint8 {
	if f.isIPv6() {
		return f.buf[f.L3]<<4 | f.buf[f.L3+1]>>4
	}
	return f.buf[f.L3+1]
}

// TTL returns the IPv4 time to live or IPv6 hop limit. Valid iff IP.
func (f *Frame) TTL() uint8 {
	if f.isIPv6() {
		return f.buf[f.L3+7]
	}
	return f.buf[f.L3+8]
}

// DecrementTTL takes one from the TTL or hop limit, which must not be zero. Valid iff IP.
func (f *Frame) DecrementTTL() {
	if f.isIPv6() {
		f.buf[f.L3+7]--
		return
	}
	f.setIPv4Word(8, binary.BigEndian.Uint16(f.buf[f.L3+8:])-1<<8)
}

// setIPv4Word rewrites 16 bits of the IPv4 header and its checksum with them (RFC 1624, equation 3).
func (f *Frame) setIPv4Word(at int, word uint16) {
	ip := f.buf[f.L3:f.L4]
	old := binary.BigEndian.Uint16(ip[at:])
	binary.BigEndian.PutUint16(ip[at:], word)
	sum := Sum(0).AddUint16(^binary.BigEndian.Uint16(ip[10:])).AddUint16(^old).AddUint16(word)
	binary.BigEndian.PutUint16(ip[10:], sum.Checksum())
}

// DontFragment reports whether routers must not fragment the packet: DF in IPv4, always in IPv6. Valid iff IP.
func (f *Frame) DontFragment() bool {
	return f.isIPv6() || binary.BigEndian.Uint16(f.buf[f.L3+6:])&ipv4DontFragment != 0
}

// SegmentLen returns the length of the largest IP packet that the frame is on the wire, in bytes. Valid iff IP.
func (f *Frame) SegmentLen() int {
	whole := f.end - f.L3
	if f.VNet.GSOType == GSONone {
		return whole
	}
	return min(whole, f.Payload-f.L3+int(f.VNet.GSOSize))
}

// CheckL4 verifies the checksum of TCP, UDP, ICMP and ICMPv6. It returns DropL4Checksum when that is wrong, a zero
// of UDP over IPv6 (RFC 8200 section 8.1) and a UDP length that has no room for its header among it, and
// DropFrameTruncated when the L4 header is cut or the UDP length runs over the packet's end. It returns None for
// other protocols, fragments, UDP over IPv4 without checksum, and checksums that the sender left to the device
// (NeedsCsum, super-packets). Valid iff IP.
func (f *Frame) CheckL4() Verdict {
	if f.Fragment || f.VNet.NeedsCsum() || f.VNet.GSOType != GSONone {
		return None
	}
	switch {
	case f.Proto == ProtoUDP:
		return f.checkUDP()
	case f.Proto == ProtoTCP:
		if f.Payload == f.L4 {
			return DropFrameTruncated
		}
		return f.checkL4Sum(f.pseudoHeader(f.end-f.L4), f.end)
	case !f.isICMP():
		return None
	case f.end-f.L4 < icmpLen:
		return DropFrameTruncated
	case f.isIPv6():
		return f.checkL4Sum(f.pseudoHeader(f.end-f.L4), f.end)
	}
	return f.checkL4Sum(0, f.end)
}

func (f *Frame) checkL4Sum(sum Sum, end int) Verdict {
	if sum.Add(f.buf[f.L4:end]).Fold() != 0xffff {
		return DropL4Checksum
	}
	return None
}

func (f *Frame) checkUDP() Verdict {
	if f.Payload == f.L4 {
		return DropFrameTruncated
	}
	length := int(binary.BigEndian.Uint16(f.buf[f.L4+4:]))
	switch none := f.buf[f.L4+6]|f.buf[f.L4+7] == 0; {
	case f.L4+length > f.end:
		return DropFrameTruncated
	case length < udpLen:
		return DropL4Checksum
	case none && !f.isIPv6():
		return None
	case none:
		return DropL4Checksum
	}
	return f.checkL4Sum(f.pseudoHeader(length), f.L4+length)
}
