package capture

import "golang.org/x/sys/unix"

// Offsets that Linux adds to classic BPF (include/uapi/linux/filter.h): to what the kernel knows of a packet, and to its network
// header, wherever the link puts that.
const (
	adProtocol = 0xfffff000 // SKF_AD_OFF + SKF_AD_PROTOCOL
	netOffset  = 0xfff00000 // SKF_NET_OFF
)

// An instruction is one of a classic BPF program. yes and no are numbers of instructions, valid iff it is a jump.
type instruction struct {
	code    uint16
	k       uint32
	yes, no int
}

const (
	loadHalf   = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
	loadByte   = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	loadWord   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	loadHalfX  = unix.BPF_LD | unix.BPF_H | unix.BPF_IND
	jumpEqual  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jumpSet    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	andK       = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	shiftLeftK = unix.BPF_ALU | unix.BPF_LSH | unix.BPF_K
	copyToX    = unix.BPF_MISC | unix.BPF_TAX
	returnK    = unix.BPF_RET | unix.BPF_K
)

// tunnelProgram accepts the first snap bytes of UDP packets from or to a port, over IPv4 and IPv6, and of every later UDP fragment,
// which has no ports.
func tunnelProgram(port uint16, snap int) []unix.SockFilter {
	const accept, reject = 30, 31
	k := uint32(port)
	return assemble([]instruction{
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
		12: {jumpEqual, k, accept, 13},
		13: {loadHalfX, netOffset + 2, 0, 0},
		14: {jumpEqual, k, accept, reject},

		15: {loadByte, netOffset + 6, 0, 0},
		16: {jumpEqual, unix.IPPROTO_UDP, 17, 21},
		17: {loadHalf, netOffset + 40, 0, 0},
		18: {jumpEqual, k, accept, 19},
		19: {loadHalf, netOffset + 42, 0, 0},
		20: {jumpEqual, k, accept, reject},

		21: {jumpEqual, unix.IPPROTO_FRAGMENT, 22, reject},
		22: {loadByte, netOffset + 40, 0, 0},
		23: {jumpEqual, unix.IPPROTO_UDP, 24, reject},
		24: {loadHalf, netOffset + 42, 0, 0},
		25: {jumpSet, 0xfff8, accept, 26}, // fragment offset
		26: {loadHalf, netOffset + 48, 0, 0},
		27: {jumpEqual, k, accept, 28},
		28: {loadHalf, netOffset + 50, 0, 0},
		29: {jumpEqual, k, accept, reject},

		accept: {returnK, uint32(snap), 0, 0},
		reject: {returnK, 0, 0, 0},
	})
}

// assemble makes jumps relative.
func assemble(program []instruction) []unix.SockFilter {
	out := make([]unix.SockFilter, len(program))
	for i, in := range program {
		out[i] = unix.SockFilter{Code: in.code, K: in.k}
		if in.code == jumpEqual || in.code == jumpSet {
			out[i].Jt, out[i].Jf = uint8(in.yes-i-1), uint8(in.no-i-1)
		}
	}
	return out
}
