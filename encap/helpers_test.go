package encap

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// flow is the pair of ports of an inner flow between 10.1.0.2 and 10.2.0.2.
type flow struct{ src, dst uint16 }

func (fl flow) udp(t testing.TB, payload []byte) []byte {
	udp := &layers.UDP{SrcPort: layers.UDPPort(fl.src), DstPort: layers.UDPPort(fl.dst)}
	return serialize(t, layers.IPProtocolUDP, udp, payload)
}

func (fl flow) tcp(t testing.TB, payload []byte) []byte {
	tcp := &layers.TCP{SrcPort: layers.TCPPort(fl.src), DstPort: layers.TCPPort(fl.dst), ACK: true, PSH: true, Window: 1000, Seq: 0xffff0000}
	return serialize(t, layers.IPProtocolTCP, tcp, payload)
}

type l4Layer interface {
	gopacket.SerializableLayer
	SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
}

// longHeaders is a TCP packet with as many options as IPv4 and TCP can have: 134 bytes of headers.
func (fl flow) longHeaders(t testing.TB, payload []byte) []byte {
	option := make([]byte, 38)
	tcp := &layers.TCP{SrcPort: layers.TCPPort(fl.src), DstPort: layers.TCPPort(fl.dst), ACK: true}
	tcp.Options = []layers.TCPOption{{OptionType: 253, OptionLength: 40, OptionData: option}}
	return serialize(t, layers.IPProtocolTCP, tcp, payload, layers.IPv4Option{OptionType: 0x9e, OptionLength: 40, OptionData: option})
}

func serialize(t testing.TB, proto layers.IPProtocol, l4 l4Layer, payload []byte, options ...layers.IPv4Option) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: []byte{10, 1, 0, 2}, DstIP: []byte{10, 2, 0, 2}, Options: options}
	l4.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, eth, ip, l4, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()[:packet.EthernetLen+int(ip.Length)]
}

// ipv6UDP is an Ethernet frame with n bytes of UDP data over IPv6.
func ipv6UDP(t testing.TB, n int) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv6}
	ip := &layers.IPv6{Version: 6, FlowLabel: 0x12345, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("fd00:1::2"), DstIP: net.ParseIP("fd00:2::2")}
	udp := &layers.UDP{SrcPort: 1, DstPort: 2}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, eth, ip, udp, gopacket.Payload(pattern(n))); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// pattern is n bytes that repeat only after a long while.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// outgoing appends an encapsulated frame to the batch, a super-packet if gsoSize is not 0.
func outgoing(t testing.TB, b *packet.Batch, data []byte, gsoSize int, to netip.AddrPort) *packet.Frame {
	t.Helper()
	f := parsed(t, b, data, gsoSize)
	f.Remote = to
	if v := codec(t, 1).Encap(f); v != packet.None {
		t.Fatalf("Encap: %v", v)
	}
	return f
}

// outgoingPlain does the same with flannel's udp codec.
func outgoingPlain(t testing.TB, b *packet.Batch, data []byte, gsoSize int, to netip.AddrPort) *packet.Frame {
	t.Helper()
	f := parsed(t, b, data, gsoSize)
	f.Remote = to
	if v := (PlainUDP{}).Encap(f); v != packet.None {
		t.Fatalf("Encap: %v", v)
	}
	return f
}

func parsed(t testing.TB, b *packet.Batch, data []byte, gsoSize int) *packet.Frame {
	t.Helper()
	f := appendFrame(b, data)
	if gsoSize > 0 {
		f.VNet.GSOSize, f.VNet.GSOType = uint16(gsoSize), packet.GSOUDPL4
		if data[23] == packet.ProtoTCP {
			f.VNet.GSOType = packet.GSOTCPv4
		}
	}
	if v := f.Parse(); v != packet.None {
		t.Fatalf("Parse: %v", v)
	}
	return f
}

// wire is what should leave of a frame: one byte slice for each datagram.
func wire(f *packet.Frame) [][]byte {
	if f.VNet.GSOType == packet.GSONone {
		return [][]byte{bytes.Clone(f.Bytes())}
	}
	var all [][]byte
	for cut := packet.NewSegmenter(f); ; {
		header := make([]byte, cut.HeaderLen())
		payload, ok := cut.Next(header)
		if !ok {
			return all
		}
		all = append(all, append(header, payload...))
	}
}

func wireOf(b *packet.Batch) (all [][]byte) {
	for _, f := range b.Frames {
		all = append(all, wire(f)...)
	}
	return all
}

func open(t testing.TB, address string) *Underlay { return openGroup(t, address, 1)[0] }

func openGroup(t testing.TB, address string, n int) []*Underlay {
	t.Helper()
	return openConfig(t, Config{Local: netip.MustParseAddrPort(address), Framing: codec(t, 1), Workers: n})
}

func openConfig(t testing.TB, c Config) []*Underlay {
	t.Helper()
	all, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, u := range all {
			if err := u.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	return all
}

// A loopback is where two underlays can meet.
type loopback struct{ a, b netip.Addr }

var (
	loopback4 = loopback{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.AddrFrom4([4]byte{127, 0, 0, 2})}
	loopback6 = loopback{netip.IPv6Loopback(), netip.IPv6Loopback()}
)

// inBothFamilies runs a test over IPv4 and over IPv6.
func inBothFamilies(t *testing.T, test func(*testing.T, loopback)) {
	t.Run("IPv4", func(t *testing.T) { test(t, loopback4) })
	t.Run("IPv6", func(t *testing.T) { test(t, loopback6) })
}

func (lo loopback) pair(t testing.TB) (a, b *Underlay, to netip.AddrPort) {
	t.Helper()
	return lo.pairOf(t, Config{Framing: codec(t, 1)})
}

func (lo loopback) pairOf(t testing.TB, c Config) (a, b *Underlay, to netip.AddrPort) {
	t.Helper()
	c.Local = netip.AddrPortFrom(lo.a, 0)
	a = openConfig(t, c)[0]
	c.Local = netip.AddrPortFrom(lo.b, 0)
	b = openConfig(t, c)[0]
	return a, b, boundTo(t, b.receiver)
}

func boundTo(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	t.Fatalf("bound to %v", sa)
	return netip.AddrPort{}
}

// datagram is a received frame, copied.
type datagram struct {
	data   []byte
	remote netip.AddrPort
	tos    uint8
	hint   int
}

// A port is an underlay of either kind.
type port interface {
	Read(*packet.Batch) (int, error)
	Write(*packet.Batch) error
	FD() int
	Offloads() []string
	Fallbacks() uint64
	QueueDepth() (bytes, drops uint64, err error)
}

// receive reads until want frames are there, or fails after a second without one.
func receive(t rapid.TB, u port, b *packet.Batch, want int) (all []datagram) {
	t.Helper()
	for len(all) < want {
		wait(t, u.FD(), len(all), want)
		b.Reset()
		n, err := u.Read(b)
		if err != nil || n != len(b.Frames) {
			t.Fatalf("Read = %d, %v with %d frames", n, err, len(b.Frames))
		}
		for _, f := range b.Frames {
			if f.Truncated {
				t.Fatal("a frame is truncated")
			}
			all = append(all, datagram{bytes.Clone(f.Bytes()), f.Remote, f.OuterTOS, f.SegmentHint})
		}
	}
	b.Reset()
	if n, err := u.Read(b); n != 0 || err != nil {
		t.Fatalf("after %d frames: Read = %d, %v", want, n, err)
	}
	return all
}

func wait(t rapid.TB, fd, have, want int) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(time.Second)
	for time.Now().Before(deadline) {
		if n, err := unix.Poll(fds, 100); err == nil && n == 1 {
			return
		}
	}
	t.Fatalf("nothing more to read after %d of %d frames", have, want)
}

// checkSent holds the result fields of written frames against what should have left.
func checkSent(t rapid.TB, b *packet.Batch) {
	t.Helper()
	for i, f := range b.Frames {
		datagrams, size := wire(f), 0
		for _, d := range datagrams {
			size += len(d)
		}
		if f.Sent != len(datagrams) || f.Sent != f.Segments || f.Refused != 0 || f.SentBytes != size {
			t.Fatalf("frame %d: sent %d, refused %d, %d bytes; want %d segments, %d bytes", i, f.Sent, f.Refused, f.SentBytes, len(datagrams), size)
		}
	}
}

// checkArrived compares received frames with what should have left, in order.
func checkArrived(t rapid.TB, got []datagram, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d datagrams arrived, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i].data, want[i]) {
			t.Fatalf("datagram %d of %d: %d bytes, want %d\ngot  %.80x\nwant %.80x", i, len(want), len(got[i].data), len(want[i]), got[i].data, want[i])
		}
	}
}
