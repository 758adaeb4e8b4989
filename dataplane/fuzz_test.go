package dataplane

import (
	"encoding/binary"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/fragment"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// A fuzzing input is a list of steps: [what, who, TOS, length (2 bytes)] and as many bytes of a datagram or frame.
const (
	stepSide   = 0x03 // a Side; numSides lets time pass and has no bytes
	stepWrap   = 0x04 // put the headers in front that the receiver asks for
	stepRepair = 0x08 // make the IPv4 header's checksum right and the transport's
	stepVNet   = 0x10 // the bytes begin with a virtio_net_hdr
	stepWait   = 0x20 // goes into one batch with the next step
	stepHeader = 5
)

var (
	fuzzRemotes  = [...]netip.AddrPort{nodeB, nodeC, netip.MustParseAddrPort("192.0.2.77:8472"), netip.MustParseAddrPort("127.0.0.1:8472")}
	fuzzRemotes6 = [...]netip.AddrPort{nodeB6, nodeC6, netip.MustParseAddrPort("[2001:db8::77]:8472"), netip.MustParseAddrPort("[::1]:8472")}
	fuzzSources  = map[netip.Addr][]netip.Prefix{
		nodeB.Addr(): {prefix("10.0.2.0/24"), prefix("192.0.2.2/32")}, nodeB6.Addr(): {prefix("fd00:2::/64"), prefix("2001:db8::2/128")},
		nodeC.Addr(): {prefix("10.0.3.0/24"), prefix("192.0.2.3/32")}, nodeC6.Addr(): {prefix("fd00:3::/64"), prefix("2001:db8::3/128")},
	}
	fuzzLimits = map[netip.Addr]int{nodeB.Addr(): 1450, nodeC.Addr(): narrowMTU, nodeB6.Addr(): 1430, nodeC6.Addr(): narrowMTU}
	fuzzLocal  = []netip.Prefix{prefix("10.0.1.0/24"), prefix("fd00:1::/64")}
)

// A fuzzStep is one step of an input.
type fuzzStep struct {
	op, who, tos byte
	data         []byte
}

// nextStep cuts the first step off.
func nextStep(script []byte) (s fuzzStep, rest []byte, ok bool) {
	if len(script) < stepHeader {
		return s, nil, false
	}
	n := min(int(binary.BigEndian.Uint16(script[3:])), len(script)-stepHeader)
	return fuzzStep{script[0], script[1], script[2], script[stepHeader : stepHeader+n]}, script[stepHeader+n:], true
}

func (s fuzzStep) append(script []byte) []byte {
	script = append(script, s.op, s.who, s.tos)
	return append(binary.BigEndian.AppendUint16(script, uint16(len(s.data))), s.data...)
}

// frame is what the step hands to its side's port.
func (s fuzzStep) frame() memFrame {
	m := memFrame{tos: s.tos}
	side, data := Side(s.op&stepSide), s.data
	if s.op&stepVNet != 0 && len(data) >= packet.VNetLen {
		if side == TAP {
			m.vnet = packet.DecodeVNet(data)
		} else {
			m.hint = int(binary.LittleEndian.Uint16(data)) % 1500
		}
		data = data[packet.VNetLen:]
	}
	data = append([]byte(nil), data...)
	if s.op&stepWrap != 0 && len(data) >= 12 {
		switch {
		case side == TAP:
			copy(data, gateA[:])
		default:
			copy(data, macA[:])
			copy(data[6:], macB[:])
		}
	}
	if s.op&stepRepair != 0 {
		repair(data)
	}
	if side != TAP {
		m.remote = fuzzRemotes[s.who%4]
		if side == Underlay6 {
			m.remote = fuzzRemotes6[s.who%4]
		}
		if s.op&stepWrap != 0 {
			data = vxlan(data)
		}
	}
	m.data = data
	return m
}

// An innerPacket is what an Ethernet frame holds, read without the code that is tested.
type innerPacket struct {
	src, dst  netip.Addr
	proto     byte // 0 for a fragment
	ip        []byte
	transport int
}

// readInner reads an IP packet without extension headers; of one that has them only the addresses.
func readInner(frame []byte) (p innerPacket, ok bool) {
	if len(frame) < 34 {
		return p, false
	}
	ip := frame[14:]
	switch {
	case frame[12] == 8 && frame[13] == 0 && ip[0]>>4 == 4:
		length, header := int(binary.BigEndian.Uint16(ip[2:])), int(ip[0]&15)*4
		if length > len(ip) || header < 20 || header > length {
			return p, false
		}
		p = innerPacket{netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:])), ip[9], ip[:length], header}
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			p.proto = 0
		}
	case frame[12] == 0x86 && frame[13] == 0xdd && ip[0]>>4 == 6 && len(ip) >= 40:
		length := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		if length > len(ip) {
			return p, false
		}
		p = innerPacket{netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:])), ip[6], ip[:length], 40}
	default:
		return p, false
	}
	return p, true
}

// checksumAt is the offset of the transport's checksum; 0 if there is none.
func (p innerPacket) checksumAt() int {
	at := map[byte]int{packet.ProtoTCP: 16, packet.ProtoUDP: 6, packet.ProtoICMP: 2, packet.ProtoICMPv6: 2}[p.proto]
	if at == 0 || len(p.ip) < p.transport+at+2 || p.src.Is4() == (p.proto == packet.ProtoICMPv6) || p.src.Is6() && p.proto == packet.ProtoICMP {
		return 0
	}
	return p.transport + at
}

// naiveSum is the Internet checksum's sum, bytes of an odd length as if a zero followed (RFC 1071).
func naiveSum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, b := range parts {
		for i, v := range b {
			sum += uint32(v) << (8 * (1 - i&1))
			sum = sum&0xffff + sum>>16
		}
	}
	return uint16(sum)
}

// transportSum is 0xffff for a transport checksum that is right.
func (p innerPacket) transportSum() uint16 {
	l4 := p.ip[p.transport:]
	pseudo := append(p.src.AsSlice(), p.dst.AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(l4))), 0, p.proto)
	if p.proto == packet.ProtoICMP {
		pseudo = nil
	}
	return naiveSum(pseudo, l4)
}

// repair makes checksums right.
func repair(frame []byte) {
	p, ok := readInner(frame)
	if !ok {
		return
	}
	if p.src.Is4() {
		p.ip[10], p.ip[11] = 0, 0
		binary.BigEndian.PutUint16(p.ip[10:], ^naiveSum(p.ip[:p.transport]))
	}
	if at := p.checksumAt(); at != 0 {
		p.ip[at], p.ip[at+1] = 0, 0
		binary.BigEndian.PutUint16(p.ip[at:], ^p.transportSum())
	}
}

// A fuzzJudge knows what came in with a batch, and judges what goes out by it.
type fuzzJudge struct {
	*testing.T
	peers  map[netip.Addr]bool // that sent something
	pods   bool                // something came from the TAP
	spoilt bool                // and its transport checksum need not be right, which is the receiver's to find
}

func within(a netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// sound demands an IP packet that any receiver takes: right lengths and checksums, unless they are left to the device.
func (j *fuzzJudge) sound(frame []byte, vnet packet.VNet) innerPacket {
	j.Helper()
	p, ok := readInner(frame)
	if !ok {
		j.Fatalf("no IP packet: %x", frame)
	}
	if p.src.Is4() && naiveSum(p.ip[:p.transport]) != 0xffff {
		j.Fatalf("wrong header checksum: %x", frame)
	}
	if at := p.checksumAt(); at != 0 && !j.spoilt && !vnet.NeedsCsum() && p.transportSum() != 0xffff {
		if none := p.proto == packet.ProtoUDP && p.src.Is4() && p.ip[at] == 0 && p.ip[at+1] == 0; !none {
			j.Fatalf("wrong transport checksum: %+v %x", vnet, frame)
		}
	}
	for _, a := range []netip.Addr{p.src, p.dst} {
		if a.IsLoopback() || a.IsMulticast() {
			j.Fatalf("an address that nobody may have: %x", frame)
		}
	}
	return p
}

// delivered judges a frame that was written to the TAP.
func (j *fuzzJudge) delivered(m memFrame) {
	j.Helper()
	if j.pods && m.data[12] == 8 && m.data[13] == 6 {
		return // the answer to an ARP request
	}
	p := j.sound(m.data, m.vnet)
	engine := p.src == addr("10.0.1.254") || p.src == addr(engineA6)
	if j.pods && (engine || p.proto == packet.ProtoICMPv6) { // errors, echoes, ND
		return
	}
	if !within(p.dst, fuzzLocal) || p.dst == addr("10.0.1.254") || p.dst == addr(engineA6) {
		j.Fatalf("delivered to %v, which is not here", p.dst)
	}
	if j.pods {
		return
	}
	for peer := range j.peers {
		if within(p.src, fuzzSources[peer]) {
			return
		}
	}
	j.Fatalf("delivered from %v, which belongs to none of %v", p.src, j.peers)
}

// encapsulated judges a datagram that was given to an underlay.
func (j *fuzzJudge) encapsulated(m memFrame) {
	j.Helper()
	peer := m.remote.Addr()
	if fuzzSources[peer] == nil || len(m.data) < 8+14 || [8]byte(m.data) != [8]byte{8, 0, 0, 0, 0, 0, 1, 0} || m.remote.Port() != 8472 {
		j.Fatalf("sent to %v: %x", m.remote, m.data)
	}
	p := j.sound(m.data[8:], m.vnet)
	if !within(p.dst, fuzzSources[peer]) {
		j.Fatalf("%v is sent to %v", p.dst, peer)
	}
	size := len(p.ip)
	if g := int(m.vnet.GSOSize); m.vnet.GSOType != packet.GSONone {
		header := p.transport + 8
		if m.vnet.GSOType != packet.GSOUDPL4 {
			header = p.transport + int(p.ip[p.transport+12]>>4)*4
		}
		if p.proto == packet.ProtoTCP || p.proto == packet.ProtoUDP { // not behind extension headers
			size = min(size, header+g)
		} else {
			size = 0
		}
	}
	if mayNotCut := p.src.Is6() || p.ip[6]&0x40 != 0; mayNotCut && size > fuzzLimits[peer] {
		j.Fatalf("%d bytes are sent to %v, whose path takes %d", size, peer, fuzzLimits[peer])
	}
}

// judge looks at all that went out since the last time.
func (j *fuzzJudge) judge(r *rig) {
	j.Helper()
	for _, m := range r.tap().taken() {
		j.delivered(m)
	}
	for side := Underlay; side < numSides; side++ {
		for _, m := range r.ports[side].taken() {
			if m.remote.Addr().Is4() != (side == Underlay) {
				j.Fatalf("%v by the %v", m.remote, side)
			}
			j.encapsulated(m)
		}
	}
	c := r.w.snapshot()
	if l := c.Ledger(); !l.Balanced() {
		j.Fatalf("the ledger does not balance: %+v", l)
	}
}

// FuzzEngine runs a worker on whatever ports hand over, several packets after each other, in one batch and with time in between. Nothing
// forged is delivered, what leaves is sound and goes where it belongs, and the ledger balances after each step.
func FuzzEngine(f *testing.F) {
	for _, c := range verdictCases {
		if c.prepare != nil {
			continue
		}
		m := c.frame(f)
		s := fuzzStep{op: byte(c.side), tos: m.tos, data: m.data}
		if c.side == TAP && m.vnet != (packet.VNet{}) {
			s.op |= stepVNet
			s.data = append(make([]byte, packet.VNetLen), m.data...)
			m.vnet.Encode(s.data)
		}
		f.Add(s.append(nil))
		if c.side != TAP && len(m.data) > 8 {
			s.op, s.data = s.op|stepWrap|stepRepair, m.data[8:]
		}
		again := s
		again.op |= stepWait
		f.Add(fuzzStep{op: byte(numSides), who: 200}.append(again.append(s.append(s.append(nil)))))
	}
	for _, order := range [][3]int{{0, 1, 2}, {1, 0, 2}, {2, 1, 0}} {
		var out, in []byte
		for _, i := range order {
			out = fuzzStep{op: byte(TAP), data: piece(i)(f).data}.append(out)
			from := fragments(udpFrame(f, macB, macA, "10.0.2.9", "10.0.1.9", 64), 77, 24, 48)[i]
			in = fuzzStep{op: byte(Underlay) | stepWrap, data: from}.append(in)
		}
		f.Add(out)
		f.Add(in)
	}
	r := newRig(f)
	r.engine.Flows.Close()
	f.Fuzz(func(t *testing.T, script []byte) {
		r.anew(t)
		j := &fuzzJudge{T: t, peers: map[netip.Addr]bool{}}
		for steps := 0; steps < 64; steps++ {
			s, rest, ok := nextStep(script)
			if !ok {
				break
			}
			script = rest
			if side := Side(s.op & stepSide); side == numSides {
				r.now.Add(int64(s.who) * int64(100*time.Millisecond))
				r.w.begin()
			} else if m := s.frame(); len(m.data) <= math.MaxUint16 {
				r.ports[side].put(m)
				j.peers[m.remote.Addr()] = true
				j.pods = j.pods || side == TAP
				j.spoilt = j.spoilt || side == TAP && s.op&(stepRepair|stepVNet) != stepRepair
			}
			if s.op&stepWait != 0 {
				continue
			}
			for side := range numSides {
				r.turn(side)
			}
			j.judge(r)
			clear(j.peers)
			j.pods, j.spoilt = false, false
		}
		for side := range numSides {
			r.turn(side)
		}
		r.now.Add(int64(time.Minute))
		r.w.begin() // fragments that still wait
		j.judge(r)
	})
}

// anew makes the rig as good as new, with a flow table that fills up: a new rig costs a hundred times what a few packets do.
func (r *rig) anew(t *testing.T) {
	flows, err := conntrack.New(conntrack.Config{Flows4: 64, Flows6: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flows.Close() })
	r.t, r.engine.Flows, r.probes = t, flows, nil
	r.now.Store(int64(time.Hour))
	few := fragment.Limits{Datagrams: 4, Held: 8, Memory: 1}
	r.w.outFragments, r.w.inFragments = fragment.New(few), fragment.New(few)
	r.w.limits, r.w.now = icmpLimiter{}, time.Hour
}
