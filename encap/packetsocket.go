package encap

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// openGuard binds a UDP socket to the tunnel's port that takes nothing. With it the kernel answers no datagram with port
// unreachable, nobody else gets the port, and UDP_GRO makes the kernel join datagrams before the raw sockets see them.
// Everything that comes in counts as an error of UDP (InErrors of /proc/net/snmp) because the filter drops it.
func openGuard(local netip.AddrPort) (fd int, gro bool, err error) {
	fd, err = openUDP(local, unix.IP_PMTUDISC_DONT, deafen)
	if err != nil {
		return -1, false, explainTaken(err)
	}
	gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	return fd, gro, nil
}

// openPacket returns a packet socket that filters and is not bound yet: it receives nothing. Bound to one protocol it
// never sees what this machine sends; PACKET_IGNORE_OUTGOING says so too.
func openPacket(filter []unix.SockFilter) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	if err := tunePacket(fd, filter); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// tunePacket makes a packet socket, new or not, one for whole frames that filters.
func tunePacket(fd int, filter []unix.SockFilter) error {
	for _, option := range []struct {
		name  string
		value int
	}{{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR}, {"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING}} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option.value, 1); err != nil {
			return fmt.Errorf("packet socket: %s: %w", option.name, err)
		}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("packet socket: SO_ATTACH_FILTER: %w", err)
	}
	forceBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	forceBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	return nil
}

// bindPacket makes a packet socket receive from a link and send by it, whatever link it was bound to before. It refuses
// links without Ethernet headers.
func bindPacket(fd, link int, etherType uint16) error {
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(etherType), Ifindex: link}); err != nil {
		return fmt.Errorf("bind packet socket to link %d: %w", link, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("packet socket: getsockname: %w", err)
	}
	if sa, ok := name.(*unix.SockaddrLinklayer); !ok || sa.Hatype != unix.ARPHRD_ETHER {
		return fmt.Errorf("link %d is no Ethernet: choose the underlay of UDP sockets", link)
	}
	return nil
}

// networkOrder returns v with the bytes that it has on the wire in memory.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// A program is classic BPF under construction. Its jumps lead to the instruction behind, or to the end of the program,
// which drops.
type program []unix.SockFilter

// drop, as the distance of a jump, stands for the end of the program.
const drop = 255

func (p *program) add(code uint16, k uint32) { *p = append(*p, unix.SockFilter{Code: code, K: k}) }

// load puts size (BPF_B, BPF_H, BPF_W) bytes at the offset in the frame into A.
func (p *program) load(size uint16, offset uint32) { p.add(unix.BPF_LD|unix.BPF_ABS|size, offset) }

// require drops the frame unless A is k.
func (p *program) require(k uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: drop, K: k})
}

// branch skips the next n instructions if A is k.
func (p *program) branch(k uint32, n uint8) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: n, K: k})
}

// accept takes the frame if A, modulo workers, is this one's number.
func (p *program) accept(worker, workers int) {
	if workers > 1 {
		p.add(unix.BPF_ALU|unix.BPF_MOD|unix.BPF_K, uint32(workers))
		p.require(uint32(worker))
	}
	p.add(unix.BPF_RET|unix.BPF_K, math.MaxUint32)
}

// finish appends the end and aims the jumps at it.
func (p *program) finish() []unix.SockFilter {
	end := len(*p)
	p.add(unix.BPF_RET|unix.BPF_K, 0)
	for i := range *p {
		if f := &(*p)[i]; f.Jf == drop {
			f.Jf = uint8(end - i - 1)
		}
	}
	return *p
}

// Ancillary data of a frame, by offset (include/uapi/linux/filter.h), and offsets behind the Ethernet header.
const (
	frameKind = uint32(0xfffff000) + 4 // SKF_AD_PKTTYPE

	ip4 = packet.EthernetLen
	ip6 = packet.EthernetLen
)

// tunnelFilter accepts UDP datagrams to the tunnel's port and address, and every fragment of UDP to the address. A
// frame for another host that the link happens to see is not for us; to the kernel one with the tag of a VLAN that has no
// link of its own is such a frame too. Each flow belongs to one of the workers, by source address and port; the fragments of a
// datagram to one by source address. PACKET_FANOUT would do that too, but no socket in a fanout group can be bound again
// (packet_do_bind), which a link that comes back asks for.
func tunnelFilter(local netip.AddrPort, worker, workers int) []unix.SockFilter {
	var p program
	p.load(unix.BPF_B, frameKind)
	p.require(unix.PACKET_HOST)
	if local.Addr().Is4() {
		p.tunnel4(local, worker, workers)
	} else {
		p.tunnel6(local, worker, workers)
	}
	return p.finish()
}

func (p *program) tunnel4(local netip.AddrPort, worker, workers int) {
	addr := local.Addr().As4()
	p.load(unix.BPF_B, ip4+9)
	p.require(packet.ProtoUDP)
	p.load(unix.BPF_W, ip4+16)
	p.require(binary.BigEndian.Uint32(addr[:]))
	var fragment program
	fragment.load(unix.BPF_W, ip4+12)
	fragment.accept(worker, workers)
	p.load(unix.BPF_H, ip4+6)
	p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0x3fff)
	p.branch(0, uint8(len(fragment)))
	*p = append(*p, fragment...)
	p.add(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, ip4) // X = length of the IP header
	p.add(unix.BPF_LD|unix.BPF_IND|unix.BPF_H, ip4+2)
	p.require(uint32(local.Port()))
	p.add(unix.BPF_LD|unix.BPF_IND|unix.BPF_H, ip4)
	p.spread(ip4 + 12)
	p.accept(worker, workers)
}

func (p *program) tunnel6(local netip.AddrPort, worker, workers int) {
	addr := local.Addr().As16()
	for i := range uint32(4) {
		p.load(unix.BPF_W, ip6+24+4*i)
		p.require(binary.BigEndian.Uint32(addr[4*i:]))
	}
	const sourceEnd = ip6 + 20 // the source's last word
	var fragment program
	fragment.require(protoFragment)
	fragment.load(unix.BPF_B, ip6+outerIPv6Len)
	fragment.require(packet.ProtoUDP)
	fragment.load(unix.BPF_W, sourceEnd)
	fragment.accept(worker, workers)
	p.load(unix.BPF_B, ip6+6)
	p.branch(packet.ProtoUDP, uint8(len(fragment)))
	*p = append(*p, fragment...)
	p.load(unix.BPF_H, ip6+outerIPv6Len+2)
	p.require(uint32(local.Port()))
	p.load(unix.BPF_H, ip6+outerIPv6Len)
	p.spread(sourceEnd)
	p.accept(worker, workers)
}

// spread adds the word at the offset to A.
func (p *program) spread(word uint32) {
	p.add(unix.BPF_MISC|unix.BPF_TAX, 0)
	p.load(unix.BPF_W, word)
	p.add(unix.BPF_ALU|unix.BPF_ADD|unix.BPF_X, 0)
}
