package capture

import (
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Where the program keeps what it knows of a packet. Places are bytes from the packet's start.
const (
	slotHeader = iota // length of the outer IP header
	slotEnd           // place behind the outer IP packet
	slotAt            // place of an inner IP header
	slotStride        // from one to the next
	slotLast          // last place where one can be
	slotLength        // bytes of TCP payload in each
	slotNext          // the sequence number that goes on the stream
)

const (
	whole = MaxSnapLen
	// maxCompared is how many datagrams of a send the program looks at, the most that all kernels send at once (UDP_MAX_SEGMENTS). With
	// them it has some 2,000 instructions, near to what kernels before 6.7 let a socket have (net.core.optmem_max).
	maxCompared = 64
)

// judgeSend decides how much of a datagram of the tunnel the reader needs: all of a send that has to be cut, as Tunnel.isOneStream
// tells there as well, and of others the first snap bytes. Behind the outer headers packets lie in pieces, so that it has to load from
// the packet's start, and loading from behind the end would reject the packet.
func (p *program) judgeSend(t Tunnel, snap uint32) {
	overhead := uint32(0)
	if t.VXLAN {
		overhead = vxlanLen + packet.EthernetLen
	}
	p.add(loadWord, adLinkType)
	p.branch(jumpEqual, unix.ARPHRD_ETHER, 1, 0)
	p.branch(jumpEqual, unix.ARPHRD_LOOPBACK, 0, 2)
	p.add(loadValue, packet.EthernetLen)
	p.skip(1)
	p.add(loadValue, 0)
	p.add(store, slotAt)
	p.add(loadX, slotEnd)
	p.add(addX, 0)
	p.add(store, slotEnd)
	p.returnUnless(jumpGreater, snap, snap)
	p.add(loadXLength, 0)
	p.returnIf(jumpGreaterX, 0, whole) // it says of itself that it is longer than it is
	p.add(load, slotAt)
	p.add(loadX, slotHeader)
	p.add(addX, 0)
	p.add(addK, udpLen+overhead)
	p.add(store, slotAt)
	p.add(copyToX, 0)
	if t.VXLAN {
		p.family(loadHalfX, ^uint32(1), [2]uint32{packet.EtherTypeIPv4, packet.EtherTypeIPv6}, overhead, snap)
	} else {
		p.family(loadByteX, 0, [2]uint32{4 << 4, 6 << 4}, overhead, snap)
	}
}

// family goes on with the inner packet as what its Ethernet type, or its version, says that it is. It lies at X.
func (p *program) family(code uint16, at uint32, kinds [2]uint32, overhead, snap uint32) {
	p.add(code, at)
	if code == loadByteX {
		p.add(andK, 0xf0)
	}
	p.branch(jumpEqual, kinds[0], 1, 0)
	p.branch(jumpEqual, kinds[1], 2, 1)
	toIPv4 := p.jump()
	p.add(returnK, whole)
	p.compare(innerPacket{length: 4, more: ipv6Len, proto: 6, header: ipv6Len}, overhead, snap)
	p.land(toIPv4)
	p.compare(innerPacket{length: 2, proto: 9, header: ipv4Len, plain: true}, overhead, snap)
}

// An innerPacket says where the fields of its IP header lie.
type innerPacket struct {
	length, more uint32 // length field, and what it does not count
	proto        uint32
	header       uint32 // its length
	plain        bool   // IPv4, which has no options then
}

// compare goes through the datagrams as long as they go on the first one's stream.
func (p *program) compare(ip innerPacket, overhead, snap uint32) {
	var single []int
	if ip.plain {
		p.add(loadByteX, 0)
		single = append(single, p.jumpUnless(jumpEqual, 0x45))
	}
	p.add(loadByteX, ip.proto)
	single = append(single, p.jumpUnless(jumpEqual, packet.ProtoTCP))
	p.add(loadHalfX, ip.length)
	p.add(addK, ip.more)
	single = append(single, p.jumpUnless(jumpAtLeast, minWhole))
	p.add(addK, overhead)
	p.add(store, slotStride)
	p.add(loadByteX, ip.header+12)
	p.add(andK, 0xf0)
	p.add(shiftRightK, 2) // the TCP header's length
	p.add(addK, ip.header+overhead)
	p.add(store, slotLength)
	p.add(loadWordX, ip.header+4)
	p.add(store, slotNext)
	p.add(load, slotStride)
	p.add(loadX, slotLength)
	p.add(subtractX, 0)
	p.add(store, slotLength)
	p.add(load, slotEnd)
	p.add(subtractK, ip.header+8)
	p.add(store, slotLast)
	for range maxCompared {
		p.next(ip.header+4, snap)
	}
	p.add(returnK, whole)

	p.land(single...)
	p.add(loadHalfX, ip.length)
	p.add(addK, ip.more)
	p.add(addX, 0)
	p.add(loadX, slotEnd)
	p.returnIf(jumpAtLeastX, 0, snap) // there is no second datagram
	p.add(returnK, whole)
}

// next compares one more datagram, or is done when there is none.
func (p *program) next(sequence, snap uint32) {
	p.add(load, slotNext)
	p.add(loadX, slotLength)
	p.add(addX, 0)
	p.add(store, slotNext)
	p.add(load, slotAt)
	p.add(loadX, slotStride)
	p.add(addX, 0)
	p.add(store, slotAt)
	p.add(loadX, slotLast)
	p.branch(jumpGreaterX, 0, 0, 4)
	p.add(loadX, slotEnd)
	p.returnIf(jumpAtLeastX, 0, snap)
	p.add(returnK, whole)
	p.add(copyToX, 0)
	p.add(loadWordX, sequence)
	p.add(loadX, slotNext)
	p.returnUnless(jumpEqualX, 0, whole)
}

func (p *program) add(code uint16, k uint32) { *p = append(*p, instruction{code: code, k: k}) }

// branch goes on yes or no instructions behind the next one.
func (p *program) branch(code uint16, k uint32, yes, no int) {
	next := len(*p) + 1
	*p = append(*p, instruction{code, k, next + yes, next + no})
}

func (p *program) returnIf(code uint16, k, value uint32) {
	p.branch(code, k, 0, 1)
	p.add(returnK, value)
}

func (p *program) returnUnless(code uint16, k, value uint32) {
	p.branch(code, k, 1, 0)
	p.add(returnK, value)
}

func (p *program) skip(n int) { *p = append(*p, instruction{jumpAlways, 0, len(*p) + 1 + n, 0}) }

// jump goes to where land is called with what it returns.
func (p *program) jump() int {
	p.skip(0)
	return len(*p) - 1
}

func (p *program) jumpUnless(code uint16, k uint32) int {
	p.branch(code, k, 1, 0)
	return p.jump()
}

func (p *program) land(jumps ...int) {
	for _, j := range jumps {
		(*p)[j].yes = len(*p)
	}
}
