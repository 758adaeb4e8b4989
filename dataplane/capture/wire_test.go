package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const tunnelPort = 8472

// inNamespace runs the rest of the test in a network namespace with a link, and returns the link's index.
func inNamespace(t *testing.T) int {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("a network namespace: %v: run the test as root", err)
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tulle-a", MTU: 9000}, PeerName: "tulle-b"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	other, err := netlink.LinkByName("tulle-b")
	if err := errors.Join(err, netlink.LinkSetUp(other), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	return link.Index
}

// ofTunnel is what tunnelProgram is to take, in gopacket's words.
func ofTunnel(b []byte) bool {
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{})
	var l4 []byte
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		if ip.Protocol != layers.IPProtocolUDP || ip.FragOffset > 0 {
			return ip.Protocol == layers.IPProtocolUDP
		}
		l4 = ip.Payload
	case *layers.IPv6:
		l4 = ip.Payload
		if f, ok := p.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment); ok && ip.NextHeader == layers.IPProtocolIPv6Fragment {
			if f.NextHeader != layers.IPProtocolUDP || f.FragmentOffset > 0 {
				return f.NextHeader == layers.IPProtocolUDP
			}
			l4 = f.Payload
		} else if ip.NextHeader != layers.IPProtocolUDP {
			return false
		}
	}
	return len(l4) >= 4 && (binary.BigEndian.Uint16(l4) == tunnelPort || binary.BigEndian.Uint16(l4[2:]) == tunnelPort)
}

// TestWireProgram sends random packets on a link and demands that the kernel hands over those of the tunnel and no others, unchanged, in
// order, small and large ones, cut where they are to be.
func TestWireProgram(t *testing.T) {
	for _, snap := range []int{0, 5000, 60} {
		t.Run(fmt.Sprint(snap), func(t *testing.T) { testWireProgram(t, snap) })
	}
}

func testWireProgram(t *testing.T, snap int) {
	index := inNamespace(t)
	config := testConfig()
	config.SnapLen = snap
	s := NewSession(config)
	if err := s.OpenWire("tulle-a", index); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r := seeded(t)
	var want [][]byte
	got, stats := captured(t, s, func() {
		for range 3000 {
			b := randomPacket(r, false)
			kind := binary.BigEndian.Uint16(b[12:])
			if kind == 0x8100 {
				continue // a tag is the device's business: the kernel has taken it off before
			}
			if r.IntN(4) == 0 {
				b = append(b, make([]byte, r.IntN(8000))...)
			}
			if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Protocol: networkOrder(kind), Ifindex: index}); err != nil {
				t.Fatal(err)
			}
			if ofTunnel(b) {
				want = append(want, b)
			}
		}
	})
	if len(got) != len(want) || len(want) < 100 || stats[0].Received != uint64(len(want)) || stats[0].Missed != 0 {
		t.Fatalf("%d packets handed over, want %d: %+v", len(got), len(want), stats[0])
	}
	for i, g := range got {
		kept := want[i]
		if snap > 0 {
			kept = kept[:min(len(kept), snap)]
		}
		if string(g.Data) != string(kept) || g.Length != len(want[i]) || g.Flags != FlagOutbound {
			t.Fatalf("packet %d: %d of %d bytes, flags %x, want %d of %d", i, len(g.Data), g.Length, g.Flags, len(kept), len(want[i]))
		}
	}
	t.Logf("%d packets", len(got))
}
