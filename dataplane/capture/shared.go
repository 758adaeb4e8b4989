package capture

import (
	"encoding/binary"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Datagrams that share a send (UDP_SEGMENT), and those that the kernel joined on receipt (UDP_GRO), pass the underlay's link as one
// packet: outer headers once, then their payloads, of one size but for the last. On the cable each is a packet of its own, and so it
// is in the capture: whose they are, only the inner headers tell. Sends of large segments of one TCP stream stay whole, as they are at
// the TAP: a record for each segment would cost the packet path more than all else in a capture, and tell little more.

// minWhole is the length of an inner packet, in bytes, from which on a send of one stream stays whole.
const minWhole = 512

// shared returns the outer headers of a captured packet if it is a send that has to be cut.
func (w *wireReader) shared(data []byte, link LinkType, length int, v packet.VNet) (outer Headers, ok bool) {
	if v.GSOType != packet.GSOUDPL4 || v.GSOSize == 0 || len(data) < length {
		return outer, false
	}
	outer = Dissect(data, link, length)
	ok = outer.UDP != 0 && length-outer.UDP > int(v.GSOSize) && !w.session.config.Tunnel.isOneStream(data[outer.UDP:], int(v.GSOSize))
	return outer, ok
}

// isOneStream returns whether each of these datagrams carries the large TCP segment that follows the one before. Sequence numbers tell:
// those of two connections go on in each other once in 2^32.
func (t Tunnel) isOneStream(payload []byte, size int) bool {
	at, length := t.sequence(payload[:size])
	if at == 0 {
		return false
	}
	for next := binary.BigEndian.Uint32(payload[at:]); len(payload) > 0; next += length {
		if len(payload) < at+4 || binary.BigEndian.Uint32(payload[at:]) != next {
			return false
		}
		payload = payload[min(size, len(payload)):]
	}
	return true
}

// sequence returns where a datagram has the sequence number of a large TCP segment, 0 if it is none, and how far that goes on with its
// payload.
func (t Tunnel) sequence(datagram []byte) (at int, length uint32) {
	ip, link := t.Unwrap(datagram)
	if link == Ethernet && len(ip) >= packet.EthernetLen {
		if ip = ip[packet.EthernetLen:]; len(ip) > 0 && binary.BigEndian.Uint16(datagram[len(datagram)-len(ip)-2:]) != map4or6(ip[0]>>4) {
			return 0, 0
		}
	}
	var header, total int
	switch {
	case len(ip) < minWhole:
		return 0, 0
	case ip[0] == 0x45 && ip[9] == packet.ProtoTCP:
		header, total = ipv4Len, int(binary.BigEndian.Uint16(ip[2:]))
	case ip[0]>>4 == 6 && ip[6] == packet.ProtoTCP:
		header, total = ipv6Len, ipv6Len+int(binary.BigEndian.Uint16(ip[4:]))
	}
	if total != len(ip) {
		return 0, 0
	}
	return len(datagram) - total + header + 4, uint32(total - header - int(ip[header+12]>>4)*4)
}

// cut adds a record for each datagram of a send. r is that of the send.
func (w *wireReader) cut(r Record, tag, data []byte, outer *Headers, size int) {
	r.Segments, r.Size = 1, 0
	r.Flags |= FlagCut
	payload := data[outer.UDP:]
	for i := 0; len(payload) > 0; i++ {
		n := min(size, len(payload))
		w.datagram = append(append(w.datagram[:0], data[:outer.UDP]...), payload[:n]...)
		outer.amendCut(w.datagram, i)
		r.Length = len(tag) + len(w.datagram)
		w.take(&r, tag, w.datagram)
		payload = payload[n:]
	}
}

// amendCut writes into the i-th datagram of a send what the kernel will when it cuts it: lengths, and IPv4's identification and header
// checksum (net/ipv4/af_inet.c, inet_gso_segment). A UDP checksum was left to it from the start.
func (h *Headers) amendCut(b []byte, i int) {
	ip := b[h.Network:]
	binary.BigEndian.PutUint16(b[h.UDP-4:], uint16(len(b)-h.UDP+udpLen))
	if h.EtherType == packet.EtherTypeIPv6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
		return
	}
	header := ip[:int(ip[0]&15)*4]
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], packet.Sum(0).Add(header).Checksum())
}
