package encap

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// socketless is a raw underlay that take can be called of.
func socketless(local netip.Addr, framing Framing) *PacketUnderlay {
	c := &PacketConfig{Config: Config{Local: netip.AddrPortFrom(local, wirePort), Framing: framing}, NextHops: new(NextHops)}
	c.Clock = func() time.Duration { return 0 }
	return newPacketUnderlay(c, new(atomic.Uint32), false)
}

// feed lets the underlay take one message as the kernel hands it over.
func (u *PacketUnderlay) feed(b *packet.Batch, message []byte) []*packet.Frame {
	b.Reset()
	u.recv.arm(b)
	message = message[:min(len(message), int(u.recv.iovecs[0].Len))]
	copy(u.recv.slots[0][packet.Headroom-u.recv.front:], message)
	u.recv.msgs[0].len = uint32(len(message))
	u.take(b, 0)
	return b.Frames
}

// FuzzPacketTake: what comes out of a frame is what gopacket finds in it, with the checksum that RFC 768 asks for; and a frame that
// gopacket would build itself is taken.
func FuzzPacketTake(f *testing.F) {
	w := map[bool]*wireTest{}
	ports := map[bool]*PacketUnderlay{}
	for name, addrs := range wireSites {
		w[name == "IPv6"] = &wireTest{sites: [2]site{{"", addrs[0]}, {"", addrs[1]}}, macs: [2]packet.MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}}
		ports[name == "IPv6"] = socketless(addrs[1], codec(f, 1))
	}
	random := rand.New(rand.NewPCG(7, 0))
	for v6, wire := range w {
		frame := wire.outerFrame(f, vxlanUDP(f, 200))
		for _, vnet := range []packet.VNet{{}, {Flags: packet.VNetDataValid}, {Flags: packet.VNetNeedsCsum, GSOType: packet.GSOUDPL4, GSOSize: 50, CsumStart: 34},
			{Flags: packet.VNetNeedsCsum, GSOType: packet.GSOTCPv4, GSOSize: 50}} {
			message := make([]byte, packet.VNetLen)
			vnet.Encode(message)
			f.Add(v6, append(message, frame...))
			f.Add(!v6, append(message, frame...))
			for range 10 {
				spoilt := append(slices.Clone(message), frame[:len(frame)-random.IntN(60)]...)
				spoilt[10+random.IntN(60)] ^= 1 << random.IntN(8)
				f.Add(v6, spoilt)
			}
		}
	}
	b := packet.NewBatch(1 << 17)
	f.Fuzz(func(t *testing.T, v6 bool, message []byte) {
		u := ports[v6]
		u.partial.all[0].used = false // at most one fragment is held
		frames := u.feed(b, message)
		if len(message) < packet.VNetLen {
			if len(frames) > 0 {
				t.Fatal("frames of nothing")
			}
			return
		}
		vnet, frame := packet.DecodeVNet(message), message[packet.VNetLen:]
		d, ok := oracle(frame)
		var got []byte
		for _, f := range frames {
			got = append(got, f.Bytes()...)
		}
		if len(frames) > 0 {
			trusted := vnet.Flags&3 != 0
			if !ok || !bytes.Equal(got, d.data) || d.udp.DstPort != wirePort || frames[0].Remote != netip.AddrPortFrom(d.src, uint16(d.udp.SrcPort)) || frames[0].OuterTOS != d.tos {
				t.Fatalf("%x\nis taken as %d frames from %v: %x\nwant %+v", message, len(frames), frames[0].Remote, got, d)
			}
			none := d.udp.Checksum == 0 && d.src.Is4()
			if !trusted && !none && sumUDP(d, d.udp.Contents, d.udp.Payload) != 0xffff {
				t.Fatalf("%x is taken with a wrong checksum", message)
			}
		} else if vnet == (packet.VNet{}) && ok && d.src.Is6() == v6 && d.udp.DstPort == wirePort && isCanonical(frame) {
			t.Fatalf("%x is not taken", message)
		}
	})
}

// oracle is what gopacket finds in a frame; false when that is no UDP.
func oracle(frame []byte) (d decoded, ok bool) {
	defer func() {
		if recover() != nil { // gopacket on hostile input
			ok = false
		}
	}()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		d.src, _ = netip.AddrFromSlice(ip.SrcIP.To4())
		d.dst, _ = netip.AddrFromSlice(ip.DstIP.To4())
		d.tos, d.length = ip.TOS, int(ip.Length)
	case *layers.IPv6:
		d.src, _ = netip.AddrFromSlice(ip.SrcIP)
		d.dst, _ = netip.AddrFromSlice(ip.DstIP)
		d.tos = ip.TrafficClass
	}
	d.udp, ok = p.TransportLayer().(*layers.UDP)
	if ok {
		d.data = d.udp.Payload
	}
	return d, ok
}

// isCanonical says that gopacket would build these very bytes: Ethernet, IP without options or extensions, UDP, data.
func isCanonical(frame []byte) bool {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	eth, _ := p.LinkLayer().(*layers.Ethernet)
	udp, _ := p.TransportLayer().(*layers.UDP)
	ip, ok := p.NetworkLayer().(gopacket.SerializableLayer)
	all := p.Layers()
	if eth == nil || udp == nil || !ok || len(all) < 3 || all[1] != p.NetworkLayer() || all[2] != p.TransportLayer() {
		return false
	}
	if v := p.NetworkLayer().LayerContents()[0] >> 4; v != 4 && v != 6 || (v == 6) != (eth.EthernetType == layers.EthernetTypeIPv6) {
		return false // gopacket takes any
	}
	if v4, ok := ip.(*layers.IPv4); ok && (v4.Flags&layers.IPv4MoreFragments != 0 || v4.FragOffset != 0 || v4.IHL != 5) {
		return false
	}
	udp.SetNetworkLayerForChecksum(p.NetworkLayer())
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, udp, gopacket.Payload(udp.Payload))
	return err == nil && bytes.Equal(buf.Bytes(), frame)
}
