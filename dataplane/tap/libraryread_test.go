package tap_test

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tap"
)

func TestLibraryRead(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		b := packet.NewBatch(1 << 20)
		for _, n := range []int{0, 1, 100, 1452} {
			c.send(t, c.socket, pattern(n))
			frames := c.read(t, b)
			if len(frames) != 1 {
				t.Fatalf("%d frames", len(frames))
			}
			c.check(t, frames[0], pattern(n))
		}
		b.Reset()
		if n, err := c.port.Read(b); n != 0 && c.local.To4() != nil || err != nil {
			t.Errorf("Read of an empty queue = %d, %v", n, err)
		}
		c.checkCounts(t)
	})
}

// A UDP checksum that comes out as zero is sent as all ones.
func TestLibraryReadZeroChecksum(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		port := c.socket.LocalAddr().(*net.UDPAddr).Port
		plain := c.packet(t, 0, port, 4000, true, []byte{0, 0})
		payload := plain[len(plain)-4 : len(plain)-2] // the checksum: adding it makes the sum all ones
		c.send(t, c.socket, payload)
		f := c.read(t, packet.NewBatch(1<<20))[0]
		if got := f.Bytes()[f.L4-f.L2+6:][:2]; !bytes.Equal(got, []byte{0xff, 0xff}) {
			t.Errorf("checksum %x, want ffff", got)
		}
	})
}

// Super-packets come as the segments that the kernel would have sent.
func TestLibraryReadSuper(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		const size, total = 1000, 20500
		b := packet.NewBatch(1 << 20)
		conn := segmentingSocket(t, c.local, size)
		c.send(t, conn, pattern(total))
		at := 0
		for at < total {
			for _, f := range c.read(t, b) {
				c.check(t, f, pattern(total)[at:min(at+size, total)])
				at += size
			}
		}
		c.checkCounts(t)
		if got := c.device.Counts().Read; c.kind == tap.TUN && got > 10 || c.kind == tap.Water && got < 21 {
			t.Errorf("%d packets from the kernel for 21 segments", got)
		}
	})
}

// A batch takes what its arena has room for; nothing is lost.
func TestLibraryReadMany(t *testing.T) {
	eachLibrary(t, func(t *testing.T, c *libraryCase) {
		const total = 200
		for range total {
			c.send(t, c.socket, pattern(1400))
		}
		b, next := packet.NewBatch(160<<10), 0
		for next < total {
			frames := c.read(t, b)
			if len(frames) > 64 {
				t.Errorf("%d frames at once", len(frames))
			}
			for _, f := range frames {
				c.check(t, f, pattern(1400))
				next++
			}
		}
		if next != total {
			t.Errorf("%d frames of %d", next, total)
		}
		c.checkCounts(t)
	})
}

func TestTUNReadSmallArena(t *testing.T) {
	c := newLibrary(t, tap.TUN, kernelAddr, farAddr)
	c.send(t, c.socket, pattern(10))
	if n, err := c.port.Read(packet.NewBatch(0)); n != 0 || err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("Read = %d, %v", n, err)
	}
}
