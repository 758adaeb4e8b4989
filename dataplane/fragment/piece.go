package fragment

import "github.com/tulle-net/tulle/dataplane/packet"

const (
	maxDatagram = 65535 // bytes, by the length field of the IP header
	blockLen    = 8     // fragment offsets count in these

	ipv6Len           = 40
	fragmentHeaderLen = 8
)

// A key tells datagrams apart: RFC 791 (identification, addresses, protocol), RFC 8200
// section 4.5 (the same without protocol).
type key struct {
	src, dst [16]byte
	id       uint32
	proto    uint8
	v6       bool
}

func keyOf(f *packet.Frame) key {
	k := key{src: f.Src.As16(), dst: f.Dst.As16(), id: f.FragmentID, v6: f.EtherType == packet.EtherTypeIPv6}
	if !k.v6 {
		k.proto = f.Proto
	}
	return k
}

// A piece is where a fragment lies in its datagram, bytes.
type piece struct {
	offset, length int
	more           bool
	header         int // what the whole datagram's length field counts besides its payload
}

func (p piece) end() int { return p.offset + p.length }

// atomic reports whether the fragment is the whole datagram (RFC 6946).
func (p piece) atomic() bool { return p.offset == 0 && !p.more }

// sound reports whether the fragment's length can be right.
func (p piece) sound() bool { return p.length > 0 && !(p.more && p.length%blockLen != 0) }

// pieceOf reads the fragment's place.
func pieceOf(f *packet.Frame) piece {
	data := len(f.FragmentData())
	p := piece{offset: f.FragmentOffset, length: data, more: f.MoreFragments}
	p.header = f.Len() - (f.L3 - f.Start()) - data
	if f.EtherType == packet.EtherTypeIPv6 {
		p.header -= ipv6Len + fragmentHeaderLen
	}
	return p
}
