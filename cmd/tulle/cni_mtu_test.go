package main

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/scripts/lab"
)

// TestCNIPathMTU makes the path between two nodes narrower than the containers' links, without a word from the router: a container that sends
// too much without allowing fragments is told, its kernel learns the exact MTU, and what fits arrives.
func TestCNIPathMTU(t *testing.T) {
	t.Run("veth", func(t *testing.T) { testPathMTU(t, newRuntime) })
	t.Run("tap", func(t *testing.T) { testPathMTU(t, newTAPRuntime) })
}

func testPathMTU(t *testing.T, runtimeOf func(testing.TB, lab.Node, string) *cniRuntime) {
	const narrow = 1400
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0, Family: lab.FamilyDual, Routed: true})
	here, there := newSandbox(t, "here"), newSandbox(t, "there")
	runtimeOf(t, l.Nodes()[0], "1.1.0").add(here)
	addrs := addrsOf(runtimeOf(t, l.Nodes()[1], "1.1.0").add(there))
	err := here.run(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil && link.Attrs().MTU != l.PodMTU() {
			t.Errorf("the container's MTU is %d, want %d", link.Attrs().MTU, l.PodMTU())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetPathMTU(narrow, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node 1 to know the path", func() bool { // what is told before is smaller, and kept
		paths := pathMTUs(t, l, 1, "n2")
		return paths[l.Nodes()[1].PublicIP] == narrow-50 && paths[l.Nodes()[1].PublicIPv6] == narrow-70
	})
	for _, a := range addrs {
		want, header := narrow-50, 28
		if a.Is6() {
			want, header = narrow-70, 48
		}
		from, to := wholeDatagrams(t, here, there, a)
		big := make([]byte, l.PodMTU()-header)
		took := eventually(t, "the container's kernel to learn the path's MTU", func() bool {
			from.Write(big) // refused as soon as it is known
			return mtuOf(t, from, a) == want
		})
		t.Logf("%s: %d bytes, learned after %s", a, want, took.Round(time.Millisecond))
		if _, err := from.Write(big); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s: more than fits: %v, want %v", a, err, unix.EMSGSIZE)
		}
		fits := bytes.Repeat([]byte{7}, want-header)
		if got := throughOnce(t, from, to, fits); !bytes.Equal(got, fits) {
			t.Errorf("%s: of %d bytes that fit %d arrive", a, len(fits), len(got))
		}
	}
}

// wholeDatagrams is a UDP flow whose packets may not be cut.
func wholeDatagrams(t *testing.T, from, to *sandbox, addr netip.Addr) (sender, receiver *net.UDPConn) {
	t.Helper()
	sender, receiver = datagrams(t, from, to, addr)
	raw, err := sender.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if addr.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	var set error
	if err := errors.Join(raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, option, unix.IP_PMTUDISC_DO) }), set); err != nil {
		t.Fatal(err)
	}
	return sender, receiver
}

// mtuOf is what the kernel believes of the way that a connected socket takes.
func mtuOf(t *testing.T, c *net.UDPConn, addr netip.Addr) (mtu int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if addr.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	var got error
	if err := errors.Join(raw.Control(func(fd uintptr) { mtu, got = unix.GetsockoptInt(int(fd), level, option) }), got); err != nil {
		t.Fatal(err)
	}
	return mtu
}

// throughOnce sends a datagram until one of its length arrives.
func throughOnce(t *testing.T, from, to *net.UDPConn, data []byte) []byte {
	t.Helper()
	buf := make([]byte, 1<<16)
	for range 50 {
		if _, err := from.Write(data); err != nil && !errors.Is(err, unix.EMSGSIZE) { // said of the one before
			t.Fatal(err)
		}
		if err := to.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := to.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			t.Fatal(err)
		case n == len(data):
			return buf[:n]
		}
	}
	return nil
}
