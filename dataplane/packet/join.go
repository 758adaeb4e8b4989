package packet

import (
	"bytes"
	"encoding/binary"
)

const tcpACK = 0x10

// MaxJoined is the largest number of segments in a super-packet that Join makes: what the kernel's GRO of UDP takes
// (net/ipv4/udp_offload.c, UDP_GRO_CNT_MAX), and more than a full one of TCP has at an MTU of 1,280.
const MaxJoined = 64

// A Joining says which super-packets the port that a frame goes to takes.
type Joining struct{ TCP, UDP bool }

// Join makes f a super-packet of its own segment and of those that follow it in next, as many as belong to it, and
// returns their number: segments of one TCP stream without a gap, or UDP datagrams of one flow and one size, of which the
// last may be shorter (the rules of the kernel's GRO, net/ipv4/tcp_offload.c and udp_offload.c). Their checksums are
// verified and their payloads stay where they are (More); the super-packet's own checksum is left to the device.
//
// f is decapsulated and CheckL4 returned None for it; next are frames as the port handed them over, of the same batch. Join
// does nothing when f stands for more than a single finished segment.
func (b *Batch) Join(f *Frame, next []*Frame, allowed Joining) int {
	if !f.mayLead(allowed) {
		return 0
	}
	from, l := len(b.pieces), lead{f: f, size: f.end - f.Payload, total: f.end - f.L3}
	for _, g := range next {
		payload := l.follower(g)
		if payload == nil {
			break
		}
		b.pieces = append(b.pieces, payload)
		l.segments++
		l.total += len(payload)
		if l.closed || len(payload) < l.size || l.segments+1 == MaxJoined {
			break
		}
	}
	if l.segments > 0 {
		f.More = b.pieces[from:len(b.pieces):len(b.pieces)]
		l.finish()
	}
	return l.segments
}

// mayLead reports whether a super-packet can begin with the frame. A segment with PSH ends one.
func (f *Frame) mayLead(allowed Joining) bool {
	if f.Payload >= f.end || f.Segments != 1 || f.VNet != (VNet{}) || f.SegmentHint != 0 || f.L4 != f.L3+ipHeaderLen(f.isIPv6()) {
		return false
	}
	l4 := f.buf[f.L4:f.end]
	if f.Proto == ProtoTCP {
		return allowed.TCP && f.Payload > f.L4 && l4[13] == tcpACK
	}
	return allowed.UDP && f.Proto == ProtoUDP && f.Payload > f.L4 && soundUDP(l4)
}

// soundUDP reports whether a UDP packet is as long as it says and has a checksum.
func soundUDP(udp []byte) bool {
	return int(binary.BigEndian.Uint16(udp[4:])) == len(udp) && binary.BigEndian.Uint16(udp[6:]) != 0
}

// A lead is a super-packet while it grows.
type lead struct {
	f        *Frame
	size     int  // payload of each segment but the last, bytes
	total    int  // bytes of IP so far
	segments int  // joined so far
	closed   bool // the last one said that nothing may follow it
}

// follower returns the payload of g if it is the next segment, nil if it is not.
func (l *lead) follower(g *Frame) []byte {
	f := l.f
	headers, encap := f.Payload-f.L3, f.L3-f.origin
	if g.Remote != f.Remote || g.OuterTOS != f.OuterTOS || g.Truncated || g.SegmentHint != 0 || g.Len() <= encap+headers {
		return nil
	}
	data := g.Bytes()
	if !bytes.Equal(data[:encap], f.buf[f.origin:f.L3]) {
		return nil
	}
	ip := l.packet(data[encap:])
	if len(ip) <= headers || len(ip) > headers+l.size || l.total+len(ip)-headers > 0xffff {
		return nil
	}
	l4 := ip[f.L4-f.L3:]
	if !l.continues(l4) || f.pseudoHeader(len(l4)).Add(l4).Fold() != 0xffff {
		return nil
	}
	return ip[headers:]
}

// packet returns the IP packet of the follower, cut to its length, if its header is that of the lead; nil if it is not.
func (l *lead) packet(ip []byte) []byte {
	own := l.f.buf[l.f.L3:l.f.L4]
	length := len(ip) + 1
	if l.f.isIPv6() {
		if bytes.Equal(ip[:4], own[:4]) && bytes.Equal(ip[6:ipv6Len], own[6:ipv6Len]) {
			length = ipv6Len + int(binary.BigEndian.Uint16(ip[4:]))
		}
	} else if bytes.Equal(ip[:2], own[:2]) && bytes.Equal(ip[6:10], own[6:10]) && bytes.Equal(ip[12:ipv4MinLen], own[12:]) && l.numbered(ip) &&
		Sum(0).Add(ip[:ipv4MinLen]).Fold() == 0xffff {
		length = int(binary.BigEndian.Uint16(ip[2:]))
	}
	if length > len(ip) {
		return nil
	}
	return ip[:length]
}

// numbered reports whether cutting the super-packet again gives the follower its ID back, where that matters (RFC 6864).
func (l *lead) numbered(ip []byte) bool {
	own := l.f.buf[l.f.L3:]
	return l.f.DontFragment() || binary.BigEndian.Uint16(ip[4:]) == binary.BigEndian.Uint16(own[4:])+uint16(l.segments+1)
}

// continues reports whether the follower's L4 header is the one that comes next.
func (l *lead) continues(l4 []byte) bool {
	own := l.f.buf[l.f.L4:l.f.Payload]
	if l.f.Proto == ProtoUDP {
		return bytes.Equal(l4[:4], own[:4]) && soundUDP(l4)
	}
	l.closed = l4[13] == tcpACK|tcpPSH
	sent := uint32(l.total - (l.f.Payload - l.f.L3))
	return (l.closed || l4[13] == tcpACK) && binary.BigEndian.Uint32(l4[4:]) == binary.BigEndian.Uint32(own[4:])+sent &&
		bytes.Equal(l4[:4], own[:4]) && bytes.Equal(l4[8:13], own[8:13]) && bytes.Equal(l4[14:16], own[14:16]) && bytes.Equal(l4[18:len(own)], own[18:])
}

// finish writes the headers of the whole into the first segment's, and says what is left to the device.
func (l *lead) finish() {
	f, length := l.f, l.total-(l.f.L4-l.f.L3)
	ip, l4 := f.buf[f.L3:f.L4], f.buf[f.L4:f.Payload]
	if f.isIPv6() {
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(l.total))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], Sum(0).Add(ip).Checksum())
	}
	switch {
	case f.Proto == ProtoUDP:
		binary.BigEndian.PutUint16(l4[4:], uint16(length))
	case l.closed:
		l4[13] |= tcpPSH
	}
	checksum := f.l4ChecksumOffset()
	binary.BigEndian.PutUint16(l4[checksum:], f.pseudoHeader(length).Fold())
	f.VNet = VNet{
		Flags: VNetNeedsCsum, GSOType: f.gsoType(), GSOSize: uint16(l.size), HdrLen: uint16(f.Payload - f.L2),
		CsumStart: uint16(f.L4 - f.L2), CsumOffset: uint16(checksum),
	}
	f.Segments = 1 + l.segments
}

// MoreLen returns the bytes in More.
func (f *Frame) MoreLen() (n int) {
	for _, piece := range f.More {
		n += len(piece)
	}
	return n
}

// AppendTo appends the whole frame to b: its Ethernet header wherever it lies, its bytes, and those of the segments that
// were joined to it.
func (f *Frame) AppendTo(b []byte) []byte {
	b = append(append(b, f.DetachedLink()...), f.Bytes()...)
	for _, piece := range f.More {
		b = append(b, piece...)
	}
	return b
}
