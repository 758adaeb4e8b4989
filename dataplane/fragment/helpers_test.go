package fragment_test

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

// newRand returns a generator whose seed a failing test prints.
func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("random test: repeat with -seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// A part is a fragment to be made: of datagram id between two hosts, in bytes.
type part struct {
	v6       bool
	host     byte // last byte of the source
	id       uint32
	proto    uint8
	offset   int
	length   int
	more     bool
	detached bool
}

func (p part) end() int { return p.offset + p.length }

var (
	source4 = netip.MustParseAddr("10.0.0.0")
	target4 = netip.MustParseAddr("10.0.1.1")
	source6 = netip.MustParseAddr("fd00::")
	target6 = netip.MustParseAddr("fd00:1::1")
)

// v6Chain is what lies between the IPv6 header and the fragment header of every part.
const v6Chain = 8 + 16

// frame appends the part to the batch as a port and Parse would leave it, with the payload's
// bytes counting up from mark.
func (p part) frame(b *packet.Batch, mark byte) *packet.Frame {
	data := p.bytes(mark)
	slot := b.Slot(len(data))
	start, end := packet.Headroom, packet.Headroom+len(data)
	copy(slot[start:], data)
	b.Claim(end)
	if p.detached {
		start += packet.EthernetLen
	}
	f := b.Append(slot, start, end)
	f.Detached = p.detached
	if v := f.Parse(); v != packet.None {
		panic("Parse refuses " + v.String())
	}
	f.SetMACs(packet.MAC{2, 0, 0, 0, 0, 1}, packet.MAC{2, 0, 0, 0, 0, mark})
	f.FragmentOffset, f.MoreFragments = p.offset, p.more
	f.Hash, f.SegmentHint = uint32(mark), int(mark)
	return f
}

// bytes returns the part as an Ethernet frame, but for its offset: wherever it belongs, the
// bytes say 24 and that nothing follows, which Parse takes for all lengths and protocols.
func (p part) bytes(mark byte) []byte {
	data := make([]byte, packet.EthernetLen, 128+p.length)
	if p.v6 {
		binary.BigEndian.PutUint16(data[12:], packet.EtherTypeIPv6)
		data = append(data, p.ipv6()...)
	} else {
		binary.BigEndian.PutUint16(data[12:], packet.EtherTypeIPv4)
		data = append(data, p.ipv4()...)
	}
	for i := range p.length {
		data = append(data, mark+byte(i))
	}
	return data
}

func (p part) ipv4() []byte {
	h := []byte{0x45, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(20+p.length))
	h = binary.BigEndian.AppendUint16(h, uint16(p.id))
	h = append(h, 0, 24/8, 64, p.proto, 0, 0)
	h = append(h, host(source4, p.host).AsSlice()...)
	h = append(h, target4.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], packet.Sum(0).Add(h).Checksum())
	return h
}

// ipv6 returns the headers of the unfragmentable part and the fragment header. The options
// in them are all Pad1.
func (p part) ipv6() []byte {
	h := []byte{0x60, 0, 0, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(v6Chain+8+p.length))
	h = append(h, 0, 64) // hop-by-hop options next
	h = append(h, host(source6, p.host).AsSlice()...)
	h = append(h, target6.AsSlice()...)
	h = append(h, 60, 0, 0, 0, 0, 0, 0, 0)                       // 8 bytes; destination options next
	h = append(h, append([]byte{44, 1}, make([]byte, 14)...)...) // 16 bytes; the fragment header next
	h = append(h, p.proto, 0, 0, 24)
	return binary.BigEndian.AppendUint32(h, p.id)
}

func host(a netip.Addr, last byte) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] = last
	a, _ = netip.AddrFromSlice(b)
	return a
}
