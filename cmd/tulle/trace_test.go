package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/scripts/lab"
)

// A tracing is a tulle trace that runs.
type tracing struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    bytes.Buffer
	stderr *bufio.Scanner
}

// startTrace starts tulle trace -o json on a node and returns once it follows packets, on both nodes if other is not 0.
func startTrace(t *testing.T, l *lab.Lab, node, other int, args ...string) *tracing {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"trace", "-o", "json", "--timeout", "20s", "--run-dir", l.Nodes()[node-1].RunDir}, args...)
	if other != 0 {
		args = append(args, "--peer-run-dir", l.Nodes()[other-1].RunDir)
	}
	tr := &tracing{t: t, cmd: exec.CommandContext(t.Context(), self, args...)}
	tr.cmd.Env = append(os.Environ(), asTulle+"=1")
	tr.cmd.Stdout = &tr.out
	pipe, err := tr.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.cmd.Process.Kill(); tr.cmd.Wait() })
	tr.stderr = bufio.NewScanner(pipe)
	if !tr.stderr.Scan() || !strings.HasPrefix(tr.stderr.Text(), "following packets on ") {
		t.Fatalf("tulle %s: %s", strings.Join(args, " "), tr.stderr.Text())
	}
	return tr
}

// packets waits for the end and returns what was shown, and how many were missed.
func (tr *tracing) packets() (all []tracedPacket, missed int) {
	tr.t.Helper()
	last := ""
	for tr.stderr.Scan() {
		last = tr.stderr.Text()
	}
	if err := tr.cmd.Wait(); err != nil {
		tr.t.Fatalf("tulle trace: %v: %s", err, last)
	}
	var shown int
	if _, err := fmt.Sscanf(last, "%d packets, %d missed", &shown, &missed); err != nil {
		tr.t.Fatalf("tulle trace ends with %q", last)
	}
	for d := json.NewDecoder(&tr.out); ; {
		var p tracedPacket
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, missed
		} else if err != nil {
			tr.t.Fatal(err)
		}
		if p.SchemaVersion != schemaVersion || p.Number != len(all)+1 {
			tr.t.Errorf("packet %d: %+v", len(all)+1, p)
		}
		all = append(all, p)
	}
}

func stagesOf(w *wayReport) (names []string) {
	for _, s := range w.Stages {
		names = append(names, s.Stage)
	}
	return names
}

// checkWays demands that a packet passed every stage of both nodes, in time order, to the pod.
func checkWays(t *testing.T, p *tracedPacket, from, to string) {
	t.Helper()
	text := &strings.Builder{}
	writeTraced(text, p)
	if p.Verdict != "delivered" || p.Cause != packet.Delivered.Cause() || len(p.Ways) != 2 || p.Ways[0].Node != from || p.Ways[1].Node != to {
		t.Fatalf("not from %s to %s:\n%s", from, to, text)
	}
	out, in := p.Ways[0], p.Ways[1]
	wantOut, wantIn := []string{"read", "route", "encap", "flow", "sent"}, []string{"read", "decap", "flow", "sent"}
	if !out.Stages[slices.Index(stagesOf(out), "flow")].FlowNew {
		wantOut = []string{"read", "flow", "route", "encap", "sent"}
	}
	if !slices.Equal(stagesOf(out), wantOut) || !slices.Equal(stagesOf(in), wantIn) || out.Verdict != "encapsulated" || in.Verdict != "delivered" || out.Peer != to || in.Peer != from {
		t.Errorf("stages are missing or in another order:\n%s", text)
	}
	for _, w := range p.Ways {
		if !slices.IsSortedFunc(w.Stages, func(a, b stageReport) int { return int(1e3 * (a.Microseconds - b.Microseconds)) }) {
			t.Errorf("the stages of %s are not in time order:\n%s", w.Node, text)
		}
	}
	if !p.OneClock || p.OneWayMicroseconds == nil || *p.OneWayMicroseconds <= 0 || *p.OneWayMicroseconds > 5e6 {
		t.Errorf("from encap to read is no time on one axis:\n%s", text)
	}
	t.Logf("%s", text)
}

// noObservers demands that the nodes' engines are observed by nobody, soon.
func noObservers(t *testing.T, l *lab.Lab, nodes ...int) {
	t.Helper()
	for _, i := range nodes {
		eventually(t, fmt.Sprintf("no observer on node %d", i), func() bool { return status(t, l, i).Engine.Observers == 0 })
	}
}

// TestTrace follows a ping and a TCP connection between pods through two nodes, in both families.
func TestTrace(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Family: lab.FamilyDual})
	one, two := l.Nodes()[0], l.Nodes()[1]
	for i, to := range two.Pods[0].Addrs() {
		from := one.Pods[0].Addrs()[i]
		proto := []string{"icmp", "icmpv6"}[i]
		p := lab.Pair{From: one.Pods[0].Namespace, To: two.Pods[0].Namespace, Addr: to}

		there := startTrace(t, l, 1, 2, "-c", "2", "--proto", proto, "--src", from.String(), "--dst", to.String())
		back := startTrace(t, l, 1, 2, "-c", "2", "--proto", proto, "--dst", from.String(), "--src", to.String())
		if n := status(t, l, 2).Engine.Observers; n != 2 {
			t.Errorf("%d observers during two traces", n)
		}
		pingAll(t, []lab.Pair{p}, bench.Ping{Count: 2, Size: 56, Interval: 50 * time.Millisecond, Timeout: 2 * time.Second})
		for tr, ends := range map[*tracing][2]string{there: {"n1", "n2"}, back: {"n2", "n1"}} {
			all, missed := tr.packets()
			if len(all) != 2 || missed != 0 {
				t.Fatalf("%d packets and %d missed", len(all), missed)
			}
			for _, p := range all {
				checkWays(t, &p, ends[0], ends[1])
			}
			if !strings.HasPrefix(all[0].Packet.Message, "echo re") || all[1].Packet.Seq != all[0].Packet.Seq+1 {
				t.Errorf("%+v and %+v are not two echo messages", all[0].Packet, all[1].Packet)
			}
		}

		tcp := startTrace(t, l, 1, 2, "-c", "3", "--proto", "tcp", "--src", from.String())
		transfer(t, p, 1<<20)
		all, _ := tcp.packets()
		if len(all) != 3 {
			t.Fatalf("%d packets of TCP", len(all))
		}
		for i, want := range []string{"SYN", "ACK"} {
			checkWays(t, &all[i], "n1", "n2")
			if all[i].Packet.Message != want {
				t.Errorf("packet %d of a connection: %s, want %s", i+1, all[i].Packet.Message, want)
			}
		}
	}
	super := startTrace(t, l, 1, 2, "-c", "200", "--proto", "tcp", "--timeout", "2s", "--src", one.Pods[0].Addr.String())
	transfer(t, between(l, 1, 2), 4<<20)
	all, _ := super.packets()
	most := slices.MaxFunc(all, func(a, b tracedPacket) int { return a.Ways[0].Segments - b.Ways[0].Segments })
	arrived := 0 // whole, or in pieces that the other engine joined, maybe with what came behind
	for _, w := range most.Ways[1:] {
		arrived += w.Segments
	}
	if sent := most.Ways[0].Segments; sent < 2 || arrived < sent || most.Verdict != "delivered" {
		t.Errorf("of a super-packet of %d segments %d arrived", sent, arrived)
	}
	noObservers(t, l, 1, 2)
}

// vxlanPacket is a UDP packet in VXLAN.
func vxlanPacket(t *testing.T, vni uint32, dstMAC string, src, dst netip.Addr) []byte {
	t.Helper()
	mac, err := net.ParseMAC(dstMAC)
	if err != nil {
		t.Fatal(err)
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	udp := &layers.UDP{SrcPort: 7, DstPort: 9}
	udp.SetNetworkLayerForChecksum(ip)
	buf := gopacket.NewSerializeBuffer()
	err = gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.VXLAN{ValidIDFlag: true, VNI: vni},
		&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4},
		ip, udp, gopacket.Payload("tulle"))
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// sendTo sends a datagram to the tunnel of a node from an address of another one.
func sendTo(t *testing.T, from lab.Node, source netip.Addr, to lab.Node, datagram []byte) {
	t.Helper()
	in(t, from, func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.PublicIP, 8472)))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(datagram)
		return err
	})
}

// TestTraceDrops makes drops of several kinds and demands that each says its cause, and that what the engine tells the sender is
// shown as being about it.
func TestTraceDrops(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
	one, two := l.Nodes()[0], l.Nodes()[1]
	pod, far := one.Pods[0], two.Pods[0]
	stranger := netip.MustParseAddr("192.168.77.250")
	in(t, two, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: stranger.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	})
	absent := netip.MustParseAddr("10.244.77.7")
	for _, c := range []struct {
		verdict packet.Verdict
		filter  []string
		send    func()
		stages  []string
		found   string // at the first stage
		told    string // what the engine tells the sender
	}{
		{packet.DropUnknownPeer, []string{"--src", far.Addr.String()}, func() {
			sendTo(t, two, stranger, one, vxlanPacket(t, 1, one.VtepMAC, far.Addr, pod.Addr))
		}, []string{"read", "drop"}, "from 192.168.77.250:", ""},
		{packet.DropVNI, []string{"--dst", pod.Addr.String(), "--dport", "9"}, func() {
			sendTo(t, two, two.PublicIP, one, vxlanPacket(t, 7, one.VtepMAC, far.Addr, pod.Addr))
		}, []string{"read", "drop"}, "VNI 7", ""},
		{packet.DropOtherMAC, []string{"--peer", "n2"}, func() {
			sendTo(t, two, two.PublicIP, one, vxlanPacket(t, 1, two.VtepMAC, far.Addr, pod.Addr))
		}, []string{"read", "drop"}, "to MAC " + two.VtepMAC, ""},
		{packet.DropInnerSource, []string{"--peer", "n2", "--src", absent.String()}, func() {
			sendTo(t, two, two.PublicIP, one, vxlanPacket(t, 1, one.VtepMAC, absent, pod.Addr))
		}, []string{"read", "drop"}, "from 192.168.77.2:", ""},
		{packet.DropReject, []string{"--dst", absent.String()}, func() {
			ping(t, lab.Pair{From: pod.Namespace, Addr: absent}, bench.Ping{Count: 1, Timeout: 200 * time.Millisecond})
		}, []string{"read", "route", "drop"}, "from the TAP, TTL ", "destination unreachable"},
		{packet.DropTooBig, []string{"--dst", far.Addr.String()}, func() {
			if err := l.SetNodeMTU(1, 1400); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the narrow path", func() bool { return pathMTUs(t, l, 1, "n2")[two.PublicIP] == 1350 })
			ping(t, between(l, 1, 2), bench.Ping{Count: 1, Size: 1422, DF: true, Timeout: 200 * time.Millisecond})
		}, []string{"read", "route", "drop"}, "from the TAP, TTL ", "fragmentation needed"},
	} {
		t.Run(c.verdict.String(), func(t *testing.T) {
			tr := startTrace(t, l, 1, 0, append(c.filter, "--drops", "-c", "1")...)
			c.send()
			all, _ := tr.packets()
			text := &strings.Builder{}
			for _, p := range all {
				writeTraced(text, &p)
			}
			t.Logf("\n%s", text)
			if len(all) == 0 || all[0].Verdict != c.verdict.String() || all[0].Cause != c.verdict.Cause() || !slices.Equal(stagesOf(all[0].Ways[0]), c.stages) ||
				!strings.Contains(all[0].Ways[0].Stages[0].Found, c.found) {
				t.Fatalf("not %s, but\n%s", c.verdict, text)
			}
			if c.told == "" && len(all) != 1 || c.told != "" && (len(all) != 2 || all[1].About != 1 || all[1].Packet.Message != c.told || all[1].Verdict != "delivered") {
				t.Errorf("the engine told %q, want %q", text, c.told)
			}
		})
	}
	noObservers(t, l, 1)
}

// TestTraceJoinsDrop demands of a packet that the other node drops both halves, and that node's reason.
func TestTraceJoinsDrop(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
	one, two := l.Nodes()[0], l.Nodes()[1]
	foreign := netip.MustParseAddr("10.244.99.9")
	tr := startTrace(t, l, 1, 2, "-c", "1", "--src", foreign.String(), "--drops")
	in(t, one, func() error { // the node itself sends from an address of nobody's
		link, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: foreign.AsSlice(), Mask: net.CIDRMask(32, 32)}})
		}
		if err != nil {
			return err
		}
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(foreign, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(two.Pods[0].Addr, 9)))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("tulle"))
		return err
	})
	all, _ := tr.packets()
	if len(all) != 1 || len(all[0].Ways) != 2 || all[0].Ways[0].Verdict != "encapsulated" || all[0].Verdict != "drop_inner_source" || all[0].Ways[1].Peer != "n1" {
		t.Errorf("not one packet that n2 drops: %+v", all)
	}
}

// TestTraceSessions begins and ends many traces and demands that nothing is left of them; it runs as many as there may be, and kills
// one's client.
func TestTraceSessions(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
	n := l.Nodes()[0]
	begin := func(ctx context.Context) (ended chan error) {
		head, ended := make(chan bool), make(chan error, 1)
		go func() {
			ended <- follow(ctx, n.RunDir, pathTrace, func(line traceLine) error {
				if line.Head != nil {
					close(head)
				}
				return nil
			})
		}()
		select {
		case <-head:
		case err := <-ended:
			ended <- err
		}
		return ended
	}
	before := openFiles(t, n.PID)
	for range 100 / maxTraces {
		ctx, cancel := context.WithCancel(t.Context())
		var running []chan error
		for range maxTraces {
			running = append(running, begin(ctx))
		}
		if err := <-begin(ctx); err == nil || !strings.Contains(err.Error(), "8 traces run on this node already") {
			t.Errorf("one trace too many: %v", err)
		}
		pingAll(t, []lab.Pair{between(l, 1, 2)}, bench.Ping{Count: 1, Timeout: 2 * time.Second})
		cancel()
		for _, r := range running {
			<-r
		}
		noObservers(t, l, 1)
	}
	eventually(t, "no file more than before", func() bool { return openFiles(t, n.PID) <= before })

	tr := startTrace(t, l, 1, 0)
	if err := tr.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	noObservers(t, l, 1)
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// TestTraceSurvives demands that a trace goes on when the TAP is removed and the engine made anew.
func TestTraceSurvives(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
	n := l.Nodes()[0]
	tr := startTrace(t, l, 1, 0, "--proto", "icmp", "--src", n.Pods[0].Addr.String(), "-c", "1")
	in(t, n, func() error {
		link, err := netlink.LinkByName(tapName)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	eventually(t, "another TAP", func() bool { return status(t, l, 1).TAP.Reopened == 1 })
	awaitState(t, n)
	pingUntil(t, between(l, 1, 2))
	if all, _ := tr.packets(); len(all) != 1 || all[0].Verdict != "encapsulated" {
		t.Errorf("packets after the TAP's removal: %+v", all)
	}
	noObservers(t, l, 1)
	if err := l.StopNode(t.Context(), 1, syscall.SIGTERM); err != nil { // the kernel's counters began anew with the TAP
		t.Error(err)
	}
}
