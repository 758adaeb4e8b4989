package main

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// outWay and inWay are the halves of a packet from node a to node b.
func outWay(p packetReport, segments int, serial uint64) *wayReport {
	return &wayReport{Node: "a", From: "tap", Serial: serial, Packet: p, Wire: &p, Segments: segments, Verdict: "encapsulated", Peer: "b", Start: int64(serial) * 1000,
		Stages: []stageReport{{Stage: "read"}, {Stage: "encap", Microseconds: 5}, {Stage: "sent", Microseconds: 9}}}
}

func inWay(p packetReport, serial uint64) *wayReport {
	return &wayReport{Node: "b", From: "underlay", Serial: serial, Packet: p, Segments: 1, Verdict: "delivered", Start: int64(serial)*1000 + 7000,
		Stages: []stageReport{{Stage: "read"}, {Stage: "sent", Microseconds: 1}}}
}

// randomWire is a packet that differs from all with another n.
func randomWire(r *rand.Rand, n int) packetReport {
	p := packetReport{Src: "10.0.1.2", Dst: "10.0.2.2", SrcPort: 7, DstPort: 9, Length: 100, ID: uint32(n)}
	switch r.IntN(3) {
	case 0:
		p.Proto, p.Seq, p.Payload, p.Message = "tcp", uint32(n)*1000, 48, "ACK"
	case 1:
		p.Proto, p.Checksum = "udp", uint16(n)
	case 2:
		p.Proto, p.Seq, p.Message = "icmp", uint32(n), "echo request"
	}
	return p
}

// TestJoin shuffles both halves of packets, loses some, and demands that each finds its own, whichever came first, and that those
// without one come when their time is up.
func TestJoin(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		const n = 20
		var ways []*wayReport
		lost := map[uint64]bool{}
		for i := range n {
			serial := uint64(i + 1)
			p := randomWire(r, i)
			ways = append(ways, outWay(p, 1, serial))
			p.TTL, p.VNI = 3, new(uint32) // may change on the way
			if lost[serial] = r.IntN(4) == 0; !lost[serial] {
				ways = append(ways, inWay(p, serial))
			}
		}
		r.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
		j := traceJoiner{other: "b"}
		start := time.Now()
		for _, w := range ways {
			j.add(w, start)
		}
		joined := j.ready(start)
		for _, g := range joined {
			if len(g.ways) != 2 || g.ways[0].Node != "a" || g.ways[0].Serial != g.ways[1].Serial {
				t.Fatalf("joined: %+v", g.ways)
			}
			if us := *g.report("b", true).OneWayMicroseconds; us != 2 {
				t.Fatalf("%v µs from encap to read, want 2", us)
			}
		}
		single := j.ready(start.Add(joinWait))
		for _, g := range single {
			if len(g.ways) != 1 || !lost[g.ways[0].Serial] || g.report("b", true).NotSeenOn != "b" {
				t.Fatalf("alone: %+v", g.ways[0])
			}
		}
		if len(joined)+len(single) != n || len(j.groups) != 0 {
			t.Fatalf("%d joined and %d alone of %d", len(joined), len(single), n)
		}
	}
}

// TestJoinSegments demands that the pieces of a super-packet come to it in any order, those of others not, and that equal packets go
// to equal ones by age.
func TestJoinSegments(t *testing.T) {
	now := time.Now()
	tcp := packetReport{Proto: "tcp", Src: "10.0.1.2", Dst: "10.0.2.2", SrcPort: 7, DstPort: 9, Seq: 1<<32 - 1400, Payload: 4200, ID: 77, Message: "ACK"}
	piece := func(i uint32) packetReport {
		p := tcp
		p.Seq, p.Payload, p.ID = tcp.Seq+i*1400, 1400, tcp.ID+i
		return p
	}
	j := traceJoiner{other: "b"}
	j.add(inWay(piece(2), 1), now)
	j.add(inWay(piece(3), 2), now) // behind its end
	j.add(outWay(tcp, 3, 1), now)
	j.add(inWay(piece(1), 3), now)
	if len(j.ready(now)) != 0 {
		t.Error("ready without its first piece")
	}
	j.add(inWay(piece(0), 4), now)
	if done := j.ready(now); len(done) != 1 || len(done[0].ways) != 4 || len(j.groups) != 1 {
		t.Errorf("a super-packet and its three pieces: %d, %d left", len(done), len(j.groups))
	}

	same := packetReport{Proto: "udp", Src: "10.0.1.2", Dst: "10.0.2.2", Checksum: 5}
	j = traceJoiner{other: "b"}
	for i := range uint64(3) {
		j.add(outWay(same, 1, i), now)
	}
	for i := range uint64(3) {
		j.add(inWay(same, i), now)
	}
	for _, g := range j.ready(now) {
		if len(g.ways) != 2 || g.ways[0].Serial != g.ways[1].Serial {
			t.Errorf("equal packets are joined out of their order: %d", g.ways[0].Serial)
		}
	}
}

// TestTwoClocks demands that no time between two machines is shown.
func TestTwoClocks(t *testing.T) {
	p := packetReport{Proto: "udp", Src: "10.0.1.2", Dst: "10.0.2.2"}
	g := &traceGroup{ways: []*wayReport{outWay(p, 1, 1000), inWay(p, 1)}}
	report := g.report("b", false)
	text := &strings.Builder{}
	if err := writeTraced(text, report); err != nil || report.OneWayMicroseconds != nil {
		t.Fatalf("%v, %v", err, report.OneWayMicroseconds)
	}
	for _, want := range []string{"b  read   +0.0 µs", "a  encap  +5.0 µs", "clocks of two machines"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// TestTraceUsage demands one line for each mistake in the command line.
func TestTraceUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--proto", "carrier"}, `--proto: protocol "carrier": unknown`},
		{[]string{"--sport", "70000"}, "--sport 70000: a port from 1 to 65535 is needed"},
		{[]string{"--src", "10.0.0"}, `--src: "10.0.0": an address or a prefix`},
		{[]string{"-c", "-1"}, "--count -1: a number of packets is needed"},
		{[]string{"--sample", "7"}, "--sample 7: 1/N is needed"},
		{[]string{"--sample", "1/0"}, "--sample 1/0: 1/N is needed"},
		{[]string{"--sample", "1/8", "--peer-run-dir", "/x"}, "--sample and --peer-run-dir exclude each other"},
		{[]string{"-o", "xml"}, "-o xml: unknown format"},
	} {
		stdout, stderr, code := tulle(t, nil, nil, append([]string{"trace"}, c.args...)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("trace %v: exit %d, %q, want %q", c.args, code, stderr, c.want)
		}
	}
	for _, args := range [][]string{{"trace"}, {"ping", "n2"}} {
		if _, stderr, code := tulle(t, nil, nil, append(args, "--run-dir", t.TempDir())...); code != exitUnreachable || !strings.Contains(stderr, "no daemon answers on ") {
			t.Errorf("%v without a daemon: exit %d, %q", args, code, stderr)
		}
	}
}
