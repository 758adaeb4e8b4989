package dataplane

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

var spoofed = flag.Int("spoofed", 1_000_000, "frames that TestSpoofing forges")

// The matrix of forged datagrams: who sends them, how they are wrapped, whose packets they carry, and whither. whose is the peer that an
// address belongs to, empty for nobody's; a peer's IPv6 side is another one.
var (
	spoofOuter = []struct {
		from  string
		whose string
	}{
		{"192.0.2.2:8472", "b"}, {"192.0.2.2:53", "b"}, {"192.0.2.3:40000", "c"}, {"[2001:db8::2]:50000", "b6"}, {"[2001:db8::3]:8472", "c6"},
		{"192.0.2.1:8472", ""}, {"192.0.2.9:8472", ""}, {"127.0.0.1:8472", ""}, {"10.0.2.9:8472", ""}, {"[2001:db8::1]:8472", ""}, {"[2001:db8::9]:8472", ""}, {"[fd00:2::9]:8472", ""},
	}
	spoofWraps = []struct {
		header  [8]byte
		verdict packet.Verdict
	}{
		{[8]byte{8, 0, 0, 0, 0, 0, 1, 0}, packet.None},
		{[8]byte{8, 0, 0, 0, 0, 0, 2, 0}, packet.DropVNI}, {[8]byte{8, 0, 0, 0, 0, 0, 0, 0}, packet.DropVNI}, {[8]byte{8, 0, 0, 0, 1, 0, 1, 0}, packet.DropVNI},
		{[8]byte{0, 0, 0, 0, 0, 0, 1, 0}, packet.DropVXLANFlags},
	}
	spoofMACs = []struct {
		src, dst packet.MAC
		verdict  packet.Verdict
	}{
		{macB, macA, packet.None}, {macC, macA, packet.None}, {macB, macC, packet.DropOtherMAC}, {macB, packet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, packet.DropOtherMAC}, {macA, macA, packet.DropOwnMAC},
	}
	spoofSources = []struct {
		from    string
		whose   string
		martian bool
	}{
		{"10.0.2.9", "b", false}, {"192.0.2.2", "b", false}, {"10.0.3.9", "c", false}, {"192.0.2.3", "c", false}, {"10.0.1.7", "", false}, {"10.0.1.0", "", false}, {"10.0.1.254", "", false},
		{"192.0.2.1", "", false}, {"10.0.9.9", "", false}, {"203.0.113.9", "", false}, {"127.0.0.1", "", true}, {"0.0.0.0", "", true}, {"169.254.1.1", "", true}, {"224.0.0.1", "", true},
		{"fd00:2::9", "b6", false}, {"2001:db8::2", "b6", false}, {"fd00:3::9", "c6", false}, {"fd00:1::9", "", false}, {"2001:db8::1", "", false}, {"fd00:9::9", "", false},
		{"2001:db8:ffff::9", "", false}, {"::1", "", true}, {"fe80::9", "", true}, {"::", "", true},
	}
	spoofTargets = []struct {
		to      string
		verdict packet.Verdict
	}{
		{"10.0.1.9", packet.Delivered}, {"10.0.1.0", packet.Delivered}, {"10.0.1.254", packet.DropEngine}, {"10.0.2.9", packet.DropInnerDestination}, {"10.0.3.9", packet.DropInnerDestination},
		{"10.0.9.9", packet.DropInnerDestination}, {"192.0.2.1", packet.DropInnerDestination}, {"203.0.113.9", packet.DropInnerDestination},
		{"fd00:1::9", packet.Delivered}, {"fd00:1::", packet.Delivered}, {"fd00:1::ffff:ffff:ffff:fffe", packet.DropEngine}, {"fd00:2::9", packet.DropInnerDestination},
		{"2001:db8::1", packet.DropInnerDestination}, {"2001:db8:ffff::9", packet.DropInnerDestination},
	}
)

// A forgery is a frame of the matrix and what has to become of it. Where the last eight bytes of a legitimate one lie, its number is written.
type forgery struct {
	frame   memFrame
	verdict packet.Verdict
	number  int // offset; valid iff Delivered
	flow    string
}

// spoofMatrix has all combinations, and apart from them those which are legitimate.
func spoofMatrix(t *testing.T) (forged, legitimate []forgery) {
	for _, source := range spoofSources {
		for _, target := range spoofTargets {
			if addr(source.from).Is4() != addr(target.to).Is4() {
				continue
			}
			for _, mac := range spoofMACs {
				inner := numberedFrame(t, mac.src, mac.dst, source.from, target.to)
				for _, outer := range spoofOuter {
					for _, wrap := range spoofWraps {
						f := forgery{frame: memFrame{data: append(wrap.header[:], inner...), remote: netip.MustParseAddrPort(outer.from)}}
						f.number = len(f.frame.data) - 8
						f.flow = source.from + " " + target.to
						switch {
						case outer.whose == "":
							f.verdict = packet.DropUnknownPeer
						case wrap.verdict != packet.None:
							f.verdict = wrap.verdict
						case mac.verdict != packet.None:
							f.verdict = mac.verdict
						case source.martian:
							f.verdict = packet.DropMartian
						case source.whose != outer.whose:
							f.verdict = packet.DropInnerSource
						default:
							f.verdict = target.verdict
						}
						if f.verdict == packet.Delivered {
							legitimate = append(legitimate, f)
						} else {
							forged = append(forged, f)
						}
					}
				}
			}
		}
	}
	return forged, legitimate
}

// numbered is a payload that ends in a number. Shorter ones are followed by what fills an Ethernet frame up.
const numbered = 40

// numberedFrame has a UDP packet with a number and, over IPv4, without a UDP checksum, so that they can be rewritten.
// Over IPv6 it is one of a protocol that has none.
func numberedFrame(t *testing.T, src, dst packet.MAC, from, to string) []byte {
	eth, ip := ipLayers(src, dst, from, to, layers.IPProtocolUDP)
	if ip6, ok := ip.(*layers.IPv6); ok {
		ip6.NextHeader = layers.IPProtocolGRE
		return build(t, eth, ip6, gopacket.Payload(make([]byte, numbered)))
	}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	udp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	b := build(t, eth, ip, udp, gopacket.Payload(make([]byte, numbered)))
	b[14+20+6], b[14+20+7] = 0, 0
	return b
}

// TestSpoofing sends forged datagrams of the whole matrix with one legitimate one among a hundred. No forged one arrives, every legitimate
// one does, in order, each is counted under its verdict, and forged ones leave no flow behind.
func TestSpoofing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	forged, legitimate := spoofMatrix(t)
	r := newRig(t, func(c *Config) { c.Join = packet.Joining{} })
	want := map[packet.Verdict]uint64{}
	flows := map[string]bool{}
	sent, arrived, frames, next := uint64(0), uint64(0), 0, 0
	order := rng.Perm(len(forged))
	for frames < *spoofed {
		for side := Underlay; side < numSides; side++ {
			for range 500 {
				f := forged[order[next%len(order)]]
				next++
				if rng.IntN(100) == 0 {
					f = legitimate[rng.IntN(len(legitimate))]
				}
				if underlayOf(f.frame) != side {
					continue
				}
				if frames++; f.verdict == packet.Delivered {
					f.frame.data = append([]byte(nil), f.frame.data...)
					binary.BigEndian.PutUint64(f.frame.data[f.number:], sent)
					flows[f.flow] = true
					sent++
				}
				want[f.verdict]++
				r.ports[side].put(f.frame)
			}
			r.turn(side)
			for _, f := range r.tap().taken() {
				if got := binary.BigEndian.Uint64(f.data[len(f.data)-8:]); got != arrived {
					t.Fatalf("delivered is %d, want %d: %x", got, arrived, f.data)
				}
				arrived++
			}
		}
	}
	got := r.w.snapshot().Verdicts
	for v := range got {
		if v := packet.Verdict(v); got[v] != want[v] {
			t.Errorf("%s: %d, want %d", v, got[v], want[v])
		}
	}
	t.Logf("%d kinds, %d frames, %d legitimate: %d arrived, %d flows", len(forged), frames, sent, arrived, r.engine.Flows.Stats().Inserted)
	if n := r.engine.Flows.Stats().Inserted; n != uint64(len(flows)) {
		t.Errorf("%d flows, want those of legitimate packets, %d", n, len(flows))
	}
	if arrived != sent || sent < uint64(frames)/200 {
		t.Errorf("%d legitimate of %d sent, %d arrived", sent, frames, arrived)
	}
}
