package packet_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// oracle is what gopacket makes of an Ethernet frame with an IPv4 packet.
type oracle struct {
	Src, Dst            netip.Addr
	Proto, TOS          uint8
	HeaderLen, TotalLen int
	Fragment            bool
	FragmentID          uint32
	FragmentOffset      int
	FragmentLen         int // of the data
	MoreFragments       bool
	L4HeaderLen         int // 0 where there is none whole
	DstMAC, SrcMAC      string
	truncated           bool
}

// SetTruncated implements gopacket.DecodeFeedback.
func (o *oracle) SetTruncated() { o.truncated = true }

var errNotIPv4 = errors.New("not IPv4")

// decode asks gopacket, whose decoders may panic. The error says why the frame is no sound
// IPv4 packet; unsound options are none of the engine's business.
func decode(data []byte) (o oracle, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("gopacket panicked: %v", p)
		}
	}()
	var eth layers.Ethernet
	if err := eth.DecodeFromBytes(data, &o); err != nil {
		return o, err
	}
	if eth.EthernetType != layers.EthernetTypeIPv4 {
		return o, errNotIPv4
	}
	o.DstMAC, o.SrcMAC = eth.DstMAC.String(), eth.SrcMAC.String()
	return o, o.decodeIPv4(eth.Payload)
}

func (o *oracle) decodeIPv4(data []byte) error {
	if len(data) < 20 || data[2] == 0 && data[3] == 0 { // gopacket takes 0 for an unfinished TSO packet
		return errors.New("short, or total length 0")
	}
	var ip layers.IPv4
	optErr := ip.DecodeFromBytes(data, o)
	switch {
	case int(ip.Length) > len(data):
		return errors.New("truncated")
	case ip.Version != 4:
		return errors.New("version")
	case len(ip.Contents) != int(ip.IHL)*4 || ip.IHL < 5 || int(ip.Length) < int(ip.IHL)*4:
		return fmt.Errorf("header: %w", optErr)
	case naiveSum(ip.Contents) != 0xffff:
		return errors.New("header checksum")
	}
	o.Src, _ = netip.AddrFromSlice(ip.SrcIP)
	o.Dst, _ = netip.AddrFromSlice(ip.DstIP)
	o.Proto, o.TOS = uint8(ip.Protocol), ip.TOS
	o.HeaderLen, o.TotalLen = len(ip.Contents), int(ip.Length)
	o.FragmentID, o.FragmentOffset, o.MoreFragments = uint32(ip.Id), int(ip.FragOffset)*8, ip.Flags&layers.IPv4MoreFragments != 0
	if o.Fragment = o.MoreFragments || ip.FragOffset != 0; o.Fragment {
		o.FragmentLen = o.TotalLen - o.HeaderLen
		return o.checkFragment(o.HeaderLen, ip.Payload[:o.FragmentLen])
	}
	o.FragmentID = 0
	o.decodeL4(ip.Protocol, ip.Payload)
	return nil
}

// checkFragment holds a fragment with so many bytes counted before its data against RFC 791, RFC 1858, RFC 3128 and
// RFC 7112.
func (o *oracle) checkFragment(before int, l4 []byte) error {
	tcp := o.Proto == packet.ProtoTCP
	switch {
	case o.MoreFragments && o.FragmentLen%8 != 0, before+o.FragmentOffset+o.FragmentLen > 65535:
		return errors.New("fragment impossible")
	case tcp && o.FragmentOffset > 0 && o.FragmentOffset < 20:
		return errTiny
	case o.FragmentOffset > 0:
		return nil
	case tcp && (len(l4) < 20 || len(l4) < int(l4[12]>>4)*4):
		return errTiny
	case (o.Proto == packet.ProtoUDP || o.Proto == o.icmp()) && len(l4) < 8:
		return errTiny
	}
	return nil
}

var errTiny = errors.New("tiny fragment")

// icmp is the number of the ICMP that belongs to the packet's family.
func (o *oracle) icmp() uint8 {
	if o.Src.Is4() {
		return packet.ProtoICMP
	}
	return packet.ProtoICMPv6
}

func (o *oracle) decodeL4(proto layers.IPProtocol, data []byte) {
	switch proto {
	case layers.IPProtocolTCP:
		var tcp layers.TCP
		tcp.DecodeFromBytes(data, o)
		if n := int(tcp.DataOffset) * 4; n >= 20 && n <= len(data) {
			o.L4HeaderLen = n
		}
	case layers.IPProtocolUDP:
		var udp layers.UDP
		udp.DecodeFromBytes(data, o)
		o.L4HeaderLen = len(udp.Contents)
	}
}

// checkAgainstOracle holds a frame that Parse accepted as IPv4 against gopacket's view of
// the same bytes. It reuses the batch for the frame of the other direction.
func checkAgainstOracle(t *testing.T, b *packet.Batch, f *packet.Frame, data []byte) {
	t.Helper()
	o, err := decode(data)
	if err != nil {
		t.Fatalf("Parse accepts %x, the oracle says: %v", data, err)
	}
	o.truncated = false // says only that an option or an L4 header is cut
	got := oracle{
		Src: f.Src, Dst: f.Dst, Proto: f.Proto, TOS: f.TOS(), HeaderLen: f.L4 - f.L3,
		TotalLen: f.Start() + f.Len() - f.L3, Fragment: f.Fragment, L4HeaderLen: f.Payload - f.L4,
		DstMAC: f.DstMAC().String(), SrcMAC: f.SrcMAC().String(),
		FragmentID: f.FragmentID, FragmentOffset: f.FragmentOffset, MoreFragments: f.MoreFragments,
	}
	if f.Fragment {
		got.FragmentLen = len(f.FragmentData())
	}
	if got != o {
		t.Fatalf("%x:\nParse  %+v\noracle %+v", data, got, o)
	}
	if f.L2 != f.Start() || f.L3 != f.L2+packet.EthernetLen || f.Payload > f.Start()+f.Len() || f.Segments != 1 {
		t.Fatalf("%x: offsets %d %d %d %d of frame %d+%d, segments %d", data, f.L2, f.L3, f.L4, f.Payload, f.Start(), f.Len(), f.Segments)
	}
	hash := f.Hash
	if back := parsed(t, b, reversed(data, o)); back.Hash != hash {
		t.Fatalf("%x: hash %#x, of the other direction %#x", data, hash, back.Hash)
	}
}

// reversed is the frame with addresses and ports swapped, and so with the same checksums.
func reversed(data []byte, o oracle) []byte {
	d := append([]byte(nil), data...)
	swap := func(at, n int) {
		copy(d[at:], data[at+n:at+2*n])
		copy(d[at+n:], data[at:at+n])
	}
	swap(packet.EthernetLen+12, 4)
	if o.L4HeaderLen > 0 {
		swap(packet.EthernetLen+o.HeaderLen, 2)
	}
	return d
}

// spoilRandomly returns n bytes that are a packet of another length, a cut one, an ARP, noise.
func spoilRandomly(r *rand.Rand, data []byte, n int) []byte {
	out := make([]byte, n)
	copy(out, data)
	switch r.IntN(5) {
	case 0:
		out[12], out[13] = 0x08, 0x06
	case 1:
		out[12] = byte(r.Uint32())
	case 2:
		out[14+r.IntN(20)] ^= 1 << r.IntN(8)
	}
	return out
}

// FuzzParse: Parse accepts exactly the frames that the oracle finds sound, and reads from
// them what the oracle reads.
func FuzzParse(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 0))
	for range 20 {
		f.Add(randomStack(r, 40).bytes(f))
	}
	f.Add(append([]byte(nil), arpRequestBytes...))
	b := packet.NewBatch(0)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > packet.MaxFrame {
			return
		}
		frame := load(b, data)
		v := frame.Parse()
		if v == packet.None && frame.EtherType == packet.EtherTypeIPv4 {
			checkAgainstOracle(t, b, frame, data)
			return
		}
		checkRefusal(t, frame, v, data)
	})
}

func checkRefusal(t *testing.T, f *packet.Frame, v packet.Verdict, data []byte) {
	o, err := decode(data)
	if err == nil || errors.Is(err, errTiny) != (v == packet.DropFragmentTiny) {
		t.Fatalf("%x: verdict %v, but the oracle reads %+v: %v", data, v, o, err)
	}
	if v == packet.DropFragmentTiny {
		return // which flow it belongs to is known
	}
	isARP := len(data) >= packet.EthernetLen && data[12] == 8 && data[13] == 6
	if (v == packet.None) != isARP {
		t.Fatalf("%x: verdict %v", data, v)
	}
	want := parseResult{Verdict: v, L2: f.L2, L3: f.L3, EtherType: f.EtherType, Segments: 1, Len: len(data)}
	if diff := cmp.Diff(want, parse(f), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatalf("%x: fields that do not apply (-want +got):\n%s", data, diff)
	}
}
