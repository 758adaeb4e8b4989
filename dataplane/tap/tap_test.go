package tap_test

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

// tuntap is the kernel's view of the TAP.
func tuntap(t *testing.T) *netlink.Tuntap {
	t.Helper()
	link, err := netlink.LinkByName(tapName)
	if err != nil {
		t.Fatal(err)
	}
	tt, ok := link.(*netlink.Tuntap)
	if !ok {
		t.Fatalf("%s is a %s", tapName, link.Type())
	}
	return tt
}

func TestOpen(t *testing.T) {
	d, _ := newTAP(t, 4)
	if len(d.Queues) != 4 || d.Name != tapName {
		t.Errorf("%d queues of %q", len(d.Queues), d.Name)
	}
	if want := []string{"csum", "tso4", "tso6", "uso4", "uso6"}; !slices.Equal(d.Offloads.Names(), want) {
		t.Errorf("offloads %v, want %v", d.Offloads.Names(), want)
	}
	k := tuntap(t)
	if k.Mode != netlink.TUNTAP_MODE_TAP || k.Queues != 4 || k.DisabledQueues != 0 || !k.NonPersist {
		t.Errorf("the kernel has %+v", k)
	}
	if want := "tulle-t0 (4 queues, csum tso4 tso6 uso4 uso6)"; d.String() != want {
		t.Errorf("String is %q, want %q", d, want)
	}
}

// Flows spread over the queues, and every frame is in exactly one of them.
func TestQueues(t *testing.T) {
	d, _ := newTAP(t, 4)
	c, b := kernelSocket(t), packet.NewBatch(8<<20)
	for i := range 100 {
		sendTo(t, c, pattern(100), 1000+i)
	}
	total, busy := 0, 0
	for _, q := range d.Queues {
		b.Reset()
		for n, _ := q.Read(b); n > 0; n, _ = q.Read(b) {
		}
		if n := len(b.Frames); n > 0 {
			busy++
			total += n
		}
	}
	if total != 100 || busy < 2 {
		t.Errorf("%d of 100 frames in %d of 4 queues", total, busy)
	}
}

// The kernel lets anyone with the privilege attach more queues to a TAP that is held, and spreads
// flows over all of them: Open cannot see it, its caller must look before.
func TestSecondHolderShares(t *testing.T) {
	newTAP(t, 2)
	second, err := tap.Open(tapName, 1)
	if err != nil {
		t.Fatalf("the kernel's behaviour has changed, for the better: %v", err)
	}
	if got := tuntap(t).Queues; got != 3 {
		t.Errorf("%d queues, want 3", got)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if got := tuntap(t).Queues; got != 2 {
		t.Errorf("%d queues after the second holder left, want 2", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	inNamespace(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: tapName}, PeerName: "peer"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	single := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "single"}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(single); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		queues int
		want   string
	}{
		{tapName, 1, "a link of this name exists and is no multi-queue TAP"},
		{"single", 1, "a link of this name exists and is no multi-queue TAP"},
		{"sixteen-letters-", 1, "name longer than 15 bytes"},
		{"none", 0, "0 queues"},
		{"none", 257, "create tap none"}, // the kernel has 256 at most
	} {
		d, err := tap.Open(tt.name, tt.queues)
		if err == nil || !strings.Contains(err.Error(), tt.want) || d != nil {
			t.Errorf("Open(%q, %d) = %v, want %q", tt.name, tt.queues, err, tt.want)
		}
	}
	if _, err := netlink.LinkByName("none"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("a failed Open leaves a link behind (%v)", err)
	}
}

// The kernel may choose the name, and the queues must all be of the link that it chose.
func TestOpenNamePattern(t *testing.T) {
	inNamespace(t)
	d, err := tap.Open("tulle-t%d", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Name != tapName || tuntap(t).Queues != 2 {
		t.Errorf("name %q, %d queues at %s", d.Name, tuntap(t).Queues, tapName)
	}
}

func TestPersistent(t *testing.T) {
	d, _ := newTAP(t, 2)
	index := tuntap(t).Index
	for _, on := range []bool{true, false} {
		if err := d.SetPersistent(on); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := netlink.LinkByName(tapName)
		if gone := errors.As(err, new(netlink.LinkNotFoundError)); gone == on {
			t.Errorf("persistent %v: after Close the link's absence is %v (%v)", on, gone, err)
		}
		if d, err = tap.Open(tapName, 2); err != nil {
			t.Fatal(err)
		}
		if got := tuntap(t); on && (got.Index != index || got.Queues != 2) {
			t.Errorf("opened again: index %d with %d queues, was %d", got.Index, got.Queues, index)
		}
	}
	d.Close()
}

// A persistent TAP remembers the vnet_hdr size of whoever held it before.
func TestOpenResetsVNetHeader(t *testing.T) {
	d, link := newTAP(t, 1)
	if err := unix.IoctlSetPointerInt(d.Queues[0].FD(), unix.TUNSETVNETHDRSZ, 12); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.SetPersistent(true), d.Close()); err != nil {
		t.Fatal(err)
	}
	d, err := tap.Open(tapName, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := kernelSocket(t)
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	sendTo(t, c, pattern(100), 4000)
	f := read(t, d.Queues[0], packet.NewBatch(0))[0]
	f.CompleteChecksum()
	checkUDP(t, f.Bytes(), pattern(100), 4000)
}

// forward moves frames between two queues as they are, until one is gone, and counts super-packets
// of the GSO type.
func forward(from, to tap.Port, gsoType uint8, tso *int, done chan<- error) {
	b := packet.NewBatch(1 << 21)
	for {
		readable(from.FD(), 100*time.Millisecond)
		b.Reset()
		if _, err := from.Read(b); err != nil {
			done <- err
			return
		}
		for _, f := range b.Frames {
			locate(f)
			if f.VNet.GSOType == gsoType && f.Len() > 2000 {
				*tso++
			}
		}
		if err := to.Write(b); err != nil {
			done <- err
			return
		}
	}
}

// A TCP connection between two kernels whose TAPs are joined here: what TSO leaves undone
// crosses both TAPs and every byte arrives.
func TestTSO(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) { checkTSO(t, []net.IP{kernelAddr, farAddr}, packet.GSOTCPv4) })
	t.Run("IPv6", func(t *testing.T) { checkTSO(t, []net.IP{kernel6, far6}, packet.GSOTCPv6) })
}

func checkTSO(t *testing.T, addrs []net.IP, gsoType uint8) {
	macs := []net.HardwareAddr{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}
	var devices [2]*tap.Device
	var spaces [2]netns.NsHandle
	for i := range devices {
		spaces[i] = inNamespace(t)
		var link netlink.Link
		devices[i], link = openTAP(t, 1, addrs[i], addrs[1-i], macs[1-i])
		if err := netlink.LinkSetHardwareAddr(link, macs[i]); err != nil {
			t.Fatal(err)
		}
	}
	listener := listen(t, addrs[1]) // still in the second namespace
	var tso [2]int
	done := make(chan error, 2)
	go forward(devices[0].Queues[0], devices[1].Queues[0], gsoType, &tso[0], done)
	go forward(devices[1].Queues[0], devices[0].Queues[0], gsoType, &tso[1], done)
	if err := netns.Set(spaces[0]); err != nil {
		t.Fatal(err)
	}
	checkTransfer(t, listener, 8<<20)
	for i := range devices { // makes forward return
		netns.Set(spaces[i])
		if err := netlink.LinkDel(tuntap(t)); err != nil {
			t.Fatal(err)
		}
	}
	for range devices {
		if err := <-done; !errors.Is(err, tap.ErrGone) {
			t.Errorf("forwarding ended with %v", err)
		}
	}
	if tso[0] == 0 || tso[1] == 0 {
		t.Errorf("%v TSO super-packets", tso)
	}
}

// locate sets what Write needs to know of a TCP packet's headers, without Parse, in both families.
func locate(f *packet.Frame) {
	const ipv6Len, dataOffset = 40, 12
	if f.Parse() == packet.None || f.EtherType != packet.EtherTypeIPv6 {
		return
	}
	l4 := packet.EthernetLen + ipv6Len
	f.L2, f.L3, f.L4 = f.Start(), f.Start()+packet.EthernetLen, f.Start()+l4
	f.Payload = f.L4
	if b := f.Bytes(); len(b) > l4+dataOffset && b[packet.EthernetLen+6] == packet.ProtoTCP {
		f.Payload += int(b[l4+dataOffset]>>4) * 4
	}
}

func listen(t *testing.T, addr net.IP) *net.TCPListener {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// checkTransfer sends n bytes to the listener and compares what arrives.
func checkTransfer(t *testing.T, listener *net.TCPListener, n int) {
	t.Helper()
	go func() {
		if c, err := listener.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		c.Write(pattern(n))
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !slices.Equal(got, pattern(n)) {
		t.Errorf("%d of %d bytes came back: %v", len(got), n, err)
	}
}
