package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Sizes in bytes.
const (
	EthernetLen = 14
	VNetLen     = 10

	// Headroom lies before the first byte of every frame that a Batch hands out:
	// room for an encapsulation, chosen so that the IP header starts on a cache line.
	Headroom = 128 - EthernetLen

	// MaxFrame is the largest frame a TAP hands over: 64 KiB behind an IPv6 header, behind
	// an Ethernet header with one VLAN tag.
	MaxFrame = 65535 + ipv6Len + EthernetLen + 4
)

// A MAC is an Ethernet address.
type MAC [6]byte

// String returns the address as colon-separated hexadecimal bytes.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// EtherTypes that the engine knows.
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd
)

// IP protocol numbers.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// A Frame is one packet as a port handed it over: an Ethernet frame of up to 64 KiB,
// possibly a super-packet that stands for several wire segments (GSO).
//
// A Frame belongs to the Batch it was read into and is valid until that Batch is
// reset. It is used by one goroutine.
type Frame struct {
	buf        []byte // the slot that the frame lies in
	start, end int    // the frame is buf[start:end]
	origin     int    // where it began as it was read: the encapsulation, until that was stripped

	// More are the payloads of the segments that Join added, in order; they lie in other frames' slots.
	More [][]byte

	// Offsets into the slot, kept across Prepend. Valid iff Parse returned None, L4 and Payload
	// for IP: Payload is behind a whole TCP or UDP header, else L4.
	L2, L3, L4, Payload int

	EtherType  uint16
	Proto      uint8      // valid iff IP: the protocol at L4, behind IPv6 extension headers
	Fragment   bool       // valid iff IP: more fragments, or an offset
	fragmentAt uint16     // valid iff Fragment: where FragmentData starts behind L3
	Src, Dst   netip.Addr // valid iff IP
	Hash       uint32     // symmetric flow hash; without ports for fragments

	// Where a fragment lies in its datagram. Valid iff Fragment.
	FragmentID     uint32
	FragmentOffset int // bytes
	MoreFragments  bool

	// VNet is the offload metadata: what the sender left undone.
	VNet VNet

	// Segments is the number of wire segments the frame stands for: 1 after Read,
	// exact once Parse returned None.
	Segments int

	// Detached says that the frame's bytes begin with the IP header: it came without an Ethernet header
	// and has one of its own beside the slot, whose bytes in front of it are another frame's. L2 is then EthernetLen
	// in front of L3, for arithmetic alone, and may be negative.
	Detached bool
	link     [EthernetLen]byte // valid iff Detached

	// Truncated says that the port could not read the whole frame.
	Truncated bool
	// SegmentHint is the segment size that an underlay socket reported for a datagram which
	// is one super-packet, bytes of L4 payload; 0 when unknown.
	SegmentHint int

	// Pod is the number of the pod's port that a frame goes out by; 0 for the TAP.
	Pod uint32

	// Remote is the outer source of a frame read from an underlay, and the outer
	// destination of a frame to be written to one.
	Remote netip.AddrPort
	// OuterTOS is the outer TOS or traffic class byte, read or to be written (RFC 6040).
	OuterTOS uint8

	// Serial is a number that the packet's worker gave it, for those who observe the packet at several places; 0 for none.
	Serial uint64

	// Result of the last Port.Write: wire segments that left and that the port refused,
	// and the bytes that left.
	Sent, Refused, SentBytes int
	// RefusedAs is why the port refused segments, None if it has no reason of its own.
	RefusedAs Verdict
}

// Bytes returns the frame: the Ethernet header first, or the encapsulation header
// once a codec has put one on.
func (f *Frame) Bytes() []byte { return f.buf[f.start:f.end] }

// Len returns the number of bytes of the frame.
func (f *Frame) Len() int { return f.end - f.start }

// Start returns the offset of the frame's first byte, in the terms of L2, L3 and L4.
func (f *Frame) Start() int { return f.start }

// Prepend makes the frame n bytes longer at the front and returns those bytes.
// It reports false when the headroom is used up; a Detached frame has none.
func (f *Frame) Prepend(n int) ([]byte, bool) {
	if n < 0 || n > f.start || f.Detached && n > 0 {
		return nil, false
	}
	f.start -= n
	return f.buf[f.start : f.start+n], true
}

// Strip removes n bytes from the front; it reports false when there are fewer.
func (f *Frame) Strip(n int) bool {
	if n < 0 || n > f.Len() {
		return false
	}
	f.start += n
	return true
}

// SetMACs writes the Ethernet destination and source. Valid iff Parse returned None.
func (f *Frame) SetMACs(dst, src MAC) {
	link := f.linkHeader()
	copy(link, dst[:])
	copy(link[6:], src[:])
}

// DstMAC returns the Ethernet destination. Valid iff Parse returned None and not Detached.
func (f *Frame) DstMAC() MAC { return MAC(f.linkHeader()[:6]) }

// SrcMAC returns the Ethernet source. Valid iff Parse returned None and not Detached.
func (f *Frame) SrcMAC() MAC { return MAC(f.linkHeader()[6:12]) }

// DetachedLink returns the Ethernet header that belongs in front of the frame's bytes; nil when they begin with it.
func (f *Frame) DetachedLink() []byte {
	if !f.Detached {
		return nil
	}
	return f.link[:]
}

func (f *Frame) linkHeader() []byte {
	if f.Detached {
		return f.link[:]
	}
	return f.buf[f.L2 : f.L2+EthernetLen]
}

// A VNet is a virtio_net_hdr: the checksum and segmentation work that the sender
// left to the device. The zero value says that nothing is left to do.
type VNet struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // a hint: the kernel puts the linear length here, not the headers'
	GSOSize    uint16 // bytes of L4 payload in each segment but the last
	CsumStart  uint16 // from the Ethernet header; valid iff NeedsCsum
	CsumOffset uint16 // from CsumStart; valid iff NeedsCsum
}

// virtio_net_hdr flags and GSO types (include/uapi/linux/virtio_net.h).
const (
	VNetNeedsCsum = 1
	VNetDataValid = 2 // somebody has verified the checksum

	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOUDPL4 = 5

	gsoECN = 0x80
)

// NeedsCsum reports whether the L4 checksum field holds only the pseudo-header sum.
func (v VNet) NeedsCsum() bool { return v.Flags&VNetNeedsCsum != 0 }

// DecodeVNet reads a virtio_net_hdr of VNetLen bytes in native (little-endian) order.
func DecodeVNet(b []byte) VNet {
	_ = b[VNetLen-1]
	return VNet{
		Flags:      b[0],
		GSOType:    b[1] &^ gsoECN,
		HdrLen:     binary.NativeEndian.Uint16(b[2:]),
		GSOSize:    binary.NativeEndian.Uint16(b[4:]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}

// Encode writes the header into the first VNetLen bytes of b, in native order.
func (v VNet) Encode(b []byte) {
	_ = b[VNetLen-1]
	b[0], b[1] = v.Flags, v.GSOType
	binary.NativeEndian.PutUint16(b[2:], v.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], v.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], v.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], v.CsumOffset)
}
