package capture

import "golang.org/x/sys/unix"

// Offsets that Linux adds to classic BPF (include/uapi/linux/filter.h): to what the kernel knows of a packet, and to its network
// header, wherever the link puts that. From the latter only what lies in one piece can be loaded: no more than the headers.
const (
	adProtocol = 0xfffff000      // SKF_AD_OFF + SKF_AD_PROTOCOL
	adLinkType = 0xfffff000 + 28 // SKF_AD_OFF + SKF_AD_HATYPE
	netOffset  = 0xfff00000      // SKF_NET_OFF
)

// A program is one of classic BPF. Jumps are to numbers of instructions.
type program []instruction

// An instruction is one of a program. yes and no are valid iff it is a jump; one that is not conditional goes to yes.
type instruction struct {
	code    uint16
	k       uint32
	yes, no int
}

const (
	loadHalf     = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
	loadByte     = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	loadWord     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	loadHalfX    = unix.BPF_LD | unix.BPF_H | unix.BPF_IND
	loadByteX    = unix.BPF_LD | unix.BPF_B | unix.BPF_IND
	loadWordX    = unix.BPF_LD | unix.BPF_W | unix.BPF_IND
	loadValue    = unix.BPF_LD | unix.BPF_IMM
	load         = unix.BPF_LD | unix.BPF_MEM
	loadX        = unix.BPF_LDX | unix.BPF_MEM
	loadXLength  = unix.BPF_LDX | unix.BPF_LEN
	store        = unix.BPF_ST
	storeX       = unix.BPF_STX
	jumpAlways   = unix.BPF_JMP | unix.BPF_JA
	jumpEqual    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpEqualX   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_X
	jumpSet      = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	jumpGreater  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	jumpGreaterX = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_X
	jumpAtLeast  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	jumpAtLeastX = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_X
	addK         = unix.BPF_ALU | unix.BPF_ADD | unix.BPF_K
	addX         = unix.BPF_ALU | unix.BPF_ADD | unix.BPF_X
	subtractK    = unix.BPF_ALU | unix.BPF_SUB | unix.BPF_K
	andK         = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	subtractX    = unix.BPF_ALU | unix.BPF_SUB | unix.BPF_X
	shiftRightK  = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	shiftLeftK   = unix.BPF_ALU | unix.BPF_LSH | unix.BPF_K
	copyToX      = unix.BPF_MISC | unix.BPF_TAX
	returnK      = unix.BPF_RET | unix.BPF_K
)

// tunnelProgram accepts UDP packets from or to a port, over IPv4 and IPv6, and every later UDP fragment, which has no ports. Of each it
// takes the first snap bytes, at least minWireSnap, but of sends that have to be cut all.
func tunnelProgram(t Tunnel, snap int) []unix.SockFilter {
	const ipv4, ipv6, accept, reject, send = 30, 34, 40, 41, 42
	k := uint32(t.Port)
	p := program{
		0: {loadWord, adProtocol, 0, 0},
		1: {jumpEqual, unix.ETH_P_IP, 3, 2},
		2: {jumpEqual, unix.ETH_P_IPV6, 15, reject},

		3:  {loadByte, netOffset + 9, 0, 0},
		4:  {jumpEqual, unix.IPPROTO_UDP, 5, reject},
		5:  {loadHalf, netOffset + 6, 0, 0},
		6:  {jumpSet, 0x1fff, accept, 7}, // fragment offset
		7:  {loadByte, netOffset, 0, 0},
		8:  {andK, 15, 0, 0},
		9:  {shiftLeftK, 2, 0, 0},
		10: {copyToX, 0, 0, 0},
		11: {loadHalfX, netOffset, 0, 0},
		12: {jumpEqual, k, ipv4, 13},
		13: {loadHalfX, netOffset + 2, 0, 0},
		14: {jumpEqual, k, ipv4, reject},

		15: {loadByte, netOffset + 6, 0, 0},
		16: {jumpEqual, unix.IPPROTO_UDP, 17, 21},
		17: {loadHalf, netOffset + 40, 0, 0},
		18: {jumpEqual, k, ipv6, 19},
		19: {loadHalf, netOffset + 42, 0, 0},
		20: {jumpEqual, k, ipv6, reject},

		21: {jumpEqual, unix.IPPROTO_FRAGMENT, 22, reject},
		22: {loadByte, netOffset + 40, 0, 0},
		23: {jumpEqual, unix.IPPROTO_UDP, 24, reject},
		24: {loadHalf, netOffset + 42, 0, 0},
		25: {jumpSet, 0xfff8, accept, 26}, // fragment offset
		26: {loadHalf, netOffset + 48, 0, 0},
		27: {jumpEqual, k, accept, 28},
		28: {loadHalf, netOffset + 50, 0, 0},
		29: {jumpEqual, k, accept, reject},

		ipv4: {storeX, slotHeader, 0, 0},
		31:   {loadHalf, netOffset + 2, 0, 0},
		32:   {store, slotEnd, 0, 0},
		33:   {jumpAlways, 0, send, 0},

		ipv6: {loadValue, ipv6Len, 0, 0},
		35:   {store, slotHeader, 0, 0},
		36:   {loadHalf, netOffset + 4, 0, 0},
		37:   {addK, ipv6Len, 0, 0},
		38:   {store, slotEnd, 0, 0},
		39:   {jumpAlways, 0, send, 0},

		accept: {returnK, uint32(snap), 0, 0},
		reject: {returnK, 0, 0, 0},
	}
	p.judgeSend(t, uint32(snap))
	// Linux's checker goes through it line by line, and knows nothing of a slot behind a return that was reached without it.
	known := program{{code: loadValue}, {code: store, k: slotHeader}, {code: store, k: slotEnd}}
	return append(known.assemble(), p.assemble()...)
}

// assemble makes jumps relative.
func (p program) assemble() []unix.SockFilter {
	out := make([]unix.SockFilter, len(p))
	for i, in := range p {
		out[i] = unix.SockFilter{Code: in.code, K: in.k}
		switch {
		case in.code == jumpAlways:
			out[i].K = uint32(in.yes - i - 1)
		case in.code&7 == unix.BPF_JMP:
			out[i].Jt, out[i].Jf = uint8(in.yes-i-1), uint8(in.no-i-1)
		}
	}
	return out
}
