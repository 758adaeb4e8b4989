package packet

import "encoding/binary"

// ECN codepoints, the low two bits of the TOS byte (RFC 3168).
const (
	ECNMask   = 3
	ECNNotECT = 0
	ECNECT1   = 1
	ECNECT0   = 2
	ECNCE     = 3
)

// EncapECN returns the outer TOS byte for the frame: the inner ECN field is copied, the
// normal mode of RFC 6040 section 4.1, and the DSCP is left at zero. Valid iff IPv4.
func (f *Frame) EncapECN() uint8 { return f.TOS() & ECNMask }

// DecapECN combines the ECN field of the outer header into the inner one by RFC 6040
// section 4.2. It returns DropECN for a congestion mark on a flow that is not
// ECN-capable. Valid iff IPv4.
func (f *Frame) DecapECN(outer uint8) Verdict {
	inner := f.TOS() & ECNMask
	switch outer & ECNMask {
	case ECNCE:
		if inner == ECNNotECT {
			return DropECN
		}
		f.setECN(ECNCE)
	case ECNECT1:
		if inner == ECNECT0 {
			f.setECN(ECNECT1)
		}
	}
	return None
}

// setECN rewrites the ECN field and the header checksum with it (RFC 1624, equation 3).
func (f *Frame) setECN(ecn uint8) {
	ip := f.buf[f.L3:f.L4]
	old := binary.BigEndian.Uint16(ip)
	ip[1] = ip[1]&^ECNMask | ecn
	sum := Sum(0).AddUint16(^binary.BigEndian.Uint16(ip[10:])).AddUint16(^old).AddUint16(binary.BigEndian.Uint16(ip))
	binary.BigEndian.PutUint16(ip[10:], sum.Checksum())
}
