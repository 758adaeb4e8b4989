package capture

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// The kernel's ring: blocks of which each takes the largest super-packet, handed over when they are full or after blockTimeout.
const (
	blockSize    = 1 << 19
	blockCount   = 32
	blockTimeout = 5 // milliseconds

	// minWireSnap is what the filters need of a packet: both IP headers with their options, the tunnel's and the inner ports.
	minWireSnap = 512
)

// A wireReader reads the tunnel's packets as they are on the underlay's link, both ways, through a packet(7) socket of its own. The
// kernel fills its ring and counts what finds no room.
type wireReader struct {
	session *Session
	fd      int
	ring    []byte
	block   int      // the next one
	out     []byte   // records, or their headers
	pieces  [][]byte // of the block that was read, in order
	begin   int      // where the next piece of out begins
	number  int      // of the interface

	datagram []byte // the last one that was cut out of a send

	received, missed atomic.Uint64
}

// OpenWire adds the underlay's link to the session. It must be called in the link's network namespace; Run closes what it opens.
func (s *Session) OpenWire(link string, index int) (err error) {
	w := &wireReader{session: s, fd: -1}
	defer func() {
		if err != nil {
			w.close()
			err = fmt.Errorf("capture on %s: %w", link, err)
		}
	}()
	if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if err = w.configure(max(s.config.SnapLen, minWireSnap)); err != nil {
		return err
	}
	kind, err := w.bind(index)
	if err != nil {
		return err
	}
	w.number = len(s.interfaces)
	s.add(placeWire, Interface{Wire, link, "packets of the tunnel on the underlay's link, as they are", kind})
	s.wire = w
	return nil
}

// configure attaches filter and ring. The socket is not bound yet, so that nothing comes in unfiltered.
func (w *wireReader) configure(snap int) error {
	program := tunnelProgram(w.session.config.Tunnel, snap)
	if err := unix.SetsockoptSockFprog(w.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	for _, o := range []struct{ name, value int }{{unix.PACKET_VERSION, unix.TPACKET_V3}, {unix.PACKET_VNET_HDR, 1}} {
		if err := unix.SetsockoptInt(w.fd, unix.SOL_PACKET, o.name, o.value); err != nil {
			return fmt.Errorf("packet socket: option %d: %w", o.name, err)
		}
	}
	request := unix.TpacketReq3{Block_size: blockSize, Block_nr: blockCount, Frame_size: 2048, Frame_nr: blockSize / 2048 * blockCount, Retire_blk_tov: blockTimeout}
	if err := unix.SetsockoptTpacketReq3(w.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return fmt.Errorf("packet socket: ring of %d MiB: %w", blockSize*blockCount>>20, err)
	}
	ring, err := unix.Mmap(w.fd, 0, blockSize*blockCount, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("packet socket: map ring: %w", err)
	}
	w.ring = ring
	return nil
}

// bind starts the capture and returns what packets begin with.
func (w *wireReader) bind(index int) (LinkType, error) {
	address := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index}
	if err := unix.Bind(w.fd, address); err != nil {
		return 0, fmt.Errorf("bind: %w", err)
	}
	name, err := unix.Getsockname(w.fd)
	if err != nil {
		return 0, fmt.Errorf("link type: %w", err)
	}
	switch kind := name.(*unix.SockaddrLinklayer).Hatype; kind {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		return Ethernet, nil
	case unix.ARPHRD_NONE, unix.ARPHRD_PPP, unix.ARPHRD_TUNNEL, unix.ARPHRD_TUNNEL6, unix.ARPHRD_IPGRE, unix.ARPHRD_SIT:
		return RawIP, nil
	default:
		return 0, fmt.Errorf("links of type %d cannot be captured: capture another stage", kind)
	}
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wireReader) close() {
	if w.ring != nil {
		unix.Munmap(w.ring)
	}
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
}

// read returns the records of the next block in pieces, nil when none is ready. They are valid until release, which must follow.
func (w *wireReader) read() [][]byte {
	base := w.ring[w.block*blockSize:][:blockSize]
	header := blockHeader(base)
	if atomic.LoadUint32(&header.Block_status)&unix.TP_STATUS_USER == 0 {
		return nil
	}
	w.out, w.pieces, w.begin = w.out[:0], w.pieces[:0], 0
	at := int(header.Offset_to_first_pkt)
	for range header.Num_pkts {
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&base[at]))
		w.append(base[at:], h)
		at += int(h.Next_offset)
	}
	w.pieces = append(w.pieces, w.out[w.begin:])
	return w.pieces
}

// release gives the block that was read back to the kernel.
func (w *wireReader) release() {
	header := blockHeader(w.ring[w.block*blockSize:])
	atomic.StoreUint32(&header.Block_status, unix.TP_STATUS_KERNEL)
	w.block = (w.block + 1) % blockCount
}

func blockHeader(block []byte) *unix.TpacketHdrV1 {
	return (*unix.TpacketHdrV1)(unsafe.Pointer(&block[unsafe.Offsetof(unix.TpacketBlockDesc{}.Hdr)]))
}

// append adds the record of one packet, or those of the datagrams of a send. slot begins with h.
func (w *wireReader) append(slot []byte, h *unix.Tpacket3Hdr) {
	s := w.session
	data := slot[h.Mac:][:h.Snaplen]
	r := Record{Interface: w.number, Time: time.Unix(int64(h.Sec), int64(h.Nsec)), Length: int(h.Len)}
	address := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&slot[tpacketAlign(int(unsafe.Sizeof(*h)))]))
	r.Flags = FlagInbound
	if address.Pkttype == unix.PACKET_OUTGOING {
		r.Flags = FlagOutbound
	}
	v := packet.DecodeVNet(slot[int(h.Mac)-packet.VNetLen:])
	w.offload(&r, v)
	link := s.interfaces[w.number].Link
	var tag []byte
	if h.Status&unix.TP_STATUS_VLAN_VALID != 0 && link == Ethernet && len(data) >= 12 {
		tag = vlanTag(h)
		r.Flags |= FlagVLAN
		r.Length += len(tag)
	}
	if outer, ok := w.shared(data, link, int(h.Len), v); ok {
		w.cut(r, tag, data, &outer, int(v.GSOSize))
		return
	}
	w.take(&r, tag, data)
}

// take adds the record of a packet if the filters want it.
func (w *wireReader) take(r *Record, tag, data []byte) {
	if !w.wanted(data, w.session.interfaces[w.number].Link, r.Length) {
		return
	}
	w.received.Add(1)
	w.add(r, tag, data, min(len(tag)+len(data), w.session.config.SnapLen))
}

// copyLess is the size from which on a packet's bytes are written from the kernel's ring and not copied to the others.
const copyLess = 4096

// add puts a record into out, or, of a large packet, the header into out and the rest among the pieces.
func (w *wireReader) add(r *Record, tag, data []byte, captured int) {
	start, length := len(w.out), recordLen(0, captured)
	if tag == nil && captured >= copyLess && r.Flags&FlagCut == 0 {
		w.out = slices.Grow(w.out, recordHeader+recordAlign)[:start+recordHeader]
		r.put(w.out[start:], kindPacket, 0)
		setLengths(w.out[start:], length, captured)
		w.pieces = append(w.pieces, w.out[w.begin:], data[:captured])
		w.begin = len(w.out)
		w.out = append(w.out, padding[:length-recordHeader-captured]...)
		return
	}
	w.out = slices.Grow(w.out, length)[:start+length]
	to := r.put(w.out[start:], kindPacket, captured)
	if tag != nil {
		to = to[copy(to, data[:12]):]
		to = to[copy(to, tag):]
		data = data[12:]
	}
	copy(to, data)
}

var padding [recordAlign]byte

// offload notes what the packet's sender left to the device: then it is not yet what will be on the cable.
func (w *wireReader) offload(r *Record, v packet.VNet) {
	r.Segments = 1
	if v.NeedsCsum() {
		r.Flags |= FlagPartial
	}
	if v.GSOType != packet.GSONone && v.GSOSize > 0 {
		r.Size = int(v.GSOSize)
		r.Segments = max(1, (r.Length-int(v.HdrLen)+r.Size-1)/r.Size)
	}
}

func vlanTag(h *unix.Tpacket3Hdr) []byte {
	tpid := uint16(0x8100)
	if h.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		tpid = h.Hv1.Vlan_tpid
	}
	return []byte{byte(tpid >> 8), byte(tpid), byte(h.Hv1.Vlan_tci >> 8), byte(h.Hv1.Vlan_tci)}
}

func tpacketAlign(n int) int { return (n + 15) &^ 15 }

// wanted applies the filters. Of fragments but the first one nobody knows the inner headers: with a filter of those they are left out.
func (w *wireReader) wanted(data []byte, link LinkType, length int) bool {
	c := &w.session.config
	if c.Filter == nil && c.Inner == nil {
		return true
	}
	h := Dissect(data, link, length)
	if !c.Filter.Match(&h) || c.Inner == nil {
		return c.Filter.Match(&h)
	}
	inner, innerLink := c.Tunnel.Inner(data, &h)
	if inner == nil {
		return false
	}
	hidden := len(data) - len(inner)
	h = Dissect(inner, innerLink, length-hidden)
	return c.Inner.Match(&h)
}

// count brings missed up to date: the kernel counts from the last time it was asked.
func (w *wireReader) count() {
	if stats, err := unix.GetsockoptTpacketStatsV3(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		w.missed.Add(uint64(stats.Drops))
	}
}
