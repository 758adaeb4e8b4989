package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func codec(t testing.TB, vni uint32) *VXLAN {
	t.Helper()
	v, err := NewVXLAN(vni)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func load(b *packet.Batch, data []byte) *packet.Frame {
	b.Reset()
	return appendFrame(b, data)
}

func appendFrame(b *packet.Batch, data []byte) *packet.Frame {
	end := packet.Headroom + len(data)
	slot := b.Slot(len(data))
	copy(slot[packet.Headroom:], data)
	b.Claim(end)
	return b.Append(slot, packet.Headroom, end)
}

// The header by hand, from RFC 7348 section 5: flags RRRRIRRR, 24 reserved bits, 24 bits
// of VNI, 8 reserved bits.
func TestEncapBytes(t *testing.T) {
	inner := []byte("an Ethernet frame")
	tests := []struct {
		vni  uint32
		want []byte
	}{
		{1, []byte{0x08, 0, 0, 0, 0, 0, 1, 0}}, // flannel's default
		{0, []byte{0x08, 0, 0, 0, 0, 0, 0, 0}},
		{0x123456, []byte{0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0}},
		{MaxVNI, []byte{0x08, 0, 0, 0, 0xff, 0xff, 0xff, 0}},
	}
	for _, tt := range tests {
		f := load(packet.NewBatch(0), inner)
		if v := codec(t, tt.vni).Encap(f); v != packet.None {
			t.Fatalf("VNI %d: %v", tt.vni, v)
		}
		if got := f.Bytes(); !bytes.Equal(got[:8], tt.want) || !bytes.Equal(got[8:], inner) {
			t.Errorf("VNI %d: %x, want %x before the frame", tt.vni, got, tt.want)
		}
	}
	if _, err := NewVXLAN(MaxVNI + 1); err == nil {
		t.Error("a VNI of 25 bits is accepted")
	}
	if got := codec(t, 1).Overhead(true); got != 40+8+8+14 {
		t.Errorf("overhead over IPv6 %d, want 70", got)
	}
	if got := codec(t, 1).Overhead(false); got != 20+8+8+14 {
		t.Errorf("overhead %d, want 50", got)
	}
}

func TestEncapAgreesWithGopacket(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 0))
	b := packet.NewBatch(0)
	for range 1000 {
		vni, inner := r.Uint32N(MaxVNI+1), []byte("payload of fourteen bytes or more")
		buf := gopacket.NewSerializeBuffer()
		header := &layers.VXLAN{ValidIDFlag: true, VNI: vni}
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{}, header, gopacket.Payload(inner)); err != nil {
			t.Fatal(err)
		}
		f := load(b, inner)
		codec(t, vni).Encap(f)
		if !bytes.Equal(f.Bytes(), buf.Bytes()) {
			t.Fatalf("VNI %d: %x, gopacket writes %x", vni, f.Bytes(), buf.Bytes())
		}
		if v := codec(t, vni).Decap(f); v != packet.None || !bytes.Equal(f.Bytes(), inner) {
			t.Fatalf("VNI %d: back: %v, %q", vni, v, f.Bytes())
		}
	}
}

func TestEncapWithoutHeadroom(t *testing.T) {
	f := load(packet.NewBatch(0), []byte("frame"))
	f.Prepend(packet.Headroom - 7)
	if v := codec(t, 1).Encap(f); v != packet.DropFrameTruncated {
		t.Errorf("7 bytes of headroom: %v", v)
	}
}

// The 64 header bits one by one: 24 are the VNI, one is the I flag, 39 are reserved.
func TestDecapEveryBit(t *testing.T) {
	b := packet.NewBatch(0)
	datagram := append([]byte{0x08, 0, 0, 0, 0xa5, 0x5a, 0x3c, 0}, make([]byte, 60)...)
	count := map[packet.Verdict]int{}
	for bit := range 64 {
		spoiled := bytes.Clone(datagram)
		spoiled[bit/8] ^= 0x80 >> (bit % 8)
		want := packet.DropVXLANFlags
		if bit/8 >= 4 && bit/8 < 7 {
			want = packet.DropVNI
		}
		f := load(b, spoiled)
		v := codec(t, 0xa55a3c).Decap(f)
		if v != want || f.Len() != len(spoiled) {
			t.Errorf("bit %d turned over: %v, %d bytes; want %v", bit, v, f.Len(), want)
		}
		count[v]++
	}
	if count[packet.DropVXLANFlags] != 40 || count[packet.DropVNI] != 24 {
		t.Errorf("verdicts %v", count)
	}
	if v := codec(t, 0xa55a3c).Decap(load(b, datagram)); v != packet.None {
		t.Errorf("nothing turned over: %v", v)
	}
}

func TestDecapTruncated(t *testing.T) {
	b := packet.NewBatch(0)
	datagram := append([]byte{0x08, 0, 0, 0, 0, 0, 1, 0}, make([]byte, 14)...)
	for n := range datagram {
		f := load(b, datagram[:n])
		if v := codec(t, 1).Decap(f); v != packet.DropVXLANTruncated || f.Len() != n {
			t.Errorf("%d bytes: %v, %d left", n, v, f.Len())
		}
		if got := codec(t, 1).DatagramLen(datagram[:n]); got != 0 {
			t.Errorf("%d bytes claim %d", n, got)
		}
	}
	if v := codec(t, 1).Decap(load(b, datagram)); v != packet.None {
		t.Errorf("an Ethernet header and nothing else: %v", v)
	}
}

func TestDatagramLen(t *testing.T) {
	v := codec(t, 1)
	tests := map[string]struct {
		framing  Framing
		datagram []byte
		known    int // bytes that the length can be read from
	}{
		"VXLAN, IPv4": {v, vxlanUDP(t, 100), 8 + 14 + 6},
		"VXLAN, IPv6": {v, append([]byte{0x08, 0, 0, 0, 0, 0, 1, 0}, ipv6UDP(t, 100)...), 8 + 14 + 6},
		"plain UDP":   {PlainUDP{}, flow{1, 2}.udp(t, pattern(100))[14:], 4},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.framing.DatagramLen(append(bytes.Clone(tt.datagram), 0, 0, 0)); got != len(tt.datagram) {
				t.Errorf("DatagramLen with trailer = %d of %d", got, len(tt.datagram))
			}
			for n := range len(tt.datagram) + 1 { // as much as there is of it names the length, or nothing does
				want := len(tt.datagram)
				if n < tt.known {
					want = 0
				}
				if got := tt.framing.DatagramLen(tt.datagram[:n:n]); got != want {
					t.Errorf("DatagramLen of the first %d bytes = %d, want %d", n, got, want)
				}
			}
		})
	}
	arp := vxlanUDP(t, 100)
	arp[8+13] = 0x06
	if got := v.DatagramLen(arp); got != 0 {
		t.Errorf("DatagramLen of ARP = %d", got)
	}
	if got := (PlainUDP{}).DatagramLen(ipv6UDP(t, 100)[14:]); got != 0 {
		t.Errorf("DatagramLen of bare IPv6 = %d", got)
	}
}

// vxlanUDP is an encapsulated UDP packet with n bytes of data.
func vxlanUDP(t testing.TB, n int) []byte {
	t.Helper()
	f := load(packet.NewBatch(0), flow{1, 2}.udp(t, pattern(n)))
	codec(t, 1).Encap(f)
	return bytes.Clone(f.Bytes())
}

// FuzzVXLAN: Decap takes back what Encap put on, and takes off exactly what gopacket reads
// as a plain VXLAN header of this network.
func FuzzVXLAN(f *testing.F) {
	f.Add(uint32(1), []byte{0x08, 0, 0, 0, 0, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14})
	f.Add(uint32(0xffffff), append([]byte{0x88, 0x40, 1, 2, 0xff, 0xff, 0xff, 9}, make([]byte, 20)...))
	b := packet.NewBatch(0)
	f.Fuzz(func(t *testing.T, vni uint32, data []byte) {
		v := codec(t, vni&MaxVNI)
		if len(data) > packet.MaxFrame {
			return
		}
		frame := load(b, data)
		if verdict := v.Decap(frame); (verdict == packet.None) != plainVXLAN(data, vni&MaxVNI) {
			t.Fatalf("VNI %d, %x: %v", vni&MaxVNI, data, verdict)
		} else if verdict == packet.None && !bytes.Equal(frame.Bytes(), data[8:]) {
			t.Fatalf("%x: payload %x", data, frame.Bytes())
		}
		frame = load(b, data)
		if verdict := v.Encap(frame); verdict != packet.None || !plainVXLAN(frame.Bytes(), vni&MaxVNI) && len(data) >= 14 {
			t.Fatalf("Encap(%x) = %v: %x", data, verdict, frame.Bytes())
		}
		if verdict := v.Decap(frame); (verdict == packet.None) != (len(data) >= 14) || verdict == packet.None && !bytes.Equal(frame.Bytes(), data) {
			t.Fatalf("Decap(Encap(%x)) = %v: %x", data, verdict, frame.Bytes())
		}
	})
}

// plainVXLAN is gopacket's view, and what gopacket reads over: bits that no extension it
// knows has claimed.
func plainVXLAN(data []byte, vni uint32) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	var vx layers.VXLAN
	if vx.DecodeFromBytes(data, gopacket.NilDecodeFeedback) != nil || len(vx.Payload) < 14 {
		return false
	}
	extended := vx.GBPExtension || vx.GBPApplied || vx.GBPDontLearn || vx.GBPGroupPolicyID != 0
	unread := binary.BigEndian.Uint64(data) & 0x773f_0000_0000_00ff
	return vx.ValidIDFlag && vx.VNI == vni && !extended && unread == 0
}
