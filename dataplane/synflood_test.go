package dataplane

import (
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
)

var synSeconds = flag.Int("synflood", 3, "seconds of TestSYNFlood, on the engine's clock")

// A tcpFrame is a frame whose ports and last source byte can be changed without computing checksums: what is added to one field is
// taken off another that means nothing here, the IP identification, the urgent pointer and the sequence number's low half.
func tcpFrame(t *testing.T, side Side, from, to string, tcp layers.TCP) memFrame {
	src, dst := macA, gateA
	if side == Underlay {
		src, dst = macB, macA
	}
	eth, ip := ipLayers(src, dst, from, to, layers.IPProtocolTCP)
	ip.(*layers.IPv4).Id = 0xffff
	tcp.Window, tcp.Urgent, tcp.Seq = 1000, 0xffff, tcp.Seq|0xffff
	tcp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer))
	payload := 40
	if tcp.SYN {
		payload = 0
	}
	m := memFrame{data: build(t, eth, ip, &tcp, gopacket.Payload(make([]byte, payload)))}
	if side == Underlay {
		m = wrapB(m.data)
	}
	return m
}

// of is the frame with this source port and these last two bytes of the source address, which were 0.
func (m memFrame) of(side Side, source, port uint16) memFrame {
	m.data = append([]byte(nil), m.data...)
	ip := m.data[14:]
	if side == Underlay {
		ip = ip[8:]
	}
	set := func(at int, v uint16) { binary.BigEndian.PutUint16(ip[at:], v) }
	low := binary.BigEndian.Uint16(ip[14:])
	set(14, low+source)
	set(4, ^source)
	set(20+6, ^source)
	set(20, port)
	set(20+18, ^port)
	return m
}

// TestSYNFlood floods the flow table with 100,000 SYNs a second, of one source or of thousands, from pods and from a peer. Established
// connections lose nothing, others still begin, the table holds no more than it may.
func TestSYNFlood(t *testing.T) {
	for _, c := range []struct {
		name    string
		side    Side
		sources int
		drop    packet.Verdict // of most of the flood; None: old ones give way to new ones
	}{
		{"one pod", TAP, 1, packet.DropFlowQuota}, {"forged pods", TAP, 200, packet.None},
		{"one pod of a peer", Underlay, 1, packet.DropFlowQuota}, {"forged pods of a peer", Underlay, 200, packet.None},
	} {
		t.Run(c.name, func(t *testing.T) { testSYNFlood(t, c.side, c.sources, c.drop) })
	}
}

func testSYNFlood(t *testing.T, side Side, sources int, drop packet.Verdict) {
	const most, established, perSecond, step = 8000, 500, 100_000, 1000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	r := newRig(t, func(c *Config) {
		c.Join = packet.Joining{}
		flows, err := conntrack.New(conntrack.Config{Flows4: most, Flows6: most, PerSource: most / 4})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { flows.Close() })
		c.Flows = flows
	})
	out := r.underlay()
	syn := tcpFrame(t, TAP, "10.0.1.0", "10.0.2.9", layers.TCP{DstPort: 80, SYN: true})
	data := tcpFrame(t, TAP, "10.0.1.0", "10.0.2.9", layers.TCP{DstPort: 80, ACK: true, Ack: 0xffff - 9 + 1})
	accept := tcpFrame(t, Underlay, "10.0.2.0", "10.0.1.0", layers.TCP{SrcPort: 80, SYN: true, ACK: true, Ack: 0xffff - 250 + 1})
	flood := syn
	if side == Underlay {
		flood = tcpFrame(t, Underlay, "10.0.2.0", "10.0.1.9", layers.TCP{DstPort: 80, SYN: true})
	}
	// begin opens a connection of a pod that takes no part in the flood.
	begin := func(port uint16) {
		r.send(TAP, syn.of(TAP, 250, port))
		answer := accept.of(Underlay, 9, 80)
		ip := answer.data[8+14:] // to the pod and its port
		binary.BigEndian.PutUint16(ip[18:], 1<<8|250)
		binary.BigEndian.PutUint16(ip[20+2:], port)
		fixIPChecksum(answer.data[8:])
		fixTCPChecksum(ip)
		r.send(Underlay, answer)
		r.send(TAP, data.of(TAP, 250, port))
	}
	for port := range uint16(established) {
		begin(1000 + port)
	}
	if n := count(r, conntrack.Established); n != established {
		t.Fatalf("%d connections are established, want %d", n, established)
	}
	out.taken()
	r.tap().taken()
	lost, begun := 0, 0
	for range *synSeconds * perSecond / step {
		for range step {
			r.ports[side].put(flood.of(side, uint16(1+rng.IntN(sources)), uint16(rng.Uint32())))
		}
		r.turn(side)
		out.taken()
		r.tap().taken()
		for range 20 {
			r.ports[TAP].put(data.of(TAP, 250, 1000+uint16(rng.IntN(established))))
		}
		r.turn(TAP)
		lost += 20 - len(out.taken())
		r.send(TAP, syn.of(TAP, uint16(251+begun%4), uint16(10000+begun)))
		if begun++; len(out.taken()) == 0 {
			t.Fatalf("connection %d cannot begin", begun)
		}
		if n := r.engine.Flows.Stats().Flows4; n > most {
			t.Fatalf("%d flows in a table for %d", n, most)
		}
		if begun%100 == 0 {
			r.engine.Flows.Sweep(time.Duration(r.now.Load()), 4*most)
		}
		r.now.Add(int64(time.Second * step / perSecond))
	}
	sent := *synSeconds * perSecond
	dropped := int(r.w.snapshot().Verdicts[packet.DropFlowQuota])
	s := r.engine.Flows.Stats()
	t.Logf("%d SYNs: %d over quota, %d gave way, %d found no room; %d packets of connections lost", sent, dropped, s.Evicted, s.Full, lost)
	if lost > 0 || count(r, conntrack.Established) < established {
		t.Errorf("%d packets of established connections lost, %d of %d connections left", lost, count(r, conntrack.Established), established)
	}
	if drop == packet.DropFlowQuota && dropped < sent/2 || drop == packet.None && (dropped > 0 || s.Evicted < uint64(sent/4)) {
		t.Errorf("%d SYNs are over quota, %d flows gave way", dropped, s.Evicted)
	}
}

func count(r *rig, state conntrack.State) (n int) {
	for f := range r.engine.Flows.Flows(time.Duration(r.now.Load())) {
		if f.State == state {
			n++
		}
	}
	return n
}

// fixTCPChecksum computes that of an IPv4 packet.
func fixTCPChecksum(ip []byte) {
	tcp := ip[20:binary.BigEndian.Uint16(ip[2:])]
	binary.BigEndian.PutUint16(tcp[16:], 0)
	sum := packet.Sum(0).Add(ip[12:20]).Add([]byte{0, packet.ProtoTCP, byte(len(tcp) >> 8), byte(len(tcp))}).Add(tcp)
	binary.BigEndian.PutUint16(tcp[16:], sum.Checksum())
}
