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
// normal mode of RFC 6040 section 4.1, and the DSCP is left at zero. Valid iff IP.
func (f *Frame) EncapECN() uint8 { return f.TOS() & ECNMask }

// EncapTOS is EncapECN, with the DSCP copied as well if so asked: the uniform model of RFC 2983,
// for an underlay that shares the pods' service classes. Valid iff IP.
func (f *Frame) EncapTOS(copyDSCP bool) uint8 {
	if copyDSCP {
		return f.TOS()
	}
	return f.EncapECN()
}

// DecapECN combines the ECN field of the outer header into the inner one by RFC 6040
// section 4.2. It returns DropECN for a congestion mark on a flow that is not
// ECN-capable. Valid iff IP.
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

// setECN rewrites the ECN field, and the header checksum with it where there is one.
func (f *Frame) setECN(ecn uint8) {
	if f.isIPv6() {
		f.buf[f.L3+1] = f.buf[f.L3+1]&^(ECNMask<<4) | ecn<<4
		return
	}
	f.setIPv4Word(0, binary.BigEndian.Uint16(f.buf[f.L3:])&^ECNMask|uint16(ecn))
}
