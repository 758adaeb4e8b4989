package dataplane

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// expectDrop sends one datagram from a peer and demands that nothing is delivered, and that exactly one drop counter moved, by one;
// the one that is named, unless that is None.
func expectDrop(t *testing.T, r *rig, m memFrame, want packet.Verdict) {
	t.Helper()
	before := r.w.count.Verdicts
	side := underlayOf(m)
	r.send(side, m)
	if out := r.tap().taken(); len(out) != 0 {
		t.Errorf("%d frames delivered", len(out))
	}
	moved := 0
	for v, n := range r.w.count.Verdicts {
		d := n - before[v]
		if d == 0 || packet.Verdict(v).Sent() { // an ICMP error that goes back
			continue
		}
		moved += int(d)
		if !packet.Verdict(v).Dropped() || want != packet.None && packet.Verdict(v) != want {
			t.Errorf("verdict %s, want %s", packet.Verdict(v), want)
		}
	}
	if moved != 1 {
		t.Errorf("%d verdicts for one packet", moved)
	}
}

func underlayOf(m memFrame) Side {
	if m.remote.Addr().Is6() {
		return Underlay6
	}
	return Underlay
}

// wellFormed are datagrams of node b that are delivered as they are.
func wellFormed(t testing.TB) map[string]memFrame {
	tcp := func(from, to string) memFrame {
		eth, ip := ipLayers(macB, macA, from, to, layers.IPProtocolTCP)
		l4 := &layers.TCP{SrcPort: 4000, DstPort: 5000, ACK: true, Window: 1000}
		l4.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
		return wrapB(build(t, eth, ip, l4, gopacket.Payload(make([]byte, 40))))
	}
	return map[string]memFrame{
		"UDP":    fromB(t, "10.0.2.9", "10.0.1.9"),
		"UDPv6":  fromB(t, podB6, podA6),
		"TCP":    tcp("10.0.2.9", "10.0.1.9"),
		"TCPv6":  tcp(podB6, podA6),
		"ICMP":   wrapB(echoFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", false)),
		"ICMPv6": wrapB(echoFrame(t, macB, macA, podB6, podA6, false)),
	}
}

// TestEveryTruncation cuts datagrams at every length: none is delivered, each is counted once.
func TestEveryTruncation(t *testing.T) {
	for name, m := range wellFormed(t) {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			for n := range m.data {
				cut := m
				cut.data = m.data[:n]
				expectDrop(t, r, cut, packet.None)
				if t.Failed() {
					t.Fatalf("cut to %d of %d bytes", n, len(m.data))
				}
			}
			r.send(underlayOf(m), m)
			if len(r.tap().taken()) != 1 {
				t.Error("the whole datagram is not delivered")
			}
		})
	}
}

// TestEveryHeaderBit flips each bit of the VXLAN header: a reserved one, the flag, and those of the VNI.
func TestEveryHeaderBit(t *testing.T) {
	r := newRig(t)
	for bit := range 64 {
		want := packet.DropVXLANFlags
		if bit >= 32 && bit < 56 {
			want = packet.DropVNI
		}
		m := fromB(t, "10.0.2.9", "10.0.1.9")
		m.data[bit/8] ^= 0x80 >> (bit % 8)
		expectDrop(t, r, m, want)
	}
}

// TestEveryCorruptBit flips each bit of inner packets: none gets to a pod with a bit changed that a checksum covers. What it does
// not cover is the Ethernet header, which decides whom it is for, and the fields of IPv6 that no checksum holds.
func TestEveryCorruptBit(t *testing.T) {
	uncovered := map[int]bool{} // bytes of an IPv6 header: traffic class, flow label, next header (of no known protocol), hop limit
	for _, i := range []int{0, 1, 2, 3, 6, 7} {
		uncovered[vip+i] = true
	}
	for name, m := range wellFormed(t) {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			for bit := vip * 8; bit < len(m.data)*8; bit++ {
				if underlayOf(m) == Underlay6 && uncovered[bit/8] && bit >= vip*8+4 {
					continue
				}
				bad := m
				bad.data = append([]byte(nil), m.data...)
				bad.data[bit/8] ^= 0x80 >> (bit % 8)
				expectDrop(t, r, bad, packet.None)
				if t.Failed() {
					t.Fatalf("byte %d of the inner packet, bit %d", bit/8-vip, bit%8)
				}
			}
		})
	}
}

// TestExtensionChains are IPv6 extension headers as nobody may send them.
func TestExtensionChains(t *testing.T) {
	hopByHop := []byte{0, 0, 1, 4, 0, 0, 0, 0} // a PadN option; next header filled in
	chain := func(kinds ...byte) memFrame {
		f := udpFrame(t, macB, macA, podB6, podA6, 64)
		var ext []byte
		for i := range kinds {
			h := append([]byte(nil), hopByHop...)
			if h[0] = 17; i+1 < len(kinds) {
				h[0] = kinds[i+1]
			}
			ext = append(ext, h...)
		}
		out := append(append(append([]byte(nil), f[:54]...), ext...), f[54:]...)
		out[20] = kinds[0]
		length := int(out[18])<<8 + int(out[19]) + len(ext)
		out[18], out[19] = byte(length>>8), byte(length)
		return wrapB(out)
	}
	r := newRig(t)
	many := make([]byte, 64)
	for i := range many {
		many[i] = 60
	}
	for name, m := range map[string]memFrame{
		"hop-by-hop behind another": chain(60, 0), "64 of them": chain(many...),
		"routing header 0": wrapB(withRouting0(udpFrame(t, macB, macA, podB6, podA6, 64))),
	} {
		t.Run(name, func(t *testing.T) { expectDrop(t, r, m, packet.DropExtension) })
	}
	r.send(Underlay6, chain(0, 60))
	if len(r.tap().taken()) != 1 {
		t.Error("hop-by-hop options and destination options in this order are right, and are not delivered")
	}
}

// TestOverlap sends datagrams in fragments of which one overlaps: from then on nothing of the datagram passes.
func TestOverlap(t *testing.T) {
	r := newRig(t)
	whole := udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64)
	good := fragments(whole, 5, 24, 48)
	bad := fragments(whole, 5, 16, 40)
	r.send(Underlay, wrapB(good[0]))
	if len(r.tap().taken()) != 1 {
		t.Fatal("the first fragment is not delivered")
	}
	for _, f := range [][]byte{bad[1], good[1], good[2]} {
		expectDrop(t, r, wrapB(f), packet.DropFragmentOverlap)
	}
}

// TestEveryECNPair holds what arrives at a pod against RFC 6040, figure 4, for all 16 pairs in both families.
func TestEveryECNPair(t *testing.T) {
	const drop = 0xff
	figure4 := [4][4]byte{ // inner (row) and outer (column), in the order Not-ECT, ECT(1), ECT(0), CE: the codepoints 0 to 3
		packet.ECNNotECT: {0, 0, 0, drop},
		packet.ECNECT1:   {1, 1, 1, 3},
		packet.ECNECT0:   {2, 1, 2, 3},
		packet.ECNCE:     {3, 3, 3, 3},
	}
	for inner := range byte(4) {
		for outer := range byte(4) {
			for _, to := range []string{"10.0.1.9", podA6} {
				t.Run(fmt.Sprintf("inner %d outer %d to %s", inner, outer, to), func(t *testing.T) {
					r := newRig(t)
					var m memFrame
					if to == podA6 {
						m = fromB(t, podB6, to)
						m.data[vip+1] |= inner << 4
					} else {
						m = fromB(t, "10.0.2.9", to)
						m.data[vip+1] = inner
						fixIPChecksum(m.data[vx:])
					}
					m.tos = outer
					want := figure4[inner][outer]
					if want == drop {
						expectDrop(t, r, m, packet.DropECN)
						return
					}
					r.send(underlayOf(m), m)
					out := r.tap().taken()
					if len(out) != 1 {
						t.Fatalf("%d frames delivered", len(out))
					}
					if got := innerECN(out[0].data); got != want {
						t.Errorf("arrives with %d, want %d", got, want)
					}
				})
			}
		}
	}
}

// innerECN lets gopacket read the ECN field of an Ethernet frame.
func innerECN(frame []byte) byte {
	switch ip := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).NetworkLayer().(type) {
	case *layers.IPv4:
		return ip.TOS & 3
	case *layers.IPv6:
		return ip.TrafficClass & 3
	}
	return 0xff
}

// TestTTLZero is a packet that no router forwards.
func TestTTLZero(t *testing.T) {
	for _, options := range [][]func(*Config){nil, {func(c *Config) { c.DecrementTTL = true }}} {
		r := newRig(t, options...)
		for _, m := range []memFrame{fromB(t, "10.0.2.9", "10.0.1.9"), fromB(t, podB6, podA6)} {
			if m.data[vip]>>4 == 4 {
				m.data[vip+8] = 0
				fixIPChecksum(m.data[vx:])
			} else {
				m.data[vip+7] = 0
			}
			expectDrop(t, r, m, packet.DropTTL)
		}
	}
}

// TestGarbage feeds random bytes, and well-formed datagrams with random changes, through both ways: nothing panics, and the ledger
// balances.
func TestGarbage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	r := newRig(t)
	var seeds []memFrame
	for _, m := range wellFormed(t) {
		seeds = append(seeds, m, memFrame{data: m.data[vx:]})
	}
	for range 20000 {
		m := seeds[rng.IntN(len(seeds))]
		m.data = append([]byte(nil), m.data...)
		for range 1 + rng.IntN(8) {
			m.data[rng.IntN(len(m.data))] = byte(rng.Uint32())
		}
		m.data = m.data[:rng.IntN(len(m.data)+1)]
		m.tos, m.hint = byte(rng.Uint32()), rng.IntN(3)*700
		side := TAP
		if m.remote.IsValid() {
			side = underlayOf(m)
		} else if rng.IntN(2) == 0 {
			m.vnet = packet.VNet{Flags: byte(rng.IntN(2)), GSOType: []byte{0, 1, 4, 5}[rng.IntN(4)], GSOSize: uint16(rng.IntN(100)),
				CsumStart: uint16(rng.IntN(100)), CsumOffset: uint16(rng.IntN(20))}
		}
		r.send(side, m)
		r.now.Add(int64(rng.IntN(1e8)))
	}
	r.now.Add(int64(1e12))
	r.w.begin() // fragments that still wait
}
