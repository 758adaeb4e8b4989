package tap_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/dataplane/packet"
)

func TestWrite(t *testing.T) {
	d, link := newTAP(t, 1)
	c, b := kernelSocket(t), packet.NewBatch(1<<20)
	whole := udpFrame(t, b, link, c.LocalAddr(), []byte("whole"))
	part := udpFrame(t, b, link, c.LocalAddr(), []byte("partial"))
	makePartial(part)
	if err := d.Queues[0].Write(b); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*packet.Frame{whole, part} {
		if f.Sent != 1 || f.Refused != 0 || f.SentBytes != f.Len() {
			t.Errorf("%d sent, %d refused, %d bytes of %d", f.Sent, f.Refused, f.SentBytes, f.Len())
		}
	}
	for _, want := range []string{"whole", "partial"} {
		if got := received(t, c, time.Second); string(got) != want {
			t.Errorf("the kernel received %q, want %q", got, want)
		}
	}
}

// A frame whose checksum is wrong is taken from us and dropped by the kernel: the test
// socket is no blind one.
func TestWriteBadChecksum(t *testing.T) {
	d, link := newTAP(t, 1)
	c, b := kernelSocket(t), packet.NewBatch(1<<20)
	f := udpFrame(t, b, link, c.LocalAddr(), []byte("spoiled"))
	f.Bytes()[f.Len()-1] ^= 1
	d.Queues[0].Write(b)
	if got := received(t, c, 100*time.Millisecond); got != nil || f.Sent != 1 {
		t.Errorf("%d sent; received %q", f.Sent, got)
	}
}

// A USO super-packet becomes its datagrams again in the kernel.
func TestWriteUSO(t *testing.T) {
	d, link := newTAP(t, 1)
	c, b := kernelSocket(t), packet.NewBatch(1<<20)
	payload := pattern(20500)
	f := udpFrame(t, b, link, c.LocalAddr(), payload)
	makePartial(f)
	f.VNet.GSOType, f.VNet.GSOSize, f.VNet.HdrLen = packet.GSOUDPL4, 1000, 0xffff // Write knows better
	if v := f.Parse(); v != packet.None || f.Segments != 21 {
		t.Fatalf("%v, %d segments", v, f.Segments)
	}
	if err := d.Queues[0].Write(b); err != nil || f.Sent != 21 || f.Refused != 0 || f.SentBytes != f.Len() {
		t.Fatalf("Write: %v, %d sent, %d refused, %d bytes", err, f.Sent, f.Refused, f.SentBytes)
	}
	for at := 0; at < len(payload); at += 1000 {
		if got := received(t, c, time.Second); !bytes.Equal(got, payload[at:min(at+1000, len(payload))]) {
			t.Fatalf("datagram at %d: %d bytes", at, len(got))
		}
	}
}

// detached has the bytes of a frame behind its Ethernet header, which lies beside the slot, and nothing in front.
func detached(b *packet.Batch, f *packet.Frame) *packet.Frame {
	data := f.Bytes()
	slot := b.Slot(len(data))
	end := copy(slot, data[packet.EthernetLen:])
	b.Claim(end)
	d := b.Append(slot, 0, end)
	d.Detached = true
	copy(d.DetachedLink(), data)
	d.L2, d.L4, d.Payload = -packet.EthernetLen, f.L4-f.L3, f.Payload-f.L3
	d.VNet, d.Segments = f.VNet, f.Segments
	return d
}

// The kernel sees a detached frame as any other: its Ethernet header counts and goes first.
func TestWriteDetached(t *testing.T) {
	d, link := newTAP(t, 1)
	c, made, out := kernelSocket(t), packet.NewBatch(1<<20), packet.NewBatch(1<<20)
	whole := detached(out, udpFrame(t, made, link, c.LocalAddr(), []byte("whole")))
	f := udpFrame(t, made, link, c.LocalAddr(), []byte("partial"))
	makePartial(f)
	part := detached(out, f)
	f = udpFrame(t, made, link, c.LocalAddr(), pattern(20500))
	makePartial(f)
	f.VNet.GSOType, f.VNet.GSOSize, f.Segments = packet.GSOUDPL4, 1000, 21
	super := detached(out, f)
	if err := d.Queues[0].Write(out); err != nil {
		t.Fatal(err)
	}
	for i, f := range []*packet.Frame{whole, part, super} {
		if f.Sent != f.Segments || f.Refused != 0 || f.SentBytes != f.Len()+packet.EthernetLen {
			t.Errorf("frame %d: %d sent of %d, %d refused, %d bytes of %d and 14", i, f.Sent, f.Segments, f.Refused, f.SentBytes, f.Len())
		}
	}
	if super.VNet.HdrLen != 14+20+8 {
		t.Errorf("the super-packet's headers have %d bytes, want 42", super.VNet.HdrLen)
	}
	want := [][]byte{[]byte("whole"), []byte("partial")}
	want = slices.AppendSeq(want, slices.Chunk(pattern(20500), 1000))
	for i := range want {
		if got := received(t, c, time.Second); !bytes.Equal(got, want[i]) {
			t.Fatalf("datagram %d: %d bytes, want %d", i, len(got), len(want[i]))
		}
	}
}

func TestWriteRefused(t *testing.T) {
	impossible := map[string]packet.VNet{
		"checksum behind the end":   {Flags: packet.VNetNeedsCsum, CsumStart: 0xfff0, CsumOffset: 6},
		"header length beyond":      {HdrLen: 0xfff0},
		"unknown GSO":               {Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 6, GSOType: 0x42, GSOSize: 1000},
		"GSO of size 0":             {Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 6, GSOType: packet.GSOUDPL4},
		"USO with TCP's csumOffset": {Flags: packet.VNetNeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: packet.GSOUDPL4, GSOSize: 1000},
	}
	d, link := newTAP(t, 1)
	c := kernelSocket(t)
	for name, vnet := range impossible {
		t.Run(name, func(t *testing.T) {
			b := packet.NewBatch(1 << 20)
			bad := udpFrame(t, b, link, c.LocalAddr(), pattern(5000))
			good := udpFrame(t, b, link, c.LocalAddr(), []byte("good"))
			bad.VNet, bad.Segments = vnet, 5
			if err := d.Queues[0].Write(b); err != nil {
				t.Errorf("Write: %v", err)
			}
			if bad.Refused != 5 || bad.Sent != 0 || bad.SentBytes != 0 || good.Sent != 1 || good.Refused != 0 {
				t.Errorf("impossible frame: %d sent, %d refused; the next one: %d sent", bad.Sent, bad.Refused, good.Sent)
			}
		})
		if got := received(t, c, time.Second); string(got) != "good" {
			t.Errorf("%s: received %d bytes", name, len(got))
		}
	}
}

func TestWriteLinkDown(t *testing.T) {
	d, link := newTAP(t, 1)
	b := packet.NewBatch(1 << 20)
	f := udpFrame(t, b, link, kernelSocket(t).LocalAddr(), pattern(10))
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	if err := d.Queues[0].Write(b); err != nil || f.Refused != 1 || f.Sent != 0 || f.SentBytes != 0 {
		t.Errorf("link down: %v, %d sent, %d refused, %d bytes", err, f.Sent, f.Refused, f.SentBytes)
	}
	if n, err := d.Queues[0].Read(packet.NewBatch(0)); n != 0 || err != nil {
		t.Errorf("link down: Read = %d, %v", n, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if err := d.Queues[0].Write(b); err != nil || f.Refused != 0 || f.Sent != 1 {
		t.Errorf("link up again: %v, %d sent, %d refused", err, f.Sent, f.Refused)
	}
}

func TestAllocates(t *testing.T) {
	d, link := newTAP(t, 1)
	c, in, out := kernelSocket(t), packet.NewBatch(1<<20), packet.NewBatch(1<<20)
	f := udpFrame(t, out, link, c.LocalAddr(), pattern(1000))
	detached(out, f)
	for range 50 {
		sendTo(t, c, pattern(100), 4000)
	}
	total, q := 0, d.Queues[0]
	n := testing.AllocsPerRun(10, func() {
		in.Reset()
		got, err := q.Read(in)
		total += got
		if err != nil || q.Write(out) != nil || f.Sent != 1 {
			t.Error("Read or Write failed")
		}
	})
	if n != 0 || total != 50 {
		t.Errorf("%v allocations for each batch; %d of 50 frames read", n, total)
	}
}
