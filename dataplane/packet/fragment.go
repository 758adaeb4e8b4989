package packet

const icmpLen = 8 // of the header of every message that the engine reads

// FragmentData returns what the frame has of its datagram: the bytes from FragmentOffset on, behind the IPv4 header
// or the IPv6 fragment header. Valid iff Fragment.
func (f *Frame) FragmentData() []byte { return f.buf[f.L3+int(f.fragmentAt) : f.end] }

func (f *Frame) setFragment(id uint32, offset int, more bool, at int) {
	f.Fragment, f.FragmentID, f.FragmentOffset, f.MoreFragments = true, id, offset, more
	f.fragmentAt = uint16(at)
}

// fragmentFits reports whether a datagram can have the fragment: its length field, which counts so many bytes before
// the fragmentable part, holds the sum, and only the last fragment ends elsewhere than on 8 bytes (RFC 791 section
// 3.2, RFC 8200 section 4.5).
func fragmentFits(before, offset, length int, more bool) bool {
	return before+offset+length <= 0xffff && (!more || length%8 == 0)
}

// checkFragment refuses fragments that a filter by ports cannot judge (RFC 1858, RFC 3128, RFC 7112): a first one
// without the whole L4 header, and a later one that lies where the TCP header is, which only serves to overwrite it.
func (f *Frame) checkFragment() Verdict {
	if f.FragmentOffset > 0 {
		if f.Proto == ProtoTCP && f.FragmentOffset < tcpMinLen {
			return DropFragmentTiny
		}
		return None
	}
	if f.end-f.L4 < f.l4NeedLen() {
		return DropFragmentTiny
	}
	return None
}

// l4NeedLen is the length of the L4 header that a first fragment must hold; a TCP header's is its own if that is there.
func (f *Frame) l4NeedLen() int {
	switch {
	case f.Proto == ProtoUDP:
		return udpLen
	case f.Proto == ProtoTCP && f.end-f.L4 >= tcpMinLen:
		return max(tcpMinLen, int(f.buf[f.L4+12]>>4)*4)
	case f.Proto == ProtoTCP:
		return tcpMinLen
	case f.isICMP():
		return icmpLen
	}
	return 0
}
