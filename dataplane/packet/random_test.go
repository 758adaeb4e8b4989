package packet_test

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/google/gopacket/layers"
)

// randomStack returns a TCP, UDP or ICMP packet with random options, flags and fragment fields.
func randomStack(r *rand.Rand, maxPayload int) stack {
	s := stack{ip: randomIPv4(r), payload: randomBytes(r, r.IntN(maxPayload+1))}
	switch r.IntN(4) {
	case 0:
		s.ip.Protocol = layers.IPProtocolICMPv4
	case 1:
		s.ip.Protocol = layers.IPProtocolUDP
		s.udp = randomUDP(r)
	default:
		s.ip.Protocol = layers.IPProtocolTCP
		s.tcp = randomTCP(r)
	}
	if r.IntN(2) == 0 {
		return s.randomIPv6(r, true)
	}
	return s.fitFragment(r)
}

// randomIPv6 turns the stack into IPv6 with a random extension chain.
func (s stack) randomIPv6(r *rand.Rand, fragments bool) stack {
	s.ip6 = &layers.IPv6{
		Version: 6, TrafficClass: uint8(r.Uint32()), FlowLabel: r.Uint32() & 0xfffff, HopLimit: uint8(r.Uint32()),
		SrcIP: randomBytes(r, 16), DstIP: randomBytes(r, 16),
	}
	s.ip.Flags, s.ip.FragOffset = 0, 0
	if s.l4Len() == 0 {
		s.payload = []byte{0} // an IPv6 payload length of 0 says that there is no next header
	}
	for _, proto := range []uint8{0, 60, 43, 44, 60} { // the order that RFC 8200 section 4.1 recommends
		if r.IntN(3) == 0 && (proto != 44 || fragments) {
			s.ext = append(s.ext, randomExtension(r, proto))
		}
	}
	return s.fitFragment(r)
}

func randomExtension(r *rand.Rand, proto uint8) extension {
	words := r.IntN(5)
	if proto == 44 {
		words = 0
	}
	e := extension{proto, randomBytes(r, 8*(words+1))}
	if e.data[1] = uint8(words); proto == 43 {
		e.data[2], e.data[3] = uint8(1+r.IntN(255)), 0 // any type but 0, no segments left
	}
	if proto == 44 {
		e.data[1] = byte(r.Uint32()) // reserved, no length
		binary.BigEndian.PutUint16(e.data[2:], [3]uint16{0, 1, uint16(3+r.IntN(0x1e00))<<3 | uint16(r.IntN(2))}[r.IntN(3)])
	}
	return e
}

// fitFragment makes the payload one that the fragment fields allow.
func (s stack) fitFragment(r *rand.Rand) stack {
	more := s.ip6 == nil && s.ip.Flags&layers.IPv4MoreFragments != 0
	for _, e := range s.ext {
		more = more || e.proto == 44 && e.data[3]&1 != 0
	}
	if more {
		s.payload = append(s.payload, randomBytes(r, 8)...) // the header of ICMP
		s.payload = s.payload[s.l4Len()%8:]
	}
	return s
}

func randomIPv4(r *rand.Rand) layers.IPv4 {
	ip := layers.IPv4{
		Version: 4, TOS: uint8(r.Uint32()), Id: uint16(r.Uint32()), TTL: uint8(r.Uint32()),
		SrcIP: randomBytes(r, 4), DstIP: randomBytes(r, 4),
	}
	for range r.IntN(3) { // at most 2 of at most 18 bytes
		n := 3 + r.IntN(16)
		ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 0x94, OptionLength: uint8(n), OptionData: randomBytes(r, n-2)})
	}
	switch r.IntN(5) {
	case 0:
		ip.Flags = layers.IPv4MoreFragments
	case 1:
		ip.FragOffset = uint16(3 + r.IntN(0x1f00)) // behind a TCP header, and with room up to 64 KiB
	case 2:
		ip.Flags = layers.IPv4DontFragment
	}
	return ip
}

func randomUDP(r *rand.Rand) *layers.UDP {
	return &layers.UDP{SrcPort: layers.UDPPort(r.Uint32()), DstPort: layers.UDPPort(r.Uint32())}
}

func randomTCP(r *rand.Rand) *layers.TCP {
	flags := r.Uint32()
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(r.Uint32()), DstPort: layers.TCPPort(r.Uint32()),
		Seq: r.Uint32(), Ack: r.Uint32(), Window: uint16(r.Uint32()),
		FIN: flags&1 != 0, PSH: flags&2 != 0, CWR: flags&4 != 0, ECE: flags&8 != 0, NS: flags&16 != 0, ACK: true,
	}
	all := []layers.TCPOption{
		{OptionType: layers.TCPOptionKindNop, OptionLength: 1},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: randomBytes(r, 8)},
		{OptionType: layers.TCPOptionKindSACK, OptionLength: 18, OptionData: randomBytes(r, 16)},
		{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: randomBytes(r, 2)},
	}
	for _, o := range all {
		if r.IntN(2) == 0 {
			tcp.Options = append(tcp.Options, o)
		}
	}
	return tcp
}
