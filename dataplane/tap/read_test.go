package tap_test

import (
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// checkUDP holds an Ethernet frame against what the kernel was asked to send.
func checkUDP(t *testing.T, data, payload []byte, port int) {
	t.Helper()
	p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.Default)
	eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	ip, _ := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if eth == nil || ip == nil || udp == nil {
		t.Fatalf("no UDP packet: %x", data)
	}
	if eth.DstMAC.String() != farMAC.String() || !ip.DstIP.Equal(farAddr) || !ip.SrcIP.Equal(kernelAddr) || int(udp.DstPort) != port {
		t.Fatalf("%v -> %v, %v -> %v, port %d", eth.SrcMAC, eth.DstMAC, ip.SrcIP, ip.DstIP, udp.DstPort)
	}
	if !bytes.Equal(udp.Payload, payload) {
		t.Fatalf("payload of %d bytes, want %d", len(udp.Payload), len(payload))
	}
	checksum := udp.Checksum
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	if err := udp.SerializeTo(withPayload(buf, udp.Payload), gopacket.SerializeOptions{ComputeChecksums: true}); err != nil {
		t.Fatal(err)
	}
	if udp.Checksum != checksum && !(udp.Checksum == 0 && checksum == 0xffff) {
		t.Fatalf("UDP checksum %#x, want %#x", checksum, udp.Checksum)
	}
}

func withPayload(buf gopacket.SerializeBuffer, payload []byte) gopacket.SerializeBuffer {
	b, _ := buf.AppendBytes(len(payload))
	copy(b, payload)
	return buf
}

func TestRead(t *testing.T) {
	d, _ := newTAP(t, 1)
	c, b := kernelSocket(t), packet.NewBatch(1<<20)
	for _, n := range []int{0, 1, 100, 1472} {
		sendTo(t, c, pattern(n), 4000+n)
		frames := read(t, d.Queues[0], b)
		if len(frames) != 1 || !frames[0].VNet.NeedsCsum() || frames[0].Segments != 1 {
			t.Fatalf("%d bytes: %d frames, %+v", n, len(frames), frames[0].VNet)
		}
		frames[0].CompleteChecksum()
		checkUDP(t, frames[0].Bytes(), pattern(n), 4000+n)
	}
	b.Reset()
	if n, err := d.Queues[0].Read(b); n != 0 || err != nil {
		t.Errorf("Read of an empty queue = %d, %v", n, err)
	}
}

// A batch takes 64 frames, or as many as the arena has room for; nothing is lost.
func TestReadMany(t *testing.T) {
	for _, tt := range []struct{ arena, want int }{{8 << 20, 64}, {0, 1}, {3 * 65792, 3}} {
		d, _ := newTAP(t, 1)
		c, b := kernelSocket(t), packet.NewBatch(tt.arena)
		const total = 200
		for i := range total {
			sendTo(t, c, pattern(1400), 1000+i)
		}
		next := 0
		for next < total {
			frames := read(t, d.Queues[0], b)
			if next == 0 && len(frames) < tt.want {
				t.Errorf("arena of %d bytes: %d frames at once, want %d", tt.arena, len(frames), tt.want)
			}
			if len(frames) > 64 {
				t.Errorf("%d frames at once", len(frames))
			}
			for _, f := range frames {
				f.CompleteChecksum()
				checkUDP(t, f.Bytes(), pattern(1400), 1000+next)
				next++
			}
		}
	}
}

// segmentingSocket is a kernel socket that sends with UDP_SEGMENT.
func segmentingSocket(t *testing.T, local net.IP, size int) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: local})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// UDP_SEGMENT sends cross the TAP whole (USO), and their segments are what the kernel would
// have cut.
func TestReadUSO(t *testing.T) {
	d, _ := newTAP(t, 1)
	if d.Offloads&unix.TUN_F_USO4 == 0 {
		t.Fatalf("offloads %v: these tests need Linux 6.2 or later", d.Offloads.Names())
	}
	const size, total = 1000, 20500
	c, b := segmentingSocket(t, kernelAddr, size), packet.NewBatch(1<<20)
	sendTo(t, c, pattern(total), 4000)
	frames := read(t, d.Queues[0], b)
	f := frames[0]
	if len(frames) != 1 || f.VNet.GSOType != packet.GSOUDPL4 || f.VNet.GSOSize != size || f.Segments != 21 || !f.VNet.NeedsCsum() {
		t.Fatalf("%d frames, %d segments, %+v", len(frames), f.Segments, f.VNet)
	}
	cut := packet.NewSegmenter(f)
	for at := 0; at < total; at += size {
		header := make([]byte, cut.HeaderLen())
		payload, ok := cut.Next(header)
		if !ok {
			t.Fatalf("no segment at %d", at)
		}
		checkUDP(t, append(header, payload...), pattern(total)[at:min(at+size, total)], 4000)
	}
}

// The same with IPv6 (USO6), as the device hands it over.
func TestReadUSO6(t *testing.T) {
	inNamespace(t)
	d, _ := openTAP(t, 1, kernel6, far6, farMAC)
	const size, total, headers = 1000, 20500, 14 + 40 + 8
	c := segmentingSocket(t, kernel6, size)
	if _, err := c.WriteToUDP(pattern(total), &net.UDPAddr{IP: far6, Port: 4000}); err != nil {
		t.Fatal(err)
	}
	f := readTo(t, d.Queues[0], packet.NewBatch(1<<20), far6)
	want := packet.VNet{Flags: packet.VNetNeedsCsum, GSOType: packet.GSOUDPL4, GSOSize: size, CsumStart: 14 + 40, CsumOffset: 6}
	f.VNet.HdrLen = 0
	if f.VNet != want || f.Len() != headers+total || !bytes.Equal(f.Bytes()[headers:], pattern(total)) {
		t.Errorf("%d bytes, want %d; %+v, want %+v", f.Len(), headers+total, f.VNet, want)
	}
}

// readTo reads until a frame to an IPv6 address comes, past what the kernel says to its neighbours.
func readTo(t *testing.T, q tap.Port, b *packet.Batch, to net.IP) *packet.Frame {
	t.Helper()
	for readable(q.FD(), 2*time.Second) {
		b.Reset()
		if _, err := q.Read(b); err != nil {
			t.Fatal(err)
		}
		for _, f := range b.Frames {
			if data := f.Bytes(); len(data) >= 54 && bytes.Equal(data[38:54], to) {
				return f
			}
		}
	}
	t.Fatalf("no frame to %s", to)
	return nil
}

// The largest frame there is: 65521 is the largest MTU of a TAP.
func TestReadLargest(t *testing.T) {
	d, link := newTAP(t, 1)
	if err := netlink.LinkSetMTU(link, 65521); err != nil {
		t.Fatal(err)
	}
	c, b := kernelSocket(t), packet.NewBatch(0)
	sendTo(t, c, pattern(65521-28), 4000)
	f := read(t, d.Queues[0], b)[0]
	if f.Len() != 65521+packet.EthernetLen {
		t.Fatalf("%d bytes", f.Len())
	}
	f.CompleteChecksum()
	checkUDP(t, f.Bytes(), pattern(65521-28), 4000)
}

func TestLinkDeleted(t *testing.T) {
	d, link := newTAP(t, 2)
	b := packet.NewBatch(1 << 20)
	to := kernelSocket(t).LocalAddr()
	f, next := udpFrame(t, b, link, to, pattern(10)), udpFrame(t, b, link, to, pattern(10))
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	for i, q := range d.Queues {
		if !readable(q.FD(), time.Second) {
			t.Errorf("queue %d: poll does not notice", i)
		}
		if n, err := q.Read(packet.NewBatch(0)); n != 0 || !errors.Is(err, tap.ErrGone) {
			t.Errorf("queue %d: Read = %d, %v; want ErrGone", i, n, err)
		}
		if err := q.Write(b); !errors.Is(err, tap.ErrGone) || f.Refused != 1 || next.Refused != 1 || f.Sent+next.Sent != 0 {
			t.Errorf("queue %d: Write: %v, want ErrGone; %d sent, %d and %d refused", i, err, f.Sent+next.Sent, f.Refused, next.Refused)
		}
	}
}
