package conntrack

import "github.com/tulle-net/tulle/dataplane/word"

// A key is a tuple in canonical form, the smaller endpoint first, as the slots hold it.
type key struct {
	// IPv4: addr[0] holds both addresses. IPv6: the low halves of both, then the high halves.
	addr    [4]uint64
	ports   uint32
	proto   uint8
	swapped bool // the tuple's source is the greater endpoint
	hash    uint64
}

// setKey fills k and returns the area that it belongs to: nil if the tuple is of no or of two families.
func (t *Table) setKey(k *key, p *Tuple) *area {
	k.proto = p.Proto
	switch {
	case p.Src.Is4() && p.Dst.Is4():
		k.set4(p)
		k.hash = t.key.hash4(k)
		return t.v4.orNil()
	case p.Src.Is6() && p.Dst.Is6():
		k.set6(p)
		k.hash = t.key.hash6(k)
		return t.v6.orNil()
	}
	return nil
}

// orNil is nil for a family without slots.
func (a *area) orNil() *area {
	if a.slots == 0 {
		return nil
	}
	return a
}

func (k *key) set4(p *Tuple) {
	src, dst := uint64(word.Of4(&p.Src)), uint64(word.Of4(&p.Dst))
	k.swapped = src<<16|uint64(p.SrcPort) > dst<<16|uint64(p.DstPort)
	if k.swapped {
		k.addr[0], k.ports = dst<<32|src, uint32(p.DstPort)<<16|uint32(p.SrcPort)
		return
	}
	k.addr[0], k.ports = src<<32|dst, uint32(p.SrcPort)<<16|uint32(p.DstPort)
}

func (k *key) set6(p *Tuple) {
	srcHi, srcLo := word.Halves(&p.Src)
	dstHi, dstLo := word.Halves(&p.Dst)
	k.swapped = srcHi > dstHi || srcHi == dstHi && (srcLo > dstLo || srcLo == dstLo && p.SrcPort > p.DstPort)
	if k.swapped {
		srcHi, srcLo, dstHi, dstLo = dstHi, dstLo, srcHi, srcLo
		k.ports = uint32(p.DstPort)<<16 | uint32(p.SrcPort)
	} else {
		k.ports = uint32(p.SrcPort)<<16 | uint32(p.DstPort)
	}
	k.addr[0], k.addr[1], k.addr[2], k.addr[3] = srcLo, dstLo, srcHi, dstHi
}

// The hash is that of wyhash: 128-bit products of input and secret, folded, and the last product is with a secret alone. Without it, flows
// that differ in a port have hashes at even steps, which for one secret in a hundred meet. It is no MAC: it holds against a peer that
// sees no hashes, and none leave the process.
func (h *hashKey) hash4(k *key) uint64 {
	return h.finish(word.Mix(k.addr[0]^h[0], k.portsProto()^h[1]))
}

func (h *hashKey) hash6(k *key) uint64 {
	v := word.Mix(k.addr[0]^h[0], k.addr[1]^h[1]) ^ word.Mix(k.addr[2]^h[2], k.addr[3]^h[3])
	return h.finish(word.Mix(v^h[4], k.portsProto()^h[1]))
}

// hashAddr is of one address, given by its halves.
func (h *hashKey) hashAddr(hi, lo uint64) uint64 { return h.finish(word.Mix(lo^h[0], hi^h[1])) }

func (h *hashKey) finish(v uint64) uint64 { return word.Mix(v^h[2], h[3]) }

func (k *key) portsProto() uint64 { return uint64(k.ports)<<8 | uint64(k.proto) }
