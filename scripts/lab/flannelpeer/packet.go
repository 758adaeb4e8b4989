package main

import (
	"encoding/binary"
	"net/netip"
)

// headerLength is that of an IPv4 header without options, in bytes (RFC 791).
const headerLength = 20

func destination(packet []byte) netip.Addr { return netip.AddrFrom4([4]byte(packet[16:20])) }

// bare says that a datagram is one whole IPv4 packet and nothing else.
func bare(b []byte) bool {
	return len(b) >= headerLength && b[0]>>4 == 4 && b[0]&0xf >= 5 && int(binary.BigEndian.Uint16(b[2:])) == len(b)
}

// decrementTTL is false for a packet that has come to its end. The checksum follows (RFC 1624).
func decrementTTL(packet []byte) bool {
	if packet[8] <= 1 {
		return false
	}
	packet[8]--
	sum := uint32(binary.BigEndian.Uint16(packet[10:])) + 0x100
	binary.BigEndian.PutUint16(packet[10:], uint16(sum+sum>>16))
	return true
}

// unreachable is the ICMP message "net unreachable" (RFC 792, type 3 code 0) for a packet, from an address of this node.
func unreachable(packet []byte, from netip.Addr) []byte {
	quoted := packet[:min(len(packet), int(packet[0]&0xf)*4+8)]
	b := make([]byte, headerLength+8, headerLength+8+len(quoted))
	b = append(b, quoted...)
	b[0], b[8], b[9] = 0x45, 64, 1
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	source := from.As4()
	copy(b[12:], source[:])
	copy(b[16:], packet[12:16])
	binary.BigEndian.PutUint16(b[10:], checksum(b[:headerLength]))
	b[headerLength] = 3
	binary.BigEndian.PutUint16(b[headerLength+2:], checksum(b[headerLength:]))
	return b
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
