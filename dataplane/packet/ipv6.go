package packet

import (
	"encoding/binary"
	"net/netip"
)

const (
	ipv6Len         = 40
	ipv6FragmentLen = 8

	// Bounds of an extension chain, which RFC 8504 section 5.3 lets a node set. The longest that RFC 8200 recommends has
	// five headers: hop-by-hop, destination options, routing, fragment, destination options.
	maxExtensions     = 8
	maxExtensionBytes = 256
)

// IPv6 extension headers (RFC 8200 section 4), and the number that says that nothing follows.
const (
	protoHopByHop    = 0
	protoRouting     = 43
	protoFragment    = 44
	protoNoNext      = 59
	protoDestination = 60
)

// Fields of the fragment header behind its next header and reserved byte.
const (
	ipv6OffsetMask    = 0xfff8 // in bytes as it stands
	ipv6MoreFragments = 1
)

func (f *Frame) isIPv6() bool { return f.EtherType == EtherTypeIPv6 }

func (f *Frame) parseIPv6() Verdict {
	ip := f.buf[f.L3:f.end]
	if len(ip) < ipv6Len {
		return DropFrameTruncated
	}
	payloadLen := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || payloadLen == 0 && ip[6] != protoNoNext {
		return DropIPHeader
	}
	if ipv6Len+payloadLen > len(ip) {
		return DropFrameTruncated
	}
	ip = ip[:ipv6Len+payloadLen]
	c := chain{proto: ip[6], end: ipv6Len}
	if isExtension(c.proto) {
		if v := walkExtensions(ip, &c); v != None {
			return v
		}
		f.setChainFragment(ip, &c)
	}
	f.end = f.L3 + len(ip)
	f.L4 = f.L3 + c.end
	f.Proto = c.proto
	f.Src = netip.AddrFrom16([16]byte(ip[8:24]))
	f.Dst = netip.AddrFrom16([16]byte(ip[24:40]))
	return f.parseL4(hashIPv6(ip[8:24]), hashIPv6(ip[24:40]))
}

// hashIPv6 makes 64 bits of an address that both of its halves are spread over.
func hashIPv6(a []byte) uint64 {
	return mix(mix(binary.BigEndian.Uint64(a)) + binary.BigEndian.Uint64(a[8:]))
}

// isExtension reports whether the chain goes on behind a header with the number. Everything else ends it like an
// upper-layer protocol does: authentication and encryption too, behind which nothing may be changed (RFC 4302).
func isExtension(proto uint8) bool {
	switch proto {
	case protoHopByHop, protoRouting, protoFragment, protoDestination:
		return true
	}
	return false
}

// A chain is an IPv6 extension chain that has been walked. Offsets are from the IP header.
type chain struct {
	proto    uint8 // the header that it ends with
	end      int   // where that starts
	fragment int   // where the fragment header is; 0 without one
	later    bool  // a fragment with an offset: the chain ends behind its fragment header
	first    bool  // a fragment at offset 0 that others follow
	quoted   bool  // the packet may be cut behind the chain: its length says nothing
	count    int
}

// walkExtensions walks the chain of a packet from c, which stands behind the fixed header. It returns DropExtension
// for a header that runs over the packet's end, more headers than the bounds allow, hop-by-hop options elsewhere than
// at the front, a routing header of type 0 (RFC 5095) or with segments left, whose packet goes elsewhere than its
// destination says, a second fragment header, or a fragment that its datagram cannot hold. A first fragment that
// does not hold the whole chain is DropFragmentTiny (RFC 7112).
func walkExtensions(ip []byte, c *chain) Verdict {
	for isExtension(c.proto) && !c.later {
		length, v := c.header(ip)
		if v != None {
			return v
		}
		c.proto = ip[c.end]
		c.end += length
		c.count++
		if c.count > maxExtensions || c.end > ipv6Len+maxExtensionBytes {
			return DropExtension
		}
	}
	return None
}

// header checks the extension header that the chain stands at and returns its length.
func (c *chain) header(ip []byte) (int, Verdict) {
	rest := ip[c.end:]
	length := 8
	if len(rest) >= 8 && c.proto != protoFragment {
		length = (int(rest[1]) + 1) * 8
	}
	switch {
	case c.proto == protoHopByHop && c.end != ipv6Len:
		return 0, DropExtension
	case len(rest) < length && c.first:
		return 0, DropFragmentTiny
	case len(rest) < length:
		return 0, DropExtension
	case c.proto == protoRouting && (rest[2] == 0 || rest[3] != 0):
		return 0, DropExtension
	case c.proto == protoFragment:
		return length, c.fragmentHeader(rest)
	}
	return length, None
}

func (c *chain) fragmentHeader(rest []byte) Verdict {
	word := binary.BigEndian.Uint16(rest[2:])
	offset, more := int(word&ipv6OffsetMask), word&ipv6MoreFragments != 0
	fits := c.quoted || fragmentFits(c.end-ipv6Len, offset, len(rest)-ipv6FragmentLen, more)
	if c.fragment != 0 || !fits {
		return DropExtension
	}
	c.fragment, c.later, c.first = c.end, offset != 0, offset == 0 && more
	return None
}

// setChainFragment sets the fragment fields. An atomic fragment is none: the whole datagram is there (RFC 6946).
func (f *Frame) setChainFragment(ip []byte, c *chain) {
	if !c.first && !c.later {
		return
	}
	header := ip[c.fragment:]
	word := binary.BigEndian.Uint16(header[2:])
	id := binary.BigEndian.Uint32(header[4:])
	f.setFragment(id, int(word&ipv6OffsetMask), word&ipv6MoreFragments != 0, c.fragment+ipv6FragmentLen)
}
