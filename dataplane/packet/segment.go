package packet

import "encoding/binary"

// tcpFlags lie at byte 13 of the TCP header.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// MaxHeaders is the longest run of headers in front of a segment's payload that
// this package writes: headroom, Ethernet, IPv6 with all extension headers that Parse
// takes, and TCP with all options.
const MaxHeaders = Headroom + EthernetLen + ipv6Len + maxExtensionBytes + 60

// A Segmenter cuts a super-packet into the segments that go on the wire, in order. It
// copies headers only; payloads are slices of the frame. Encapsulation headers in front
// of the Ethernet header are repeated as they are, so they must not depend on the length.
type Segmenter struct {
	f         *Frame
	headerLen int // bytes in front of the payload, encapsulation included
	next      int // offset of the next payload byte in f.buf
	index     int
}

// NewSegmenter returns a Segmenter for a frame whose VNet.GSOType is not GSONone. Valid
// iff Parse returned None.
func NewSegmenter(f *Frame) Segmenter {
	return Segmenter{f: f, headerLen: f.Payload - f.start, next: f.Payload}
}

// HeaderLen returns the bytes of header in front of each segment's payload.
func (s *Segmenter) HeaderLen() int { return s.headerLen }

// Done reports whether no segment is left.
func (s *Segmenter) Done() bool { return s.next >= s.f.end && s.index > 0 }

// Next writes the next segment's headers into header, which has HeaderLen bytes, and
// returns its payload; it reports false when there is none left.
func (s *Segmenter) Next(header []byte) (payload []byte, ok bool) {
	f := s.f
	if s.Done() {
		return nil, false
	}
	size := min(int(f.VNet.GSOSize), f.end-s.next)
	payload = f.buf[s.next : s.next+size]
	last := s.next+size == f.end
	copy(header, f.buf[f.start:f.Payload])
	s.fixIP(header, size)
	if f.Proto == ProtoTCP {
		s.fixTCP(header, payload, last)
	} else {
		s.fixUDP(header, payload)
	}
	s.next += size
	s.index++
	return payload, true
}

func (s *Segmenter) fixIP(header []byte, payloadLen int) {
	f := s.f
	ip := header[f.L3-f.start : f.L4-f.start]
	if f.isIPv6() {
		binary.BigEndian.PutUint16(ip[4:], uint16(f.Payload-f.L3-ipv6Len+payloadLen))
		return
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(f.Payload-f.L3+payloadLen))
	id := binary.BigEndian.Uint16(ip[4:])
	binary.BigEndian.PutUint16(ip[4:], id+uint16(s.index))
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], Sum(0).Add(ip).Checksum())
}

func (s *Segmenter) fixTCP(header, payload []byte, last bool) {
	tcp := header[s.f.L4-s.f.start:]
	seq := binary.BigEndian.Uint32(tcp[4:])
	binary.BigEndian.PutUint32(tcp[4:], seq+uint32(s.next-s.f.Payload))
	if s.index > 0 {
		tcp[13] &^= tcpCWR
	}
	if !last {
		tcp[13] &^= tcpFIN | tcpPSH
	}
	tcp[16], tcp[17] = 0, 0
	binary.BigEndian.PutUint16(tcp[16:], s.l4Sum(tcp, payload).Checksum())
}

func (s *Segmenter) fixUDP(header, payload []byte) {
	udp := header[s.f.L4-s.f.start:]
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)+len(payload)))
	udp[6], udp[7] = 0, 0
	sum := s.l4Sum(udp, payload).Checksum()
	if sum == 0 {
		sum = 0xffff // zero says "no checksum" (RFC 768)
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
}

func (s *Segmenter) l4Sum(l4, payload []byte) Sum {
	return s.f.pseudoHeader(len(l4) + len(payload)).Add(l4).Add(payload)
}
