package encap

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// fixed is a pair whose datagrams all leave from one port.
func (lo loopback) fixed(t *testing.T) (a, b *Underlay, to netip.AddrPort) {
	return lo.pairOf(t, Config{Framing: codec(t, 1), FixedSource: true})
}

// Datagrams of one size leave together, whatever flows they are of; a shorter one goes with them and is the last.
func TestTogether(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		a, b, to := lo.fixed(t)
		out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
		for i := range uint16(40) {
			outgoing(t, out, flow{i, 2}.udp(t, pattern(64)), 0, to)
		}
		outgoing(t, out, flow{1, 2}.udp(t, pattern(640)), 64, to)
		outgoing(t, out, flow{3, 2}.udp(t, pattern(30)), 0, to)
		outgoing(t, out, flow{4, 2}.udp(t, pattern(30)), 0, to)
		want := wireOf(out)
		a.Write(out)
		checkSent(t, out)
		checkArrived(t, receive(t, b, in, len(want)), want)
		if got, together := int(b.recv.msgs[0].len), 50*len(want[0])+len(want[50]); got != together {
			t.Errorf("the first read has %d bytes, want %d", got, together)
		}
	})
}

// What leaves together arrives as what was sent one by one would: every byte, in order towards each destination, with its TOS,
// and every frame knows what became of its segments; also when the kernel refuses to cut.
func TestTogetherAtRandom(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		inBothFamilies(t, func(t *testing.T, lo loopback) {
			a, b, toB := lo.fixed(t)
			c := openConfig(t, Config{Local: netip.AddrPortFrom(lo.b, 0), Framing: codec(t, 1)})[0]
			if refuse {
				refuseSegments(t, a, b)
				refuseSegments(t, a, c)
			}
			checkTogether(t, a, func() { a.senders[0].gso = true }, []netip.AddrPort{toB, boundTo(t, c.receiver)}, []port{b, c})
		})
	}
}

func TestPacketTogetherAtRandom(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		onWires(t, func(t *testing.T, w *wireTest) {
			a, b := w.packet(t, 0, Config{FixedSource: true})[0], w.packet(t, 1, Config{})[0]
			if refuse {
				a.gsoType = 0x55 // unknown to the kernel
			}
			checkTogether(t, a, func() { a.gso.Store(true) }, []netip.AddrPort{w.addr(1)}, []port{b})
			a.gsoType = packet.GSOUDPL4
			a.gso.Store(true)
			out, in := packet.NewBatch(1<<20), packet.NewBatch(1<<21)
			for i := range uint16(40) {
				outgoing(t, out, flow{i, 2}.udp(t, pattern(64)), 0, w.addr(1))
			}
			want := wireOf(out)
			a.Write(out)
			checkArrived(t, receive(t, b, in, len(want)), want)
			if got, front := int(b.recv.msgs[0].len), b.recv.front; got != front+40*len(want[0]) {
				t.Errorf("the first read has %d bytes, want %d and 40 datagrams of %d", got, front, len(want[0]))
			}
		})
	}
}

// checkTogether writes random batches to from, after renew, and compares what arrives at the ends of remotes.
func checkTogether(t *testing.T, from port, renew func(), remotes []netip.AddrPort, ends []port) {
	out, in := packet.NewBatch(8<<20), packet.NewBatch(1<<21)
	rapid.Check(t, func(rt *rapid.T) {
		renew()
		out.Reset()
		for range rapid.IntRange(1, 40).Draw(rt, "frames") {
			drawOutgoing(t, rt, out, remotes)
		}
		want, tos := map[netip.AddrPort][][]byte{}, map[netip.AddrPort][]uint8{}
		for _, f := range out.Frames {
			want[f.Remote] = append(want[f.Remote], wire(f)...)
			tos[f.Remote] = append(tos[f.Remote], slices.Repeat([]uint8{f.OuterTOS}, f.Segments)...)
		}
		from.Write(out)
		checkSent(rt, out)
		for i, end := range ends {
			got := receive(rt, end, in, len(want[remotes[i]]))
			checkArrived(rt, got, want[remotes[i]])
			for j, d := range got {
				if d.tos != tos[remotes[i]][j] {
					rt.Fatalf("datagram %d has TOS %d, want %d", j, d.tos, tos[remotes[i]][j])
				}
			}
		}
	})
}

// drawOutgoing appends a frame like many others, so that what could go together often does.
func drawOutgoing(t *testing.T, rt *rapid.T, out *packet.Batch, remotes []netip.AddrPort) {
	fl := flow{rapid.Uint16Range(1, 3).Draw(rt, "flow"), 2}
	to := rapid.SampledFrom([]netip.AddrPort{remotes[0], remotes[0], remotes[0], remotes[len(remotes)-1]}).Draw(rt, "remote")
	size := rapid.SampledFrom([]int{1, 64, 64, 64, 65, 1000}).Draw(rt, "payload")
	gso := rapid.SampledFrom([]int{0, 0, 0, 64, 1000}).Draw(rt, "segment")
	if gso > 0 {
		size = gso*rapid.IntRange(0, 70).Draw(rt, "segments") + rapid.SampledFrom([]int{0, 1, gso - 1}).Draw(rt, "rest")
		size = min(size, 60000)
	}
	f := outgoing(t, out, fl.udp(t, pattern(size)), gso, to)
	f.OuterTOS = rapid.SampledFrom([]uint8{0, 0, 0, 1}).Draw(rt, "tos")
}
