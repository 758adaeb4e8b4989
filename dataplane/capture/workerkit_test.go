package capture

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tulle-net/tulle/dataplane"
	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

var (
	testPeer   = &tables.Peer{Name: "b", Endpoint: netip.MustParseAddrPort("192.0.2.2:8472")}
	testTunnel = Tunnel{Port: 8472, VXLAN: true}
	testLocal  = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
)

func testConfig(stages ...Stage) Config {
	return Config{Stages: stages, Workers: 1, Tunnel: testTunnel, Local: testLocal, Start: time.Unix(1000, 0),
		Source: func(int, *packet.Frame) uint16 { return 40000 }, TAPName: "tap"}
}

// A fakeWorker shows a session what an engine's worker would.
type fakeWorker struct {
	t      testing.TB
	s      *Session
	batch  *packet.Batch
	serial uint64
	sight  dataplane.Sighting
}

func newFakeWorker(t testing.TB, s *Session) *fakeWorker {
	return &fakeWorker{t: t, s: s, batch: packet.NewBatch(1 << 20)}
}

// frame puts bytes into a frame with headroom.
func (w *fakeWorker) frame(b []byte) *packet.Frame {
	w.batch.Reset()
	slot := w.batch.Slot(len(b))
	copy(slot[packet.Headroom:], b)
	w.batch.Claim(len(slot))
	return w.batch.Append(slot, packet.Headroom, packet.Headroom+len(b))
}

func (w *fakeWorker) see(p dataplane.Point, f *packet.Frame, v packet.Verdict) {
	w.sight.Point, w.sight.Frame, w.sight.Verdict, w.sight.Serial, w.sight.Time = p, f, v, f.Serial, time.Duration(f.Serial)
	w.s.Observe(&w.sight)
}

func (w *fakeWorker) meet(from dataplane.Side, f *packet.Frame) {
	w.serial++
	f.Serial = w.serial
	w.sight = dataplane.Sighting{From: from}
	w.see(dataplane.AtRead, f, packet.None)
}

// out is the way of a packet from the TAP to the peer.
func (w *fakeWorker) out(f *packet.Frame, known bool, fate packet.Verdict) {
	w.meet(dataplane.TAP, f)
	hit := conntrack.Hit{ID: 77}
	if known {
		w.sight.Flow, w.sight.Known = hit, true
		w.see(dataplane.AtFlow, f, packet.None)
	}
	w.see(dataplane.AtRoute, f, packet.None)
	f.Remote = testPeer.Endpoint
	header, _ := f.Prepend(8)
	copy(header, []byte{8, 0, 0, 0, 0, 0, 1, 0})
	w.sight.Peer = testPeer
	w.see(dataplane.AtEncap, f, packet.None)
	if !known && fate != packet.DropFlowTableFull {
		w.sight.Flow = hit
		w.see(dataplane.AtFlow, f, packet.None)
	}
	point := dataplane.AtSent
	if fate.Dropped() {
		point = dataplane.AtDrop
	}
	if fate != packet.DropFlowTableFull {
		w.sight = dataplane.Sighting{} // at the flush nothing is repeated
	}
	w.see(point, f, fate)
}

// in is the way of a packet from the peer to the TAP.
func (w *fakeWorker) in(f *packet.Frame, fate packet.Verdict) {
	f.Remote = testPeer.Endpoint
	w.meet(dataplane.Underlay, f)
	if fate == packet.DropVNI {
		w.see(dataplane.AtDrop, f, fate)
		return
	}
	f.Strip(8)
	w.sight.Peer = testPeer
	w.see(dataplane.AtDecap, f, packet.None)
	if fate == packet.DropTTL {
		w.see(dataplane.AtDrop, f, fate)
		return
	}
	w.sight.Flow, w.sight.Known = conntrack.Hit{ID: 78}, true
	w.see(dataplane.AtFlow, f, packet.None)
	w.sight = dataplane.Sighting{}
	w.see(dataplane.AtSent, f, fate)
}

// An outcome is what a test compares of a Record.
type outcome struct {
	Name    string
	Verdict packet.Verdict
	Peer    string
	Flow    uint64
	Flags   Flags
	Length  int
}

// records takes everything out of a session.
func records(t testing.TB, s *Session) []Record {
	t.Helper()
	var stream bytes.Buffer
	ended, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("enough"))
	if err := s.Run(ended, &stream, func() {}); err != nil {
		t.Fatal(err)
	}
	all, _, end := readStream(t, &stream)
	if end != "enough" {
		t.Errorf("the stream ends with %q", end)
	}
	return all
}

func readStream(t testing.TB, from io.Reader) (all []Record, stats map[int]Statistics, end string) {
	t.Helper()
	r := NewReader(bufio.NewReader(from))
	stats = map[int]Statistics{}
	for {
		e, err := r.Next()
		switch {
		case err != nil:
			t.Fatal(err)
		case e.Packet != nil:
			one := *e.Packet
			one.Data = bytes.Clone(one.Data)
			all = append(all, one)
		case e.Stats != nil:
			stats[e.Stats.Interface] = *e.Stats
		default:
			return all, stats, e.End
		}
	}
}

func udpTo(t testing.TB, dst string, payload int) []byte {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{10, 0, 1, 9}, DstIP: net.ParseIP(dst)}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: mac, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(make([]byte, payload)))
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func vxlanOf(inner []byte) []byte { return append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner...) }
