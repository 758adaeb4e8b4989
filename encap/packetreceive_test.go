package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// outerFrame is a whole frame from site 0 to the tunnel at site 1 as a foreign machine would send it, built by gopacket. Options
// are of IPv4.
func (w *wireTest) outerFrame(t testing.TB, payload []byte, options ...layers.IPv4Option) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: w.macs[0][:], DstMAC: w.macs[1][:], EthernetType: layers.EthernetTypeIPv4}
	udp := &layers.UDP{SrcPort: 50000, DstPort: wirePort}
	var ip gopacket.SerializableLayer
	if src, dst := w.sites[0].addr.AsSlice(), w.sites[1].addr.AsSlice(); len(src) == 4 {
		v4 := &layers.IPv4{Version: 4, TTL: 64, TOS: 2, Protocol: layers.IPProtocolUDP, SrcIP: src, DstIP: dst, Options: options}
		udp.SetNetworkLayerForChecksum(v4)
		ip = v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, TrafficClass: 2, NextHeader: layers.IPProtocolUDP, SrcIP: src, DstIP: dst}
		eth.EthernetType = layers.EthernetTypeIPv6
		udp.SetNetworkLayerForChecksum(v6)
		ip = v6
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(buf.Bytes())
}

// A refusal is a frame that must not become a datagram. The verdict is None when it must not even be counted.
type refusal struct {
	name    string
	spoil   func(w *wireTest, frame []byte) []byte
	verdict packet.Verdict
	family  string // "" for both
}

func set(at int, values ...byte) func(*wireTest, []byte) []byte {
	return func(_ *wireTest, f []byte) []byte { copy(f[at:], values); return f }
}

// atUDP writes behind the IP header.
func atUDP(at int, values ...byte) func(*wireTest, []byte) []byte {
	return func(w *wireTest, f []byte) []byte {
		copy(f[packet.EthernetLen+familyOf(w.sites[0].addr).ipLen+at:], values)
		return f
	}
}

// fixed makes the IPv4 header's checksum right again.
func fixed(change func(*wireTest, []byte) []byte) func(*wireTest, []byte) []byte {
	return func(w *wireTest, f []byte) []byte {
		f = change(w, f)
		f[24], f[25] = 0, 0
		binary.BigEndian.PutUint16(f[24:], packet.Sum(0).Add(f[14:34]).Checksum())
		return f
	}
}

var refusals = []refusal{
	{"another UDP port", atUDP(2, 0, 53), packet.None, ""},
	{"another host's MAC", set(0, 2, 0, 0, 0, 0, 0x55), packet.None, ""},
	{"broadcast MAC", set(0, 255, 255, 255, 255, 255, 255), packet.None, ""},
	{"a VLAN without a link", vlan(7), packet.None, ""},
	{"wrong UDP checksum", atUDP(6, 0x12, 0x34), packet.DropL4Checksum, ""},
	{"a bit of the data wrong", atUDP(30, 0xff), packet.DropL4Checksum, ""},
	{"no UDP checksum", atUDP(6, 0, 0), packet.DropL4Checksum, "IPv6"},
	{"UDP longer than IP", atUDP(4, 0xff, 0), packet.DropFrameTruncated, ""},
	{"UDP shorter than its header", atUDP(4, 0, 7), packet.DropFrameTruncated, ""},
	{"cut behind IP", cut(3), packet.None, ""}, // the filter finds no port
	{"cut behind the ports", cut(4), packet.DropFrameTruncated, ""},
	{"cut in the data", cut(50), packet.DropFrameTruncated, ""},
	{"TCP", fixed(set(23, 6)), packet.None, "IPv4"},
	{"wrong IP checksum", set(24, 0x12, 0x34), packet.DropIPChecksum, "IPv4"},
	{"IP version 5", set(14, 0x55), packet.DropIPHeader, "IPv4"},
	{"IP header length 4", set(14, 0x41), packet.None, "IPv4"}, // the filter looks for the port elsewhere
	{"another address", fixed(set(33, 9)), packet.None, "IPv4"},
	{"another IPv6 address", set(53, 9), packet.None, "IPv6"},
	{"another next header", set(20, 6), packet.None, "IPv6"},
	{"IPv6 longer than the frame", set(18, 0xff), packet.DropFrameTruncated, "IPv6"},
}

func cut(n int) func(*wireTest, []byte) []byte {
	return func(w *wireTest, f []byte) []byte { return f[:packet.EthernetLen+familyOf(w.sites[0].addr).ipLen+n] }
}

func vlan(id byte) func(*wireTest, []byte) []byte {
	return func(_ *wireTest, f []byte) []byte {
		return slices.Concat(f[:12], []byte{0x81, 0, 0xe0, id}, f[12:])
	}
}

// What the kernel's UDP would not hand over does not come through here either, and is counted by what is wrong with it
// where the filter lets it through. Between them right frames go on.
func TestPacketRefuses(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		u, in := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21)
		payload := vxlanUDP(t, 100)
		for _, c := range refusals {
			if c.family != "" && c.family != t.Name()[len("TestPacketRefuses/"):] {
				continue
			}
			before := u.OuterDrops()
			w.inject(t, c.spoil(w, w.outerFrame(t, payload)), w.outerFrame(t, payload))
			got := receive(t, u, in, 1)
			if len(got) != 1 || !bytes.Equal(got[0].data, payload) || got[0].remote != netip.AddrPortFrom(w.sites[0].addr, 50000) || got[0].tos != 2 {
				t.Fatalf("%s: %d datagrams, want the next one alone; %+v", c.name, len(got), got[0])
			}
			for v, n := range u.OuterDrops() {
				if n -= before[v]; n != 0 && v != c.verdict || n != 1 && v == c.verdict {
					t.Errorf("%s: %v counted %d times", c.name, v, n)
				}
			}
			if c.verdict != packet.None && u.OuterDrops()[c.verdict] == before[c.verdict] {
				t.Errorf("%s: %v is not counted", c.name, c.verdict)
			}
		}
	})
}

// These are unusual and right.
func TestPacketAccepts(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		u, in, payload := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21), vxlanUDP(t, 101)
		frames := map[string][]byte{
			"priority tag":                  vlan(0)(w, w.outerFrame(t, payload)),
			"padding behind the IP packet":  append(w.outerFrame(t, payload), make([]byte, 9)...),
			"an odd length, nothing behind": w.outerFrame(t, payload),
			"IP longer than UDP":            w.longer(t, w.outerFrame(t, payload), 7),
		}
		if w.sites[0].addr.Is4() {
			frames["no checksum"] = atUDP(6, 0, 0)(w, w.outerFrame(t, payload))
			frames["IP options"] = w.outerFrame(t, payload, layers.IPv4Option{OptionType: 0x9e, OptionLength: 40, OptionData: make([]byte, 38)})
		}
		for name, frame := range frames {
			w.inject(t, frame)
			if got := receive(t, u, in, 1); !bytes.Equal(got[0].data, payload) {
				t.Errorf("%s: %d bytes, want %d", name, len(got[0].data), len(payload))
			}
		}
		if len(u.OuterDrops()) != 0 {
			t.Errorf("dropped: %v", u.OuterDrops())
		}
		w.inject(t, w.outerFrame(t, nil))
		if got := receive(t, u, in, 1); len(got[0].data) != 0 {
			t.Errorf("an empty datagram has %d bytes", len(got[0].data))
		}
	})
}

// longer puts n bytes behind the UDP packet, inside the IP packet.
func (w *wireTest) longer(t *testing.T, frame []byte, n int) []byte {
	frame = append(frame, bytes.Repeat([]byte{0xee}, n)...)
	if w.sites[0].addr.Is6() {
		binary.BigEndian.PutUint16(frame[18:], binary.BigEndian.Uint16(frame[18:])+uint16(n))
		return frame
	}
	return fixed(func(_ *wireTest, f []byte) []byte {
		binary.BigEndian.PutUint16(f[16:], binary.BigEndian.Uint16(f[16:])+uint16(n))
		return f
	})(w, frame)
}

// Fragments of several datagrams in any order become what was sent; with one lost, repeated or laid over another the rest does not
// suffer.
func TestPacketReassembles(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		u, in := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21)
		s := fragmentSource{w.sites[0].addr, w.sites[1].addr}
		for round := range uint32(30) {
			var frames, want [][]byte
			for i := range uint32(1 + random.IntN(4)) { // at most 512 fragments at once: a veth's backlog holds 1,000 frames
				data := s.udpData(wirePort, 100+random.IntN(65000))
				whole, step := random.IntN(5) > 0, 8*(64+random.IntN(110))
				lost := random.IntN(len(data))
				for from := 0; from < len(data); from += step {
					to := min(from+step, len(data))
					if !whole && from <= lost && lost < to || from == 0 && to == len(data) {
						continue
					}
					frame := s.frame(round<<8|i, 2, data, from, to, to < len(data))
					copy(frame, w.macs[1][:])
					copy(frame[6:], w.macs[0][:])
					frames = append(frames, frame)
				}
				if whole && step < len(data) {
					want = append(want, data[outerUDPLen:])
				}
			}
			random.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
			w.inject(t, frames...)
			w.now += time.Second / 2
			got := receive(t, u, in, len(want))
			checkArrivedInAnyOrder(t, got, want)
		}
		for v := range u.OuterDrops() {
			if v != packet.DropFragmentOrphan {
				t.Errorf("dropped: %v", u.OuterDrops())
			}
		}
	})
}

// A datagram whose fragments were mixed up has a wrong checksum.
func TestPacketReassembledChecksum(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		u, in := w.packet(t, 1, Config{})[0], packet.NewBatch(1<<21)
		s := fragmentSource{w.sites[0].addr, w.sites[1].addr}
		data := s.udpData(wirePort, 1000)
		other := slices.Clone(data)
		other[900] ^= 1
		a, b := s.frame(1, 0, data, 0, 800, true), s.frame(1, 0, other, 800, 1000, false)
		copy(a, w.macs[1][:])
		copy(b, w.macs[1][:])
		w.inject(t, a, b, w.outerFrame(t, vxlanUDP(t, 10)))
		receive(t, u, in, 1)
		if n := u.OuterDrops()[packet.DropL4Checksum]; n != 1 {
			t.Errorf("dropped: %v", u.OuterDrops())
		}
	})
}

// Where the kernel vouches for the checksum it is not looked at, but everything else is.
func TestPacketTrusted(t *testing.T) {
	for name, addrs := range wireSites {
		t.Run(name, func(t *testing.T) {
			w := &wireTest{sites: [2]site{{"", addrs[0]}, {"", addrs[1]}}}
			u, b, payload := socketless(addrs[1], codec(t, 1)), packet.NewBatch(1<<17), vxlanUDP(t, 100)
			for _, c := range []struct {
				name  string
				spoil func(*wireTest, []byte) []byte
				flags uint8
				want  packet.Verdict
				taken bool
			}{
				{"right", atUDP(0), 0, 0, true},
				{"wrong checksum, verified", atUDP(6, 1, 2), packet.VNetDataValid, 0, true},
				{"wrong checksum, unfinished", atUDP(6, 1, 2), packet.VNetNeedsCsum, 0, true},
				{"wrong checksum", atUDP(6, 1, 2), 0, packet.DropL4Checksum, false},
				{"UDP longer than IP, verified", atUDP(4, 1, 0), packet.VNetDataValid, packet.DropFrameTruncated, false},
				{"UDP longer than IP, unfinished", atUDP(4, 1, 0), packet.VNetNeedsCsum, packet.DropFrameTruncated, false},
				{"UDP shorter than its header, verified", atUDP(4, 0, 7), packet.VNetDataValid, packet.DropFrameTruncated, false},
				{"another port, verified", atUDP(2, 0, 53), packet.VNetDataValid, 0, false},
			} {
				before := u.OuterDrops()[c.want]
				message := make([]byte, packet.VNetLen)
				packet.VNet{Flags: c.flags}.Encode(message)
				frames := u.feed(b, append(message, c.spoil(w, w.outerFrame(t, payload))...))
				if taken := len(frames) == 1 && bytes.Equal(frames[0].Bytes(), payload); taken != c.taken || len(frames) > 1 {
					t.Errorf("%s: %d frames, want taken %t", c.name, len(frames), c.taken)
				}
				if n := u.OuterDrops()[c.want] - before; c.want != packet.None && n != 1 {
					t.Errorf("%s: %v counted %d times", c.name, c.want, n)
				}
			}
		})
	}
}
