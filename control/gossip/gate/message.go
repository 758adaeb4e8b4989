package gate

import "encoding/binary"

// Kinds of message (memberlist v0.7.0, net.go).
const (
	kindCompound   = 7
	kindCompressed = 9
	kindEncrypted  = 10
	kindCRC        = 12
	kindError      = 13
	kindLast       = kindError
	kindLabel      = 244
)

// maxPacket is the largest packet that is taken, maxMessage the largest message of a stream, sealed: nodes send 1,400 bytes at most in a
// packet, and memberlist reads 20 MiB of a state.
const (
	maxPacket  = 2048
	maxMessage = 20 << 20
)

// wrap seals and labels a packet.
func (g *Gate) wrap(b []byte) []byte {
	out := make([]byte, 0, len(b)+g.config.Overhead())
	out = g.appendLabel(out)
	if g.config.Keys == nil {
		return append(out, b...)
	}
	return g.config.Keys.primary().seal(out, b, []byte(g.config.Label))
}

func (g *Gate) appendLabel(b []byte) []byte {
	return append(append(b, kindLabel, byte(len(g.config.Label))), g.config.Label...)
}

// unwrap returns what a packet holds.
func (g *Gate) unwrap(b []byte) ([]byte, *refusal) {
	if len(b) > maxPacket {
		return nil, refused(Oversized, "a packet of %d bytes", len(b))
	}
	if len(b) == 0 || b[0] != kindLabel {
		return nil, refused(Network, otherNetwork)
	}
	if len(b) < 2 || len(b) < 2+int(b[1]) {
		return nil, refused(Truncated, "a packet that ends in its label")
	}
	label, b := string(b[2:2+b[1]]), b[2+b[1]:]
	if label != g.config.Label {
		return nil, refused(Network, otherNetwork)
	}
	if g.config.Keys != nil {
		plain, _, no := g.config.Keys.open(b, []byte(label), &g.seen)
		if no != nil {
			return nil, no
		}
		b = plain
	} else if looksSealed(b) {
		return nil, refused(Key, "it encrypts, and this node has no cluster key")
	}
	return b, checkPacket(b)
}

const otherNetwork = "it is of another network: its Network or SubnetLen differs, or those of IPv6"

// looksSealed tells a sealed packet from the one kind of message that begins with the same byte, an indirect ping, which goes on with a
// MessagePack map. One sealed packet in 16 looks like one, and memberlist cannot decode it.
func looksSealed(b []byte) bool { return len(b) >= sealOverhead && b[0] == sealVersion && b[1]>>4 != 8 }

// checkPacket looks for what memberlist should not unpack.
func checkPacket(b []byte) *refusal {
	if len(b) >= 5 && b[0] == kindCRC {
		b = b[5:]
	}
	return checkPart(b, 0)
}

// checkPart checks a message and, if it is a compound, those inside. No node nests compounds.
func checkPart(b []byte, depth int) *refusal {
	switch {
	case len(b) == 0:
		return refused(Malformed, "an empty message")
	case b[0] == kindCompressed:
		return refused(Compressed, "it compresses, which no node does")
	case b[0] > kindLast || b[0] == kindEncrypted || b[0] == kindCRC:
		return refused(Malformed, "a message of kind %d", b[0])
	case b[0] != kindCompound:
		return nil
	case depth > 0:
		return refused(Malformed, "messages inside messages inside messages")
	case len(b) < 2 || len(b) < 2+2*int(b[1]):
		return refused(Truncated, "messages that end in their table")
	}
	n := int(b[1])
	sizes, rest := b[2:2+2*n], b[2+2*n:]
	for ; n > 0; n-- {
		size := int(binary.BigEndian.Uint16(sizes))
		if sizes = sizes[2:]; size > len(rest) {
			return refused(Truncated, "messages of which one ends too early")
		}
		if no := checkPart(rest[:size], depth+1); no != nil {
			return no
		}
		rest = rest[size:]
	}
	return nil
}
