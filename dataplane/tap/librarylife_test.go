package tap_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

func TestLibraryLinkDown(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		b := packet.NewBatch(1 << 20)
		one := c.toKernel(t, b, 7000, pattern(10))
		super := c.toKernel(t, b, 7001, pattern(5000))
		leavePartial(t, super, 1000)
		if err := netlink.LinkSetDown(c.link); err != nil {
			t.Fatal(err)
		}
		if err := c.port.Write(b); err != nil || one.Refused != 1 || super.Refused != 5 || one.Sent+super.Sent+super.SentBytes != 0 {
			t.Errorf("link down: %v, %d and %d refused, %d sent", err, one.Refused, super.Refused, one.Sent+super.Sent)
		}
		if n, err := c.port.Read(packet.NewBatch(1 << 20)); n != 0 && c.local.To4() != nil || err != nil {
			t.Errorf("link down: Read = %d, %v", n, err)
		}
		if err := netlink.LinkSetUp(c.link); err != nil {
			t.Fatal(err)
		}
		if err := c.port.Write(b); err != nil || one.Refused+super.Refused != 0 || one.Sent != 1 || super.Sent != 5 {
			t.Errorf("link up again: %v, %d and %d sent", err, one.Sent, super.Sent)
		}
		c.checkCounts(t)
	})
}

// When the device is removed, poll notices, and reads and writes say so; no frame is left without its end.
func TestLibraryLinkDeleted(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		b := packet.NewBatch(1 << 20)
		super := c.toKernel(t, b, 7001, pattern(30000))
		leavePartial(t, super, 200)
		one := c.toKernel(t, b, 7000, pattern(10)) // behind more segments than the library takes at once
		if err := netlink.LinkDel(c.link); err != nil {
			t.Fatal(err)
		}
		if !readable(c.port.FD(), time.Second) {
			t.Error("poll does not notice")
		}
		if n, err := c.port.Read(packet.NewBatch(1 << 20)); n != 0 || !errors.Is(err, tap.ErrGone) {
			t.Errorf("Read = %d, %v; want ErrGone", n, err)
		}
		if err := c.port.Write(b); !errors.Is(err, tap.ErrGone) || one.Refused != 1 || super.Refused != 150 || one.Sent+super.Sent != 0 {
			t.Errorf("Write: %v, want ErrGone; %d and %d refused", err, one.Refused, super.Refused)
		}
	})
}

// A queue that is full or made shorter loses what the kernel counts as dropped, and Read does not wait for it.
func TestLibraryFullQueue(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		if err := netlink.LinkSetTxQLen(c.link, 100); err != nil {
			t.Fatal(err)
		}
		for range 300 {
			c.send(t, c.socket, pattern(100))
		}
		if err := netlink.LinkSetTxQLen(c.link, 50); err != nil {
			t.Fatal(err)
		}
		total, b := 0, packet.NewBatch(1<<20)
		for readable(c.port.FD(), time.Millisecond) {
			b.Reset()
			n, err := c.port.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
		s := c.statistics(t)
		if total != 50 || s.TxDropped == 0 || c.device.Counts().Read != 50 {
			t.Errorf("%d frames of a queue of 50, %d dropped by the kernel", total, s.TxDropped)
		}
	})
}

func TestLibraryOpenRefuses(t *testing.T) {
	inNamespace(t)
	for _, kind := range []tap.Kind{tap.TUN, tap.Water} {
		if _, err := kind.Open(tapName, 2); err == nil || !strings.Contains(err.Error(), "2 queues (possible: 1)") {
			t.Errorf("%s with two queues: %v", kind, err)
		}
		d, err := kind.Open(tapName, 1)
		if err != nil {
			t.Fatal(err)
		}
		before := descriptors(t)
		if _, err := kind.Open(tapName, 1); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s that is held: %v", kind, err)
		}
		for _, other := range tap.Kinds() {
			if other == kind {
				continue
			}
			if _, err := other.Open(tapName, 1); err == nil || !strings.Contains(err.Error(), "remove it first") {
				t.Errorf("%s where a %s is: %v", other, kind, err)
			}
		}
		if now := descriptors(t); now != before {
			t.Errorf("%s: refusals left %d descriptors behind", kind, now-before)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if _, err := netlink.LinkByName(tapName); !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("%s stays after Close: %v", kind, err)
		}
	}
	if _, err := tap.Kind("pigeon").Open(tapName, 1); err == nil || !strings.Contains(err.Error(), "have: [tap tun water]") {
		t.Error(err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// Nothing of a device stays: no goroutine, no descriptor.
func TestLibraryLeaks(t *testing.T) {
	inNamespace(t)
	for _, kind := range []tap.Kind{tap.TUN, tap.Water} {
		goroutines, fds := runtime.NumGoroutine(), descriptors(t)
		for range 5 {
			d, err := kind.Open(tapName, 1)
			if err != nil {
				t.Fatal(err)
			}
			if n := runtime.NumGoroutine(); n > goroutines {
				t.Errorf("%s: %d goroutines more", kind, n-goroutines)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n, m := runtime.NumGoroutine(), descriptors(t); n > goroutines || m > fds {
			t.Errorf("%s: %d goroutines and %d descriptors stay", kind, n-goroutines, m-fds)
		}
	}
}

func TestLibraryAllocates(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		in, out := packet.NewBatch(1<<20), packet.NewBatch(1<<20)
		one := c.toKernel(t, out, 7000, pattern(1000))
		super := c.toKernel(t, out, 7001, pattern(5000))
		size := uint16(1000)
		if c.kind == tap.TUN {
			size = 0 // under the race detector the library allocates for each segment that it joins, else it does not
		}
		leavePartial(t, super, size)
		total := 0
		n := testing.AllocsPerRun(20, func() {
			in.Reset()
			c.send(t, c.socket, pattern(100))
			got, err := c.port.Read(in)
			total += got
			if err != nil || c.port.Write(out) != nil || one.Sent != 1 || super.Sent != super.Segments {
				t.Error("Read or Write failed")
			}
		})
		sending := testing.AllocsPerRun(20, func() { c.send(t, c.socket, pattern(100)) })
		if n > sending || total < 21 {
			t.Errorf("%v allocations for each batch beside %v for the test's own; %d of 21 frames read", n-sending, sending, total)
		}
	})
}
