package capture

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/packet"
)

// TestStages demands of every way of a packet what each stage shows of it.
func TestStages(t *testing.T) {
	inner := udpTo(t, "10.0.2.9", 64)
	n := len(inner)
	all := []Stage{TAP, Encap, Decap, Drop}
	in, out, syn, known := FlagInbound, FlagOutbound, FlagSynthesized, FlagKnown
	for _, c := range []struct {
		name string
		way  func(w *fakeWorker)
		want []outcome
	}{
		{"out, known", func(w *fakeWorker) { w.out(w.frame(inner), true, packet.Encapsulated) },
			[]outcome{{"tap", packet.Encapsulated, "b", 77, in | known, n}, {"encap", packet.Encapsulated, "b", 77, out | syn | known, n + 36}}},
		{"out, new", func(w *fakeWorker) { w.out(w.frame(inner), false, packet.Encapsulated) },
			[]outcome{{"tap", packet.Encapsulated, "b", 77, in, n}, {"encap", packet.Encapsulated, "b", 77, out | syn, n + 36}}},
		{"out, no room for its flow", func(w *fakeWorker) { w.out(w.frame(inner), false, packet.DropFlowTableFull) },
			[]outcome{{"tap", packet.DropFlowTableFull, "b", 0, in, n}, {"encap", packet.DropFlowTableFull, "b", 0, out | syn, n + 36},
				{"drop-ip", packet.DropFlowTableFull, "b", 0, out | syn, n + 36}}},
		{"out, refused by the socket", func(w *fakeWorker) { w.out(w.frame(inner), true, packet.DropUnderlaySend) },
			[]outcome{{"tap", packet.Encapsulated, "b", 77, in | known, n}, {"encap", packet.Encapsulated, "b", 77, out | syn | known, n + 36},
				{"drop-ip", packet.DropUnderlaySend, "b", 77, out | syn | known, n + 36}}},
		{"in", func(w *fakeWorker) { w.in(w.frame(vxlanOf(inner)), packet.Delivered) },
			[]outcome{{"decap", packet.Delivered, "b", 78, in | known, n}, {"tap", packet.Delivered, "b", 78, out | known, n}}},
		{"in, dropped while encapsulated", func(w *fakeWorker) { w.in(w.frame(vxlanOf(inner)), packet.DropVNI) },
			[]outcome{{"drop-ip", packet.DropVNI, "", 0, in | syn, n + 36}}},
		{"in, dropped after", func(w *fakeWorker) { w.in(w.frame(vxlanOf(inner)), packet.DropTTL) },
			[]outcome{{"decap", packet.DropTTL, "b", 0, in, n}, {"drop", packet.DropTTL, "b", 0, in, n}}},
		{"used up", func(w *fakeWorker) {
			f := w.frame(inner)
			w.meet(dataplane.TAP, f)
			w.see(dataplane.AtDrop, f, packet.EchoAnswered)
		}, []outcome{{"tap", packet.EchoAnswered, "", 0, in, n}}},
		{"dropped at once", func(w *fakeWorker) {
			f := w.frame(inner)
			w.meet(dataplane.TAP, f)
			w.see(dataplane.AtDrop, f, packet.DropMartian)
		}, []outcome{{"tap", packet.DropMartian, "", 0, in, n}, {"drop", packet.DropMartian, "", 0, in, n}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewSession(testConfig(all...))
			c.way(newFakeWorker(t, s))
			var got []outcome
			for _, r := range records(t, s) {
				got = append(got, outcome{s.Interfaces()[r.Interface].Name, r.Verdict, r.Peer, r.FlowID, r.Flags, r.Length})
				if !bytes.Contains(r.Data, inner) || r.Serial != 1 || r.Time != time.Unix(1000, 1) {
					t.Errorf("%+v", r)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestSynthesized demands that gopacket finds the outer headers right: in both families and both ways.
func TestSynthesized(t *testing.T) {
	inner := udpTo(t, "10.0.2.9", 64)
	for _, remote := range []string{"192.0.2.2:8472", "[2001:db8::2]:8472"} {
		s := NewSession(testConfig(Encap, Drop))
		w := newFakeWorker(t, s)
		to := netip.MustParseAddrPort(remote)
		f := w.frame(vxlanOf(inner))
		f.Remote, f.OuterTOS = to, 0xb9
		w.meet(dataplane.TAP, f)
		w.see(dataplane.AtEncap, f, packet.None)
		back := w.frame(vxlanOf(inner))
		back.Remote, back.OuterTOS = netip.AddrPortFrom(to.Addr(), 50000), 0xb9
		w.meet(dataplane.Underlay, back)
		w.see(dataplane.AtDrop, back, packet.DropVNI)
		got := records(t, s)
		if len(got) != 2 {
			t.Fatalf("%d records", len(got))
		}
		for i, r := range got {
			first := gopacket.Decoder(layers.LayerTypeIPv4)
			local := testLocal[0]
			if to.Addr().Is6() {
				first, local = layers.LayerTypeIPv6, testLocal[1]
			}
			p := gopacket.NewPacket(r.Data, first, gopacket.Default)
			src, dst := p.NetworkLayer().NetworkFlow().Endpoints()
			udp := p.TransportLayer().(*layers.UDP)
			want := [4]string{local.String(), to.Addr().String(), "40000", "8472"}
			if i == 1 {
				want = [4]string{to.Addr().String(), local.String(), "50000", "8472"}
			}
			have := [4]string{src.String(), dst.String(), udp.TransportFlow().Src().String(), udp.TransportFlow().Dst().String()}
			if have != want || int(udp.Length) != 8+8+len(inner) || !bytes.Equal(udp.Payload, vxlanOf(inner)) {
				t.Errorf("%s: %v, want %v: %v", remote, have, want, p)
			}
			if ip, ok := p.NetworkLayer().(*layers.IPv4); ok && (packet.Sum(0).Add(ip.Contents).Checksum() != 0 || ip.TOS != 0xb9 || int(ip.Length) != len(r.Data)) {
				t.Errorf("IPv4 header %+v", ip)
			}
			if ip, ok := p.NetworkLayer().(*layers.IPv6); ok && (ip.TrafficClass != 0xb9 || int(ip.Length) != len(r.Data)-40) {
				t.Errorf("IPv6 header %+v", ip)
			}
		}
	}
}

// TestSessionFilters demands that filters look at the headers they are for.
func TestSessionFilters(t *testing.T) {
	for _, c := range []struct {
		filter, inner string
		want          int // of tap, encap
	}{
		{"", "", 2}, {"host 192.0.2.2", "", 1}, {"host 10.0.2.9", "", 1}, {"", "host 10.0.2.9", 2}, {"port 8472", "port 5000", 1},
		{"port 5000", "port 5000", 1}, {"", "port 8472", 0}, {"src port 40000", "udp and dst port 5000", 1},
	} {
		config := testConfig(TAP, Encap)
		config.Filter, _ = ParseFilter(c.filter)
		config.Inner, _ = ParseFilter(c.inner)
		s := NewSession(config)
		w := newFakeWorker(t, s)
		w.out(w.frame(udpTo(t, "10.0.2.9", 10)), true, packet.Encapsulated)
		if got := len(records(t, s)); got != c.want {
			t.Errorf("--filter %q --inner %q: %d packets, want %d", c.filter, c.inner, got, c.want)
		}
	}
}

// A slowReader takes what it is given at random times.
type slowReader struct {
	r      *rand.Rand
	stream bytes.Buffer
}

func (s *slowReader) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(s.r.IntN(300)+len(b)/64) * time.Microsecond)
	return s.stream.Write(b)
}

// TestMissed runs random packets of two workers past a slow reader with little room: whatever is not read was counted, and what is
// read is whole and in order.
func TestMissed(t *testing.T) {
	for _, ring := range []int{1 << 15, 1 << 20} { // of less than what is written at once, and of more
		t.Run(fmt.Sprint(ring), func(t *testing.T) { testMissed(t, ring) })
	}
}

func testMissed(t *testing.T, ring int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	config := testConfig(TAP, Encap)
	config.Workers, config.ring = 2, ring
	s := NewSession(config)
	reader := &slowReader{r: rand.New(rand.NewPCG(seed, 0))}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	var workers sync.WaitGroup
	go func() { ended <- s.Run(ctx, reader, workers.Wait) }()
	const packets = 20000
	for number := range config.Workers {
		workers.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(number)))
			w := newFakeWorker(t, s)
			frames := [][]byte{udpTo(t, "10.0.2.9", 1), udpTo(t, "10.0.2.9", 900), udpTo(t, "10.0.2.9", 7000)}
			for range packets {
				w.sight = dataplane.Sighting{}
				w.numbered(number, frames[r.IntN(len(frames))])
			}
		})
	}
	workers.Wait()
	cancel(errors.New("over"))
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	got, stats, end := readStream(t, &reader.stream)
	checkMissed(t, got, stats, end, packets*config.Workers)
}

// numbered is out for one worker of several.
func (w *fakeWorker) numbered(number int, b []byte) {
	f := w.frame(b)
	w.serial++
	f.Serial = w.serial
	for _, p := range []dataplane.Point{dataplane.AtRead, dataplane.AtEncap, dataplane.AtSent} {
		if p == dataplane.AtEncap {
			header, _ := f.Prepend(8)
			copy(header, []byte{8, 0, 0, 0, 0, 0, 1, 0})
			f.Remote = testPeer.Endpoint
		}
		v := packet.None
		if p == dataplane.AtSent {
			v = packet.Encapsulated
		}
		w.sight = dataplane.Sighting{Point: p, Worker: number, Serial: w.serial, Frame: f, Verdict: v, Peer: testPeer}
		w.s.Observe(&w.sight)
	}
}

func checkMissed(t *testing.T, got []Record, stats map[int]Statistics, end string, packets int) {
	t.Helper()
	count := map[int]uint64{}
	last := map[[2]int]uint64{}
	for _, r := range got {
		count[r.Interface]++
		key := [2]int{r.Interface, r.Worker}
		if r.Serial <= last[key] || r.Verdict != packet.Encapsulated || r.Peer != "b" || len(r.Data) != r.Length {
			t.Fatalf("after %d came %+v", last[key], r)
		}
		last[key] = r.Serial
		p := gopacket.NewPacket(r.Data, map[int]gopacket.Decoder{0: layers.LayerTypeEthernet, 1: layers.LayerTypeIPv4}[r.Interface], gopacket.Default)
		if p.ErrorLayer() != nil {
			t.Fatalf("a record is damaged: %v", p)
		}
	}
	for i := range 2 {
		s := stats[i]
		if s.Received != uint64(packets) || s.Received != count[i]+s.Missed || s.Missed == 0 || count[i] == 0 {
			t.Errorf("interface %d: %d read, %d missed, %d received of %d", i, count[i], s.Missed, s.Received, packets)
		}
	}
	if end != "over" {
		t.Errorf("ended with %q", end)
	}
	t.Logf("read %v, missed %d and %d", count, stats[0].Missed, stats[1].Missed)
}

// TestObserveAllocates nothing, with filters and without.
func TestObserveAllocates(t *testing.T) {
	config := testConfig(TAP, Encap, Decap, Drop)
	config.Inner, _ = ParseFilter("udp and not port 1")
	s := NewSession(config)
	w := newFakeWorker(t, s)
	b := udpTo(t, "10.0.2.9", 900)
	if n := testing.AllocsPerRun(100, func() { w.out(w.frame(b), true, packet.Encapsulated) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSuperPackets demands segments and size of one from the TAP, whose segments are counted only after it was read, and the whole of one
// that was joined.
func TestSuperPackets(t *testing.T) {
	s := NewSession(testConfig(TAP, Decap))
	w := newFakeWorker(t, s)
	b := udpTo(t, "10.0.2.9", 2500)
	f := w.frame(b)
	f.VNet = packet.VNet{GSOType: packet.GSOUDPL4, GSOSize: 1000, Flags: packet.VNetNeedsCsum}
	w.meet(dataplane.TAP, f)
	f.Segments = 3
	w.see(dataplane.AtRoute, f, packet.None)
	joined := w.frame(vxlanOf(b))
	joined.VNet, joined.Segments = f.VNet, 4
	joined.More = [][]byte{bytes.Repeat([]byte{7}, 1000), bytes.Repeat([]byte{8}, 10)}
	w.in(joined, packet.Delivered)
	got := records(t, s)
	if len(got) != 3 {
		t.Fatalf("%d records", len(got))
	}
	if r := got[0]; r.Segments != 3 || r.Size != 1000 || r.Flags != FlagInbound|FlagPartial || !bytes.Equal(r.Data, b) {
		t.Errorf("from the TAP: %+v", r)
	}
	for _, r := range got[1:] {
		if want := slices.Concat(b, joined.More[0], joined.More[1]); r.Segments != 4 || r.Length != len(want) || !bytes.Equal(r.Data, want) {
			t.Errorf("joined: %d segments of %d bytes in %d, want %d", r.Segments, r.Size, r.Length, len(want))
		}
	}
}

// TestBareIP demands that of a device of IP packets the capture shows these, and not the Ethernet header that the engine works with.
func TestBareIP(t *testing.T) {
	config := testConfig(TAP, Drop)
	config.L3 = true
	config.Filter, _ = ParseFilter("ip host 10.0.2.9")
	s := NewSession(config)
	w := newFakeWorker(t, s)
	inner := udpTo(t, "10.0.2.9", 10)
	f := w.frame(inner)
	w.meet(dataplane.TAP, f)
	w.see(dataplane.AtDrop, f, packet.DropMartian)
	w.in(w.frame(vxlanOf(inner)), packet.Delivered)
	got := records(t, s)
	if len(got) != 3 {
		t.Fatalf("%d records", len(got))
	}
	for _, r := range got {
		if i := s.Interfaces()[r.Interface]; i.Link != RawIP || !bytes.Equal(r.Data, inner[14:]) {
			t.Errorf("%s: %x", i.Name, r.Data)
		}
	}
}

// TestWaits demands that the reader gets no packet before its verdict, that one which still waits at the end is not lost, and that the
// last counters are told.
func TestWaits(t *testing.T) {
	s := NewSession(testConfig(TAP))
	w := newFakeWorker(t, s)
	f := w.frame(udpTo(t, "10.0.2.9", 10))
	readable := func() int { return len(s.producers[0].ring.readable(1 << 20)) }
	w.meet(dataplane.TAP, f)
	if readable() > 0 {
		t.Error("readable before its verdict")
	}
	w.see(dataplane.AtDrop, f, packet.DropMartian)
	if readable() == 0 {
		t.Error("not readable after its verdict")
	}
	held := w.frame(udpTo(t, "10.0.2.9", 11))
	w.meet(dataplane.TAP, held)
	var stream bytes.Buffer
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ended, &stream, func() {}); err != nil {
		t.Fatal(err)
	}
	got, stats, _ := readStream(t, &stream)
	if len(got) != 2 || got[0].Verdict != packet.DropMartian || got[1].Verdict != packet.None || got[1].Serial != 2 {
		t.Errorf("%+v", got)
	}
	if stats[0].Received != 2 || stats[0].Missed != 0 {
		t.Errorf("%+v", stats[0])
	}
}

// TestMade demands that a packet which the engine makes while it judges another does not decide that one.
func TestMade(t *testing.T) {
	s := NewSession(testConfig(TAP, Encap, Drop))
	w := newFakeWorker(t, s)
	f := w.frame(udpTo(t, "10.0.2.9", 10))
	w.meet(dataplane.TAP, f)
	other := newFakeWorker(t, s)
	made := other.frame(udpTo(t, "10.0.2.10", 20))
	made.Serial, made.Remote = 2, testPeer.Endpoint
	w.sight.Made = true
	w.see(dataplane.AtRead, made, packet.None)
	w.sight.Peer = testPeer
	w.see(dataplane.AtEncap, made, packet.None)
	w.sight = dataplane.Sighting{}
	w.see(dataplane.AtDrop, f, packet.DropReject)
	w.see(dataplane.AtSent, made, packet.Encapsulated)
	var got []outcome
	for _, r := range records(t, s) {
		got = append(got, outcome{Name: s.Interfaces()[r.Interface].Name, Verdict: r.Verdict, Flags: r.Flags})
	}
	want := []outcome{{Name: "tap", Verdict: packet.DropReject, Flags: FlagInbound},
		{Name: "encap", Verdict: packet.Encapsulated, Flags: FlagOutbound | FlagMade | FlagSynthesized},
		{Name: "drop", Verdict: packet.DropReject, Flags: FlagInbound}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// FuzzReader demands that no stream makes the reader panic, take much memory or not end.
func FuzzReader(f *testing.F) {
	f.Add(appendRecord(nil, &Record{Peer: "b", Length: 9}, kindPacket, []byte("data")))
	f.Add(appendRecord(appendRecord(nil, &Record{}, kindStats, nil), &Record{}, kindEnd, []byte("why")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bufio.NewReader(bytes.NewReader(b)))
		for range len(b) + 1 {
			e, err := r.Next()
			if err != nil {
				return
			}
			if e.Packet != nil && len(e.Packet.Data) > len(b) {
				t.Fatalf("%d bytes of data in %d", len(e.Packet.Data), len(b))
			}
		}
		t.Fatal("more records than bytes")
	})
}
