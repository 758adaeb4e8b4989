package packet

import (
	"encoding/binary"
	"net/netip"
)

const (
	arpLen     = 28 // Ethernet and IPv4
	arpRequest = 1
	arpReply   = 2
)

// ARPTarget returns the address that an ARP request asks for and who asks. It reports
// false for everything else: replies, other hardware or protocol types, cut packets.
// sender is 0.0.0.0 in a probe for duplicate addresses (RFC 5227). Valid iff EtherType
// is EtherTypeARP.
func (f *Frame) ARPTarget() (target, sender netip.Addr, ok bool) {
	arp := f.buf[f.L3:f.end]
	if len(arp) < arpLen {
		return netip.Addr{}, netip.Addr{}, false
	}
	const ethernetIPv4 = 1<<48 | EtherTypeIPv4<<32 | 6<<24 | 4<<16 | arpRequest
	if binary.BigEndian.Uint64(arp) != ethernetIPv4 {
		return netip.Addr{}, netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(arp[24:28])), netip.AddrFrom4([4]byte(arp[14:18])), true
}

// ARPFrom returns the sender's addresses in an ARP message of any kind; false when it is none of Ethernet and IPv4. Valid iff Parse returned
// None and EtherType is that of ARP.
func (f *Frame) ARPFrom() (mac MAC, sender netip.Addr, ok bool) {
	arp := f.buf[f.L3:f.end]
	const ethernetIPv4 = 1<<32 | EtherTypeIPv4<<16 | 6<<8 | 4
	if len(arp) < arpLen || binary.BigEndian.Uint64(arp)>>16 != ethernetIPv4 {
		return MAC{}, netip.Addr{}, false
	}
	return MAC(arp[8:14]), netip.AddrFrom4([4]byte(arp[14:18])), true
}

// AnswerARP turns the request in place into the reply that says: target is at mac.
// Valid iff ARPTarget reported true.
func (f *Frame) AnswerARP(mac MAC) {
	arp := f.buf[f.L3:f.end]
	binary.BigEndian.PutUint16(arp[6:], arpReply)
	var asked [4]byte
	copy(asked[:], arp[24:28])
	copy(arp[18:28], arp[8:18]) // the asker's MAC and address become the target
	copy(arp[8:14], mac[:])
	copy(arp[14:18], asked[:])
	f.SetMACs(MAC(arp[18:24]), mac)
	f.VNet = VNet{}
}
