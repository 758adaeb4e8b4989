package conntrack

import (
	"math/bits"
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/dataplane/word"
)

// The words of a slot. IPv4 slots end after the first eight.
const (
	wCtrl  = iota // the control word, below
	wAddr         // IPv4: both addresses; IPv6: the low half of the smaller endpoint's
	wPorts        // ports, smaller endpoint's first; translated source and destination port
	wTimes        // created and last seen, seconds
	wGen          // generation; widest window of the originator and of the replier, as packWindow makes it
	wSent0        // by what the originator sent: its end, the replier's maxEnd
	wSent1        // by what the replier sent: its end, the originator's maxEnd
	wAddr2        // IPv4: translated source and destination; IPv6: the low half of the greater endpoint's

	words4 = iota
)

const (
	wHigh   = words4 + iota // high half of the smaller endpoint's address
	wHigh2                  // and of the greater one's
	wNATSrc                 // translated source, high and low half
	wNATSrc2
	wNATDst
	wNATDst2
	_
	_

	words6 = words4 + iota
)

const (
	slotLen4 = 8 * words4
	slotLen6 = 8 * words6
)

// 128 and 256 bytes per flow at half load; neither array has a length when a size is off.
var (
	_ = [1]struct{}{}[slotLen4-64]
	_ = [1]struct{}{}[slotLen6-128]
)

// The control word: lock bit and sequence number, protocol, state and flags of the entry, window scales, and which slots
// of the probe sequence hold entries whose home this is. All but the sequence and the home bits are zero in a free slot.
const (
	locked   = 1
	seqMask  = 0xffff
	replied  = 1 << 28 // the replier was heard
	swapped  = 1 << 29 // the originator is the greater endpoint
	liberal  = 1 << 30 // picked up in the middle: the window scales are unknown, so windows are not checked
	homeBits = 40

	protoShift  = 16
	stateShift  = 24
	scaleShift0 = 32
	scaleShift1 = 36

	entryMask = 1<<homeBits - 1 - seqMask // the entry's part
)

func stateOf(ctrl uint64) State { return State(ctrl >> stateShift & 0xf) }
func protoOf(ctrl uint64) uint8 { return uint8(ctrl >> protoShift) }
func withState(ctrl uint64, s State) uint64 {
	return ctrl&^(0xf<<stateShift) | uint64(s)<<stateShift
}

// bump returns the unlocked control word with the next sequence number.
func bump(ctrl uint64) uint64 { return ctrl&^seqMask | (ctrl&^locked+2)&seqMask }

// An entry is what changes of a slot while its flow lives, and the ports.
type entry struct {
	ctrl  uint64
	times uint64
	gen   uint64
	sent  [2]uint64 // read for TCP only, where a packet acts on it
}

// read copies a slot's entry. It is consistent iff the slot's control word is still ctrl afterwards.
func read(w *slot, ctrl uint64) entry {
	return entry{ctrl, w[wTimes].Load(), w[wGen].Load(), [2]uint64{w[wSent0].Load(), w[wSent1].Load()}}
}

func (e *entry) generation() uint32 { return uint32(e.gen >> 32) }
func (e *entry) created() uint32    { return uint32(e.times >> 32) }
func (e *entry) lastSeen() uint32   { return uint32(e.times) }

// touch notes that a packet was seen, once per second. Workers' clocks may differ a little: time never goes back.
func (e *entry) touch(now uint32) {
	if int32(now-e.lastSeen()) > 0 {
		e.times = e.times&^0xffffffff | uint64(now)
	}
}

func (e *entry) timeout() uint32 {
	return timeout(protoOf(e.ctrl), stateOf(e.ctrl), e.ctrl&replied != 0)
}

// expired says that more than the timeout has passed: never early, at most two seconds late.
func (e *entry) expired(now uint32) bool {
	return int32(now-e.lastSeen()) > shortestTimeout && e.outlived(now)
}

// outlived is apart so that expired, which mostly needs none of it, is inlined.
//
//go:noinline
func (e *entry) outlived(now uint32) bool { return now-e.lastSeen() > e.timeout() }

// seconds truncates a time to what slots hold.
func seconds(now time.Duration) uint32 { return uint32(uint64(max(now, 0)) / uint64(time.Second)) }

func (a *area) id(s uint64, generation uint32) ID {
	id := uint64(generation)<<32 | s
	if a.size == slotLen6 {
		id |= 1 << 31
	}
	return ID(id)
}

// locate returns an ID's parts: the family, the slot, the generation.
func (t *Table) locate(id ID) (a *area, s uint64, generation uint32) {
	a = &t.v4
	if id&(1<<31) != 0 {
		a = &t.v6
	}
	return a, uint64(id) & (1<<31 - 1), uint32(id >> 32)
}

// storeKey writes the canonical tuple, ports apart.
func (w *slot) storeKey(size uint64, k *key) {
	w[wAddr].Store(k.addr[0])
	if size == slotLen6 {
		w6 := w.wide()
		w6[wAddr2].Store(k.addr[1])
		w6[wHigh].Store(k.addr[2])
		w6[wHigh2].Store(k.addr[3])
	}
}

// loadKey reads the canonical tuple of an entry, hash included.
func (a *area) loadKey(s, ctrl uint64) key {
	w := a.slot(s)
	k := key{ports: uint32(w[wPorts].Load() >> 32), proto: protoOf(ctrl)}
	k.addr[0] = w[wAddr].Load()
	if a.size == slotLen4 {
		k.hash = a.key.hash4(&k)
		return k
	}
	w6 := w.wide()
	k.addr[1], k.addr[2], k.addr[3] = w6[wAddr2].Load(), w6[wHigh].Load(), w6[wHigh2].Load()
	k.hash = a.key.hash6(&k)
	return k
}

// holds says whether a slot whose control word is ctrl holds the entry of k.
func (w *slot) holds(ctrl uint64, k *key, size uint64) bool {
	return w.begins(ctrl, k) && (size == slotLen4 || w.wide().holdsRest(k))
}

// begins compares what slots of both families have.
func (w *slot) begins(ctrl uint64, k *key) bool {
	return w[wAddr].Load() == k.addr[0] && uint32(w[wPorts].Load()>>32) == k.ports && protoOf(ctrl) == k.proto && stateOf(ctrl) != free
}

func (w *slot6) holdsRest(k *key) bool {
	return w[wAddr2].Load() == k.addr[1] && w[wHigh].Load() == k.addr[2] && w[wHigh2].Load() == k.addr[3]
}

// tuple returns the key as a tuple from its smaller endpoint, or from the greater one.
func (a *area) tuple(k *key, greater bool) Tuple {
	t := Tuple{Proto: k.proto, SrcPort: uint16(k.ports >> 16), DstPort: uint16(k.ports)}
	if a.size == slotLen4 {
		t.Src, t.Dst = word.From4(uint32(k.addr[0]>>32)), word.From4(uint32(k.addr[0]))
	} else {
		t.Src, t.Dst = word.FromHalves(k.addr[2], k.addr[0]), word.FromHalves(k.addr[3], k.addr[1])
	}
	if greater {
		t.Src, t.Dst, t.SrcPort, t.DstPort = t.Dst, t.Src, t.DstPort, t.SrcPort
	}
	return t
}

// storePorts writes the tuple's ports and the translation. The zero address is none.
func (w *slot) storePorts(size uint64, k *key, nat *NAT) {
	w[wPorts].Store(uint64(k.ports)<<32 | uint64(nat.Src.Port())<<16 | uint64(nat.Dst.Port()))
	if size == slotLen4 {
		w[wAddr2].Store(natAddr4(nat.Src)<<32 | natAddr4(nat.Dst))
		return
	}
	w6 := w.wide()
	for i, ap := range [2]netip.AddrPort{nat.Src, nat.Dst} {
		var hi, lo uint64
		if ap.IsValid() {
			addr := ap.Addr()
			hi, lo = word.Halves(&addr)
		}
		w6[wNATSrc+2*i].Store(hi)
		w6[wNATSrc2+2*i].Store(lo)
	}
}

func natAddr4(ap netip.AddrPort) uint64 {
	if !ap.IsValid() {
		return 0
	}
	addr := ap.Addr()
	return uint64(word.Of4(&addr))
}

// loadNAT fills nat, which is zero, with a slot's translation.
func (w *slot) loadNAT(size uint64, nat *NAT) {
	if size != slotLen4 {
		w.wide().loadNAT(nat)
		return
	}
	if addrs := w[wAddr2].Load(); addrs != 0 {
		setNAT4(nat, addrs, w[wPorts].Load())
	}
}

func (w6 *slot6) loadNAT(nat *NAT) {
	ports := w6[wPorts].Load()
	if hi, lo := w6[wNATSrc].Load(), w6[wNATSrc2].Load(); hi|lo != 0 {
		nat.Src = netip.AddrPortFrom(word.FromHalves(hi, lo), uint16(ports>>16))
	}
	if hi, lo := w6[wNATDst].Load(), w6[wNATDst2].Load(); hi|lo != 0 {
		nat.Dst = netip.AddrPortFrom(word.FromHalves(hi, lo), uint16(ports))
	}
}

func setNAT4(nat *NAT, addrs, ports uint64) {
	if src := uint32(addrs >> 32); src != 0 {
		nat.Src = netip.AddrPortFrom(word.From4(src), uint16(ports>>16))
	}
	if dst := uint32(addrs); dst != 0 {
		nat.Dst = netip.AddrPortFrom(word.From4(dst), uint16(ports))
	}
}

// A window of up to 2^30 bytes is kept in 16 bits, 11 of mantissa and 5 of exponent, rounded up: at most 0.1 % wider.
const (
	mantissaBits = 11
	maxWindow    = 1 << 30 // RFC 7323, 2.3
)

func packWindow(v uint32) uint64 {
	v = min(v, maxWindow)
	e := max(bits.Len32(v)-mantissaBits, 0)
	m := (v + 1<<e - 1) >> e
	if m == 1<<mantissaBits {
		m, e = m>>1, e+1
	}
	return uint64(e)<<mantissaBits | uint64(m)
}

func unpackWindow(p uint64) uint32 {
	return uint32(p&(1<<mantissaBits-1)) << (p >> mantissaBits & 31)
}
