package packet

import (
	"encoding/binary"
	"net/netip"
)

// AnswerEcho turns an echo request in place into its reply, and reports false for everything else: a wrong checksum,
// fragments, IP options or extension headers, which a reply would have to turn round (RFC 1122 section 3.2.2.6), a
// source or destination that is no single host. The MACs are left to the caller (SetMACs). Valid iff Parse returned
// None.
func (f *Frame) AnswerEcho() bool {
	if _, _, ok := f.echo(icmpEchoRequest, icmp6EchoRequest); !ok || !isHost(f.Src) || !isHost(f.Dst) {
		return false
	}
	addresses := f.addresses()
	var source [16]byte
	half := copy(source[:], addresses[:len(addresses)/2])
	copy(addresses, addresses[half:])
	copy(addresses[half:], source[:half])
	if f.isIPv6() {
		f.buf[f.L3+7], f.buf[f.L4] = icmpHopLimit, icmp6EchoReply
	} else {
		f.buf[f.L3+8], f.buf[f.L4] = icmpHopLimit, icmpEchoReply
	}
	return f.finishICMP()
}

// echo returns the identifier and sequence number of a whole and sound message of the type.
func (f *Frame) echo(type4, type6 uint8) (id, seq uint16, ok bool) {
	if f.Fragment || !f.isICMP() || f.L4 != f.L3+ipHeaderLen(f.isIPv6()) || f.CheckL4() != None || f.VNet.NeedsCsum() {
		return 0, 0, false
	}
	return f.echoHeader(type4, type6)
}

// echoHeader returns the identifier and sequence number of a message of the type, which has the code 0.
func (f *Frame) echoHeader(type4, type6 uint8) (id, seq uint16, ok bool) {
	want := type4
	if f.isIPv6() {
		want = type6
	}
	message := f.buf[f.L4:f.end]
	if message[0] != want || message[1] != 0 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint16(message[4:]), binary.BigEndian.Uint16(message[6:]), true
}

// EchoRequest appends to dst an echo request of size bytes of IP, which no router may fragment. It reports false when
// dst is full, the size is impossible or the addresses are not of one family. The new frame is parsed and has no MACs
// yet (SetMACs).
func EchoRequest(dst *Batch, from, to netip.Addr, id, seq uint16, size int) (*Frame, bool) {
	if size < ipHeaderLen(from.Is6())+icmpLen || size > 0xffff {
		return nil, false
	}
	f := newICMP(dst, from, to, size)
	if f == nil {
		return nil, false
	}
	message := f.buf[f.L4:f.end]
	clear(message)
	if message[0] = icmpEchoRequest; f.isIPv6() {
		message[0] = icmp6EchoRequest
	}
	binary.BigEndian.PutUint16(message[4:], id)
	binary.BigEndian.PutUint16(message[6:], seq)
	return f, f.finishICMP()
}

// EchoReply returns the identifier and sequence number of an echo reply, and reports false for everything else and for
// a wrong checksum. Of a reply in fragments the first one will do, whose checksum cannot be known: the kernel that
// replies may believe its own way to be narrow, and what the reply shows is that the request arrived. Valid iff Parse
// returned None.
func (f *Frame) EchoReply() (id, seq uint16, ok bool) {
	if f.Fragment && f.FragmentOffset == 0 && f.isICMP() && f.end-f.L4 >= icmpLen {
		return f.echoHeader(icmpEchoReply, icmp6EchoReply)
	}
	return f.echo(icmpEchoReply, icmp6EchoReply)
}
