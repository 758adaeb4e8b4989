package packet_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// oracle is what gopacket makes of a frame with an IP packet.
type oracle struct {
	Src, Dst            netip.Addr
	Proto, TOS, TTL     uint8
	HeaderLen, TotalLen int
	Fragment            bool
	FragmentID          uint32
	FragmentOffset      int
	FragmentLen         int // of the data
	MoreFragments       bool
	L4HeaderLen         int // 0 where there is none whole
	SPort, DPort        uint16
	DstMAC, SrcMAC      string
	truncated           bool
	quoted              bool // the end of the packet may be missing
}

// SetTruncated implements gopacket.DecodeFeedback.
func (o *oracle) SetTruncated() { o.truncated = true }

var (
	errNotIP     = errors.New("not IP")
	errExtension = errors.New("extension chain")
	errTiny      = errors.New("tiny fragment")
)

// decode asks gopacket, whose decoders may panic. The error says why the frame is no sound
// IP packet; unsound options are none of the engine's business.
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
	o.DstMAC, o.SrcMAC = eth.DstMAC.String(), eth.SrcMAC.String()
	switch eth.EthernetType {
	case layers.EthernetTypeIPv4:
		return o, o.decodeIPv4(eth.Payload)
	case layers.EthernetTypeIPv6:
		return o, o.decodeIPv6(eth.Payload)
	}
	return o, errNotIP
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
	o.Proto, o.TOS, o.TTL = uint8(ip.Protocol), ip.TOS, ip.TTL
	o.HeaderLen, o.TotalLen = len(ip.Contents), int(ip.Length)
	o.FragmentID, o.FragmentOffset, o.MoreFragments = uint32(ip.Id), int(ip.FragOffset)*8, ip.Flags&layers.IPv4MoreFragments != 0
	if o.Fragment = o.MoreFragments || ip.FragOffset != 0; o.Fragment {
		o.FragmentLen = o.TotalLen - o.HeaderLen
		return o.checkFragment(o.HeaderLen, ip.Payload[:o.FragmentLen])
	}
	o.FragmentID = 0
	o.decodeL4(ip.Payload)
	return nil
}

// decodeIPv6 leaves the options of the hop-by-hop header alone, which gopacket would decode with the fixed header.
func (o *oracle) decodeIPv6(data []byte) error {
	if len(data) < 40 {
		return errors.New("short")
	}
	fixed, next := append([]byte(nil), data...), data[6]
	fixed[6] = 59
	var ip layers.IPv6
	ip.DecodeFromBytes(fixed, o) // the only error left is a length of 0
	switch {
	case ip.Version != 6:
		return errors.New("version")
	case ip.Length == 0 && next != 59:
		return errors.New("jumbogram")
	case 40+int(ip.Length) > len(data):
		return errors.New("truncated")
	}
	o.Src, _ = netip.AddrFromSlice(ip.SrcIP)
	o.Dst, _ = netip.AddrFromSlice(ip.DstIP)
	o.TOS, o.TTL, o.TotalLen = ip.TrafficClass, ip.HopLimit, 40+int(ip.Length)
	l4, err := o.walk(next, data[40:o.TotalLen])
	if err != nil {
		return err
	}
	if o.HeaderLen = o.TotalLen - len(l4); o.Fragment {
		return o.checkFragment(0, l4)
	}
	o.decodeL4(l4)
	return nil
}

// walk follows the extension chain through rest and returns what is behind it.
func (o *oracle) walk(next uint8, rest []byte) (l4 []byte, err error) {
	all, fragmented := rest, false
	for n := 0; (next == 0 || next == 43 || next == 44 || next == 60) && o.FragmentOffset == 0; n++ {
		if next == 0 && n > 0 {
			return nil, errExtension
		}
		contents, err := o.extension(next, rest)
		if err != nil {
			return nil, err
		}
		rest = rest[len(contents):]
		switch used := len(all) - len(rest); {
		case next == 43 && (contents[2] == 0 || contents[3] != 0), next == 44 && fragmented:
			return nil, errExtension
		case next == 44 && !o.quoted && o.checkFragment(used-8, nil) == errImpossible:
			return nil, errExtension
		case n == 8 || used > 256:
			return nil, errExtension
		}
		fragmented = fragmented || next == 44
		next = contents[0]
	}
	o.Proto = next
	return rest, nil
}

// extension decodes the header at the front of rest, and the fragment fields with it.
func (o *oracle) extension(proto uint8, rest []byte) (contents []byte, err error) {
	cut := errExtension
	if o.MoreFragments {
		cut = errTiny
	}
	if proto != 44 {
		var ext layers.IPv6ExtensionSkipper
		if ext.DecodeFromBytes(rest, o) != nil {
			return nil, cut
		}
		return ext.Contents, nil
	}
	p := gopacket.NewPacket(rest, layers.LayerTypeIPv6Fragment, gopacket.NoCopy)
	fragment, ok := p.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment)
	if !ok {
		return nil, cut
	}
	if more, offset := fragment.MoreFragments, int(fragment.FragmentOffset)*8; !o.Fragment && (more || offset > 0) {
		o.Fragment, o.FragmentID, o.FragmentOffset, o.MoreFragments = true, fragment.Identification, offset, more
		o.FragmentLen = len(fragment.Payload)
	}
	return fragment.Contents, nil
}

// checkFragment holds a fragment with so many bytes counted before its data against RFC 791, RFC 1858, RFC 3128 and
// RFC 7112.
func (o *oracle) checkFragment(before int, l4 []byte) error {
	tcp := o.Proto == packet.ProtoTCP
	switch {
	case o.MoreFragments && o.FragmentLen%8 != 0, before+o.FragmentOffset+o.FragmentLen > 65535:
		return errImpossible
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

var errImpossible = errors.New("fragment that no datagram has")

// icmp is the number of the ICMP that belongs to the packet's family.
func (o *oracle) icmp() uint8 {
	if o.Src.Is4() {
		return packet.ProtoICMP
	}
	return packet.ProtoICMPv6
}

func (o *oracle) decodeL4(data []byte) {
	switch o.Proto {
	case packet.ProtoTCP:
		var tcp layers.TCP
		tcp.DecodeFromBytes(data, o)
		if n := int(tcp.DataOffset) * 4; n >= 20 && n <= len(data) {
			o.L4HeaderLen = n
		}
		o.SPort, o.DPort = uint16(tcp.SrcPort), uint16(tcp.DstPort)
	case packet.ProtoUDP:
		var udp layers.UDP
		udp.DecodeFromBytes(data, o)
		o.L4HeaderLen = len(udp.Contents)
		o.SPort, o.DPort = uint16(udp.SrcPort), uint16(udp.DstPort)
	case o.icmp():
		o.SPort = o.echoID(data)
		o.DPort = o.SPort
	}
}

// echoID is the identifier of an echo request or reply, 0 without one.
func (o *oracle) echoID(data []byte) uint16 {
	if o.Src.Is4() {
		var icmp layers.ICMPv4
		if icmp.DecodeFromBytes(data, o); icmp.TypeCode.Type() != 0 && icmp.TypeCode.Type() != 8 {
			return 0
		}
		return icmp.Id
	}
	var icmp layers.ICMPv6
	var echo layers.ICMPv6Echo
	if icmp.DecodeFromBytes(data, o) != nil || icmp.TypeCode.Type() != 128 && icmp.TypeCode.Type() != 129 {
		return 0
	}
	echo.DecodeFromBytes(icmp.Payload, o)
	return echo.Identifier
}

// checkAgainstOracle holds a frame that Parse accepted as IP against gopacket's view of
// the same bytes. It reuses the batch for the frame of the other direction.
func checkAgainstOracle(t *testing.T, b *packet.Batch, f *packet.Frame, data []byte) {
	t.Helper()
	o, err := decode(data)
	if err != nil {
		t.Fatalf("Parse accepts %x, the oracle says: %v", data, err)
	}
	o.truncated = false // says only that an option or an L4 header is cut
	got := oracle{
		Src: f.Src, Dst: f.Dst, Proto: f.Proto, TOS: f.TOS(), TTL: f.TTL(), HeaderLen: f.L4 - f.L3,
		TotalLen: f.Start() + f.Len() - f.L3, Fragment: f.Fragment, L4HeaderLen: f.Payload - f.L4,
		DstMAC: f.DstMAC().String(), SrcMAC: f.SrcMAC().String(),
		FragmentID: f.FragmentID, FragmentOffset: f.FragmentOffset, MoreFragments: f.MoreFragments,
	}
	if got.SPort, got.DPort = f.Ports(); f.Fragment {
		got.FragmentLen = len(f.FragmentData())
		o.SPort, o.DPort = got.SPort, got.DPort // TestPortsOfFragments
	} else if f.Payload == f.L4 && f.Proto != o.icmp() {
		o.SPort, o.DPort = 0, 0 // of a header that is cut
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
	if o.Src.Is4() {
		swap(packet.EthernetLen+12, 4)
	} else {
		swap(packet.EthernetLen+8, 16)
	}
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
		_, v := checkPeek(t, frame)
		if v == packet.None && frame.EtherType != packet.EtherTypeARP {
			checkAgainstOracle(t, b, frame, data)
			return
		}
		checkRefusal(t, frame, v, data)
	})
}

func checkRefusal(t *testing.T, f *packet.Frame, v packet.Verdict, data []byte) {
	o, err := decode(data)
	tiny, extension := errors.Is(err, errTiny), errors.Is(err, errExtension)
	if err == nil || tiny != (v == packet.DropFragmentTiny) || extension != (v == packet.DropExtension) {
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
