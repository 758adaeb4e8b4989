package packet

import (
	"encoding/binary"
	"net/netip"
)

// An ICMPKind is an error that the engine reports to a sender.
type ICMPKind uint8

// Errors, with what they are in ICMP (RFC 792, RFC 1812 section 5.2.7.1) and ICMPv6 (RFC 4443 section 3).
const (
	NoRoute            ICMPKind = iota // network unreachable; no route to destination
	AddressUnreachable                 // host unreachable; address unreachable
	PortUnreachable                    // port unreachable, both
	AdminProhibited                    // communication administratively prohibited, both
	HopLimitExceeded                   // TTL or hop limit exceeded in transit
	TooBig                             // fragmentation needed, with the MTU (RFC 1191); packet too big
)

// Type and code, by ICMPKind.
var (
	icmp4Codes = [...][2]uint8{
		{icmpUnreachable, 0}, {icmpUnreachable, 1}, {icmpUnreachable, 3}, {icmpUnreachable, 13},
		{icmpTimeExceeded, 0}, {icmpUnreachable, 4},
	}
	icmp6Codes = [...][2]uint8{
		{icmp6Unreachable, 0}, {icmp6Unreachable, 3}, {icmp6Unreachable, 4}, {icmp6Unreachable, 1},
		{icmp6TimeExceeded, 0}, {icmp6TooBig, 0},
	}
)

const (
	icmpHopLimit = 64

	// Largest error messages, IP header included: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 c.
	icmp4ErrorMax = 576
	icmp6ErrorMax = 1280

	icmpErrorTOS = 0xc0 // internetwork control (RFC 1812 section 4.3.2.5)
)

// ICMPError appends to dst the error that tells the offending packet's sender what became of it. It reports false
// where none may be sent (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e): about ICMP errors and redirects, later
// fragments, packets to multicast or broadcast addresses of either layer, or from a source that is no single host; and
// when dst is full or from is of the other address family. mtu, bytes of IP, is for TooBig alone.
//
// The error quotes as much as the RFCs allow of the packet as it would have left: of a super-packet its first segment.
// For that an unfinished checksum is finished in the offending frame. The new frame is parsed and has no MACs yet
// (SetMACs). Valid iff Parse returned None for offending.
func ICMPError(dst *Batch, offending *Frame, from netip.Addr, kind ICMPKind, mtu int) (*Frame, bool) {
	if !offending.deservesError() || int(kind) >= len(icmp4Codes) {
		return nil, false
	}
	limit, codes, mtuMax := icmp4ErrorMax, icmp4Codes[kind], 0xffff
	if offending.isIPv6() {
		limit, codes, mtuMax = icmp6ErrorMax, icmp6Codes[kind], 1<<31-1
	}
	headers := ipHeaderLen(offending.isIPv6()) + icmpLen
	f := newICMP(dst, from, offending.Src, min(limit, headers+offending.SegmentLen()))
	if f == nil {
		return nil, false
	}
	message := f.buf[f.L4:f.end]
	clear(message[:icmpLen])
	offending.quote(message[icmpLen:])
	message[0], message[1] = codes[0], codes[1]
	if kind == TooBig {
		binary.BigEndian.PutUint32(message[4:], uint32(max(0, min(mtu, mtuMax))))
	}
	if !f.isIPv6() {
		f.buf[f.L3+1] = icmpErrorTOS
	}
	return f, f.finishICMP()
}

// deservesError reports whether an error may be sent about the packet.
func (f *Frame) deservesError() bool {
	switch {
	case f.EtherType != EtherTypeIPv4 && !f.isIPv6(), f.FragmentOffset > 0, f.isICMP() && !f.isICMPInfo():
		return false
	case !f.Detached && f.DstMAC()[0]&1 != 0:
		return false
	case f.Dst.IsMulticast() || f.Dst == broadcast4:
		return false
	}
	return isHost(f.Src)
}

// isHost reports whether the address can be that of a single host (RFC 1122 section 3.2.2: not zero, loopback,
// multicast, broadcast or class E).
func isHost(a netip.Addr) bool {
	if a.Is4() {
		first := a.As4()[0]
		return first != 0 && first != 127 && first < 224
	}
	return a.IsLinkLocalUnicast() || !neverForwarded(a) && !a.IsMulticast()
}

// isICMPInfo reports whether the ICMP message is neither an error nor a redirect. Valid iff isICMP.
func (f *Frame) isICMPInfo() bool {
	if f.end-f.L4 < icmpLen {
		return false
	}
	t := f.buf[f.L4]
	if f.isIPv6() {
		return t >= 128 && t != ndLast
	}
	switch t {
	case icmpUnreachable, icmpSourceQuench, icmpRedirect, icmpTimeExceeded, icmpParameter:
		return false
	}
	return true
}

// quote copies the packet as it would have left to b, as much as there is room for. b has room for the headers.
func (f *Frame) quote(b []byte) {
	f.CompleteChecksum()
	if f.VNet.GSOType == GSONone {
		copy(b, f.buf[f.L3:f.end])
		return
	}
	start := f.start
	f.start = f.L3 // the segment's headers from IP on
	cut := NewSegmenter(f)
	payload, _ := cut.Next(b[:cut.HeaderLen()])
	copy(b[cut.HeaderLen():], payload)
	f.start = start
}

func ipHeaderLen(v6 bool) int {
	if v6 {
		return ipv6Len
	}
	return ipv4MinLen
}

// newICMP appends to dst a frame of size bytes of IP, with its Ethernet and IP headers written and its offsets set as
// far as L4. It returns nil when dst is full or the addresses are not of one family.
func newICMP(dst *Batch, from, to netip.Addr, size int) *Frame {
	slot := dst.Slot(EthernetLen + size)
	if slot == nil || from.BitLen() != to.BitLen() || from.BitLen() == 0 {
		return nil
	}
	end := Headroom + EthernetLen + size
	dst.Claim(end)
	f := dst.Append(slot, Headroom, end)
	f.L2, f.L3 = Headroom, Headroom+EthernetLen
	f.L4 = f.L3 + ipHeaderLen(from.Is6())
	clear(f.buf[f.L2:f.L4])
	if f.EtherType = EtherTypeIPv4; from.Is6() {
		f.EtherType = EtherTypeIPv6
		f.writeIPv6(from.As16(), to.As16(), icmpHopLimit)
	} else {
		f.writeIPv4(from.As4(), to.As4())
	}
	binary.BigEndian.PutUint16(f.buf[f.L2+12:], f.EtherType)
	return f
}

// writeIPv4 writes the IPv4 header of an ICMP message that fills the frame behind it, without its checksum. It may not
// be fragmented, and so needs no identification (RFC 6864).
func (f *Frame) writeIPv4(src, dst [4]byte) {
	ip := f.buf[f.L3:f.end]
	ip[0] = 4<<4 | ipv4MinLen/4
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[6:], ipv4DontFragment)
	ip[8], ip[9] = icmpHopLimit, ProtoICMP
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
}

// finishICMP makes the checksums anew and parses the frame.
func (f *Frame) finishICMP() bool {
	message := f.buf[f.L4:f.end]
	message[2], message[3] = 0, 0
	sum := Sum(0)
	if f.isIPv6() {
		sum = pseudoHeader(f.addresses(), ProtoICMPv6, len(message))
	} else {
		ip := f.buf[f.L3:f.L4]
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], Sum(0).Add(ip).Checksum())
	}
	binary.BigEndian.PutUint16(message[2:], sum.Add(message).Checksum())
	return f.Parse() == None
}
