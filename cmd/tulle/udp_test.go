package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// udpLab is a lab of flannel's udp backend. Its last node runs flannelpeer, which shares no code with this program.
func udpLab(t *testing.T, nodes, pods int, device string) *lab.Lab {
	t.Helper()
	peer, err := need.Binary(t.Context(), t.TempDir(), "scripts/lab/flannelpeer")
	if err != nil {
		t.Fatal(err)
	}
	return labUnderTest(t, lab.Config{Nodes: nodes, Pods: pods, Backend: lab.BackendUDP, Kernel: map[int]bool{nodes: true}, FlannelPeer: peer, Device: device})
}

// TestUDPBackend is two tulle nodes and a flannel node: everything goes both ways between all of them, and the flannel node sees nothing
// but bare IPv4 packets from port 8285.
func TestUDPBackend(t *testing.T) { udpBackend(t, lab.DeviceTAP) }

func udpBackend(t *testing.T, device string) {
	l := udpLab(t, 3, 2, device)
	pairs := append(l.PodPairs(), l.NodePairs()...)
	pingAll(t, pairs, smallPing)
	for _, p := range pairs { // one after the other: the fragments of all at once are more than the flannel node's socket holds
		pingAll(t, []lab.Pair{p}, largePing)
		pingAll(t, []lab.Pair{p}, fullSize(p.Addr, 1472))
	}
	for _, p := range []lab.Pair{between(l, 1, 2), between(l, 1, 3), between(l, 3, 1)} {
		r := transfer(t, p, 50<<20)
		t.Logf("%s to %s: 50 MB at %.2f Gb/s", p.From, p.To, r.Gbps())
		for _, size := range []int{8, 64, 1444, 1445, 9000, 60000} {
			exchange(t, p, size, 20)
		}
	}
	s, err := l.FlannelStatus(3)
	if err != nil {
		t.Fatal(err)
	}
	if s.NotIPv4+s.Refused > 0 {
		t.Errorf("the flannel node received what it could not use: %+v", s)
	}
	for source := range s.Sources {
		if !strings.HasSuffix(source, ":8285") {
			t.Errorf("datagrams from %s", source)
		}
	}
	for _, from := range []int{1, 2} {
		addr := netip.AddrPortFrom(l.Nodes()[from-1].PublicIP, 8285).String()
		if s.Sources[addr] == 0 {
			t.Errorf("nothing from %s", addr)
		}
	}
}
