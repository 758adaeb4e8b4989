package packet_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// arpRequestBytes is a request as Linux sends it: 10.1.0.1 asks for 10.2.0.9.
var arpRequestBytes = []byte{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0x01, 0x08, 0x06,
	0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01,
	0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0x01, 10, 1, 0, 1,
	0, 0, 0, 0, 0, 0, 10, 2, 0, 9,
}

func TestAnswerARP(t *testing.T) {
	for _, padding := range []int{0, 18} {
		f := parsed(t, packet.NewBatch(0), append(append([]byte(nil), arpRequestBytes...), make([]byte, padding)...))
		f.VNet = packet.VNet{Flags: 2}
		target, sender, ok := f.ARPTarget()
		if !ok || target != netip.MustParseAddr("10.2.0.9") || sender != netip.MustParseAddr("10.1.0.1") {
			t.Fatalf("ARPTarget = %v, %v, %v", target, sender, ok)
		}
		f.AnswerARP(packet.MAC{2, 1, 2, 3, 4, 5})
		checkARPReply(t, f)
		if _, _, ok := f.ARPTarget(); ok {
			t.Error("the reply is taken for a request")
		}
	}
}

func checkARPReply(t *testing.T, f *packet.Frame) {
	t.Helper()
	p := gopacket.NewPacket(f.Bytes(), layers.LayerTypeEthernet, gopacket.Default)
	eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	arp, _ := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if eth == nil || arp == nil {
		t.Fatalf("gopacket finds no ARP in %x", f.Bytes())
	}
	if eth.DstMAC.String() != "02:aa:bb:cc:dd:01" || eth.SrcMAC.String() != "02:01:02:03:04:05" {
		t.Errorf("Ethernet header %v -> %v", eth.SrcMAC, eth.DstMAC)
	}
	if arp.Operation != layers.ARPReply || arp.AddrType != 1 || arp.Protocol != 0x0800 || arp.HwAddressSize != 6 || arp.ProtAddressSize != 4 {
		t.Errorf("fixed fields %+v", arp)
	}
	if net.HardwareAddr(arp.SourceHwAddress).String() != "02:01:02:03:04:05" || net.IP(arp.SourceProtAddress).String() != "10.2.0.9" {
		t.Errorf("sender %x at %v", arp.SourceHwAddress, net.IP(arp.SourceProtAddress))
	}
	if net.HardwareAddr(arp.DstHwAddress).String() != "02:aa:bb:cc:dd:01" || net.IP(arp.DstProtAddress).String() != "10.1.0.1" {
		t.Errorf("target %x at %v", arp.DstHwAddress, net.IP(arp.DstProtAddress))
	}
	if f.VNet != (packet.VNet{}) {
		t.Errorf("the reply carries offload metadata %+v", f.VNet)
	}
}

func TestARPTargetRefuses(t *testing.T) {
	b := packet.NewBatch(0)
	for at := packet.EthernetLen; at < packet.EthernetLen+8; at++ { // every bit of the fixed fields
		for bit := range 8 {
			data := append([]byte(nil), arpRequestBytes...)
			data[at] ^= 1 << bit
			if _, _, ok := parsed(t, b, data).ARPTarget(); ok {
				t.Errorf("byte %d, bit %d turned over: still a request", at, bit)
			}
		}
	}
	for n := packet.EthernetLen; n < len(arpRequestBytes); n++ {
		if target, sender, ok := parsed(t, b, arpRequestBytes[:n]).ARPTarget(); ok || target.IsValid() || sender.IsValid() {
			t.Errorf("cut to %d bytes: %v, %v, %v", n, target, sender, ok)
		}
	}
}

func TestARPProbe(t *testing.T) {
	data := append([]byte(nil), arpRequestBytes...)
	copy(data[28:32], []byte{0, 0, 0, 0})
	if _, sender, ok := parsed(t, packet.NewBatch(0), data).ARPTarget(); !ok || !sender.IsUnspecified() {
		t.Errorf("probe (RFC 5227): sender %v, %v", sender, ok)
	}
}
