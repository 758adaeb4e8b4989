package encap

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// Everything that one underlay sends arrives at the other, whatever kind each is, as it was sent, with offloads on the wire
// and without, and in fragments where the path is narrow.
func TestPacketToAll(t *testing.T) {
	onWires(t, func(t *testing.T, w *wireTest) {
		for _, pair := range [][2]string{{"packet", "packet"}, {"packet", "udp"}, {"udp", "packet"}} {
			for _, offloads := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s to %s, offloads %t", pair[0], pair[1], offloads), func(t *testing.T) {
					w.setOffloads(t, offloads)
					checkCarries(t, w, w.open(t, pair[0], 0), w.open(t, pair[1], 1))
				})
			}
		}
	})
}

func (w *wireTest) open(t *testing.T, kind string, i int) port {
	if kind == "udp" {
		return w.udp(t, i, Config{})
	}
	return w.packet(t, i, Config{})[0]
}

func checkCarries(t *testing.T, w *wireTest, a, b port) {
	t.Helper()
	out, in := packet.NewBatch(4<<20), packet.NewBatch(1<<21)
	for i := range uint16(5) {
		outgoing(t, out, flow{i, 2}.tcp(t, pattern(60001)), 1390, w.addr(1)).OuterTOS = 2
		outgoing(t, out, flow{i, 2}.udp(t, pattern(60001)), 1300, w.addr(1))
		outgoing(t, out, flow{i, 2}.udp(t, pattern(100)), 0, w.addr(1)).OuterTOS = 0xb9
		outgoing(t, out, flow{i, 2}.tcp(t, pattern(20000)), 100, w.addr(1))
		outgoing(t, out, flow{i, 2}.tcp(t, pattern(9000)), 1390, w.addr(1))
		outgoing(t, out, flow{i, 2}.udp(t, pattern(9000)), 0, w.addr(1))    // fragments
		outgoing(t, out, flow{i, 2}.udp(t, pattern(9000)), 2000, w.addr(1)) // each segment in fragments
		outgoing(t, out, flow{i, 2}.udp(t, pattern(1)), 0, w.addr(1))
	}
	want := wireOf(out)
	if err := a.Write(out); err != nil {
		t.Fatal(err)
	}
	checkSent(t, out)
	got := receive(t, b, in, len(want))
	if _, raw := a.(*PacketUnderlay); raw {
		checkArrived(t, got, want)
	} else {
		checkArrivedInAnyOrder(t, got, want)
	}
	for i, d := range got {
		if d.remote.Addr() != w.sites[0].addr {
			t.Fatalf("datagram %d is from %v", i, d.remote)
		}
	}
}

// checkArrivedInAnyOrder is for a sender with more than one socket.
func checkArrivedInAnyOrder(t *testing.T, got []datagram, want [][]byte) {
	t.Helper()
	slices.SortFunc(got, func(a, b datagram) int { return slices.Compare(a.data, b.data) })
	slices.SortFunc(want, slices.Compare[[]byte])
	checkArrived(t, got, want)
}
