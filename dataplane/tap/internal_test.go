package tap

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// openHere opens a device in a namespace of its own and brings it up.
func openHere(t *testing.T, kind Kind) *Device {
	t.Helper()
	runtime.LockOSThread() // never unlocked, so that nobody else runs on the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	d, err := kind.Open("tulle-t0", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	link, err := netlink.LinkByName(d.Name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What poll(2) saw may be gone when the library reads: that ends after readGuard and is no error, and no packet.
func TestReadGuard(t *testing.T) {
	for _, kind := range []Kind{TUN, Water} {
		d := openHere(t, kind)
		var l *library
		var err error
		switch p := d.Queues[0].(type) {
		case *tunPort:
			l, err = &p.library, p.guard()
			_, readErr := p.device.Read(p.bufs, p.sizes, packet.EthernetLen)
			err = errors.Join(err, l.failedRead(readErr))
		case *waterPort:
			l, err = &p.library, p.guard()
			_, readErr := p.device.Read(p.scratch[:])
			err = errors.Join(err, l.failedRead(readErr))
		}
		if err != nil || l.counts() != (Counts{}) {
			t.Errorf("%s: %v, %+v", kind, err, l.counts())
		}
		b := packet.NewBatch(1 << 20)
		if n, err := d.Queues[0].Read(b); n != 0 || err != nil || l.ready() {
			t.Errorf("%s: Read after it = %d, %v", kind, n, err)
		}
	}
}

// A shortDevice reads as the library does when a super-packet has more segments than it has buffers.
type shortDevice struct{ tun.Device }

func (shortDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], []byte{0x45, 0, 0, 20})
	}
	return len(bufs) - 1, tun.ErrTooManySegments
}

// What the library loses is counted, and the port goes on.
func TestLost(t *testing.T) {
	d := openHere(t, TUN)
	p := d.Queues[0].(*tunPort)
	p.device = shortDevice{p.device}
	b := packet.NewBatch(1 << 20)
	p.fd = readableFD(t) // in place of the kernel's packet
	for i := range uint64(2) {
		b.Reset()
		if n, err := p.Read(b); n != MaxSegments-1 || err != nil || len(b.Frames) != n {
			t.Errorf("Read = %d, %v with %d frames", n, err, len(b.Frames))
		}
		if want := (Counts{Read: i + 1, Lost: i + 1}); d.Counts() != want {
			t.Errorf("counts %+v, want %+v", d.Counts(), want)
		}
	}
}

// readableFD is a descriptor that poll(2) always finds readable.
func readableFD(t *testing.T) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	w.Write([]byte{1})
	return int(r.Fd())
}

// Of a batch that the kernel took in part, as many segments are refused as the failed writes stand for.
func TestRefused(t *testing.T) {
	p := &tunPort{}
	add := func(vnet packet.VNet, payload int) (size int) {
		buf := make([]byte, packet.EthernetLen+40+payload)
		vnet.Encode(buf[vnetAt:])
		p.bufs = append(p.bufs, buf)
		p.staged = append(p.staged, stagedPacket{&packet.Frame{}, len(buf)})
		return len(buf) - vnetAt
	}
	super := packet.VNet{Flags: packet.VNetNeedsCsum, GSOType: packet.GSOTCPv4, HdrLen: 40, GSOSize: 1000}
	first := add(super, 2500) // of three packets
	for range 2 {
		add(packet.VNet{Flags: merged}, 1000)
	}
	second := add(packet.VNet{}, 700)
	third := add(super, 2000)
	add(packet.VNet{Flags: merged}, 1000)
	for _, c := range []struct {
		bytes            int
		err              error
		refused, written int
	}{
		{first + second + third, nil, 0, 3},
		{first + second, errors.New("third"), 2, 2},
		{first, errors.New("second, third"), 3, 1},
		{0, errors.New("all"), 6, 0},
	} {
		before := p.written.Load()
		if got := p.refused(c.bytes, c.err); got != c.refused || p.written.Load()-before != uint64(c.written) {
			t.Errorf("%d bytes, %v: %d refused, %d written, want %+v", c.bytes, c.err, got, p.written.Load()-before, c)
		}
		sent, refused := 0, 0
		for _, s := range p.staged {
			*s.frame = packet.Frame{}
		}
		p.settle(c.refused)
		for _, s := range p.staged {
			sent, refused = sent+s.frame.Sent, refused+s.frame.Refused
		}
		if refused != c.refused || sent+refused != len(p.staged) {
			t.Errorf("%d sent and %d refused of %d", sent, refused, len(p.staged))
		}
	}
}
