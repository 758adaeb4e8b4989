package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// A wireTap is a plain packet socket on a node's underlay, read by the test itself.
type wireTap struct {
	fd   int
	done chan struct{}
	seen [][]byte
}

func newWireTap(t *testing.T, n lab.Node, link string) *wireTap {
	t.Helper()
	w := &wireTap{done: make(chan struct{})}
	in(t, n, func() error { return w.open(link) })
	return w
}

// open opens the socket in the namespace it is called in.
func (w *wireTap) open(link string) (err error) {
	if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	i, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20)
	unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300000})
	return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: i.Index})
}

// take returns every packet of the tunnel that waits in the socket, in order, and closes it.
func (w *wireTap) take(t *testing.T, port uint16) [][]byte {
	t.Helper()
	w.drain(t, func(b []byte) {
		if isOfTunnel(b, port) {
			w.seen = append(w.seen, bytes.Clone(b))
		}
	})
	return w.seen
}

// drain shows every packet that waits in the socket, in order, and closes it.
func (w *wireTap) drain(t *testing.T, show func([]byte)) {
	t.Helper()
	defer unix.Close(w.fd)
	buf := make([]byte, 1<<18)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if err == unix.EAGAIN {
			break
		}
		if err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		show(buf[:max(n, 0)])
	}
	if s, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || s.Drops > 0 {
		t.Fatalf("the test's own socket dropped packets: %+v, %v", s, err)
	}
}

// isOfTunnel decodes with gopacket what tunnelProgram tells the kernel.
func isOfTunnel(b []byte, port uint16) bool {
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true, Lazy: true})
	if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok && ip.Protocol == layers.IPProtocolUDP && ip.FragOffset > 0 {
		return true
	}
	if f, ok := p.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment); ok && f.NextHeader == layers.IPProtocolUDP && f.FragmentOffset > 0 {
		return true
	}
	if f, ok := p.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment); ok && f.NextHeader == layers.IPProtocolUDP {
		dst := uint16(f.Payload[2])<<8 | uint16(f.Payload[3])
		return dst == port
	}
	udp, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	return ok && (uint16(udp.SrcPort) == port || uint16(udp.DstPort) == port)
}

// A filed is a packet of a file.
type filed struct {
	data   []byte
	length int
	iface  int
}

// readPcapNG reads a file with gopacket, up to its end or to where it is cut.
func readPcapNG(t *testing.T, path string) (packets []filed, ifaces []pcapgo.NgInterface) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, err := r.ReadPacketData()
		if err != nil {
			break
		}
		packets = append(packets, filed{data, ci.Length, ci.InterfaceIndex})
	}
	for i := range r.NInterfaces() {
		one, _ := r.Interface(i)
		ifaces = append(ifaces, one)
	}
	return packets, ifaces
}

// tshark dissects a file and returns a row of fields for each packet.
func tshark(t *testing.T, path string, args ...string) [][]string {
	t.Helper()
	program, err := need.Debian(t.Context(), "tshark", "tshark")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{"-n", "-r", path, "-T", "fields", "-E", "separator=/t"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Logf("tshark: %v: %s", err, &stderr)
	}
	var rows [][]string
	for line := range strings.Lines(string(out)) {
		rows = append(rows, strings.Split(strings.TrimRight(line, "\n"), "\t"))
	}
	return rows
}

// TestCaptureWire demands that a capture of the wire has the packets, bytes and order of an independent one, and that tshark sees
// through it.
func TestCaptureWire(t *testing.T) {
	for _, c := range []struct {
		name     string
		config   lab.Config
		port     uint16
		dissect  string
		ip, ends string // fields of addresses
	}{
		{"vxlan", lab.Config{Nodes: 2, Pods: 1}, 8472, "udp.port==8472,vxlan", "ip", "vxlan.vni"},
		{"ipv6", lab.Config{Nodes: 2, Pods: 1, Family: lab.FamilyV6}, 8472, "udp.port==8472,vxlan", "ipv6", "vxlan.vni"},
		{"udp", lab.Config{Nodes: 2, Pods: 1, Backend: lab.BackendUDP}, 8285, "udp.port==8285,ip", "ip", "udp.port"},
		{"packet", lab.Config{Nodes: 2, Pods: 1, NodeArgs: []string{"--underlay", underlayPacket}}, 8472, "udp.port==8472,vxlan", "ip", "vxlan.vni"},
		{"tun", lab.Config{Nodes: 2, Pods: 1, Device: lab.DeviceTUN}, 8472, "udp.port==8472,vxlan", "ip", "vxlan.vni"},
		{"water", lab.Config{Nodes: 2, Pods: 1, Device: lab.DeviceWater}, 8472, "udp.port==8472,vxlan", "ip", "vxlan.vni"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := labUnderTest(t, c.config)
			n := l.Nodes()[0]
			p := between(l, 1, 2)
			p.Addr = l.Nodes()[1].Pods[0].Addrs()[0]
			own := newWireTap(t, n, status(t, l, 1).Underlay.Link)
			file := filepath.Join(t.TempDir(), "wire.pcapng")
			cap := startCapture(t, n, "-s", "0", "-w", file, "--max-size", "0")
			pingAll(t, []lab.Pair{p}, smallPing)
			pingAll(t, []lab.Pair{p}, bench.Ping{Count: 2, Size: 9000, Timeout: 2 * time.Second})
			transfer(t, p, 1<<20)
			said := cap.stop()
			if !strings.Contains(said, " 0 missed") {
				t.Errorf("missed: %s", said)
			}
			compareWire(t, file, own.take(t, c.port))
			checkDissection(t, file, c.dissect, c.ip, c.ends, [2]netip.Addr{nodeAddr(n), nodeAddr(l.Nodes()[1])}, [2]netip.Addr{n.Pods[0].Addrs()[0], p.Addr})
		})
	}
}

func nodeAddr(n lab.Node) netip.Addr {
	if n.PublicIP.IsValid() {
		return n.PublicIP
	}
	return n.PublicIPv6
}

// compareWire holds a capture against what an independent socket saw, which was open for longer. That socket sees a send of several
// datagrams as one packet; the capture has it too, or its datagrams, all and in order.
func compareWire(t *testing.T, file string, want [][]byte) {
	t.Helper()
	got, _ := readPcapNG(t, file)
	if len(got) < 20 {
		t.Fatalf("%d packets captured", len(got))
	}
	seen := map[string][][]byte{}
	for _, b := range want {
		seen[outerFlow(b)] = append(seen[outerFlow(b)], b)
	}
	rest := map[string][]byte{} // of a send
	cut := 0
	for i, g := range got {
		flow := outerFlow(g.data)
		datagram := g.data[outerLen(g.data):]
		if len(rest[flow]) > 0 {
			if cut++; !bytes.HasPrefix(rest[flow], datagram) {
				t.Fatalf("packet %d, %d bytes of %d, is not the next datagram of a send that the test saw", i, len(g.data), g.length)
			}
			rest[flow] = rest[flow][len(datagram):]
			continue
		}
		at := slices.IndexFunc(seen[flow], func(b []byte) bool {
			return bytes.Equal(b, g.data) || len(b) > len(g.data) && bytes.HasPrefix(b[outerLen(b):], datagram)
		})
		_, begun := seen[flow+" begun"]
		if at < 0 || at > 0 && begun || g.length != len(g.data) {
			t.Fatalf("packet %d, %d bytes of %d, is not the next one that the test saw of its flow", i, len(g.data), g.length)
		}
		rest[flow] = seen[flow][at][len(g.data):]
		seen[flow], seen[flow+" begun"] = seen[flow][at+1:], nil
	}
	for flow, left := range rest {
		if len(left) > 0 {
			t.Errorf("%d bytes of the last send of %x are missing", len(left), flow)
		}
	}
	t.Logf("%d packets, %d of them cut out of sends, of %d on the wire", len(got), cut, len(want))
}

// outerLen is the length of the headers in front of a tunnel's datagram, without options.
func outerLen(b []byte) int {
	if len(b) > 12 && b[12] == 0x86 {
		return min(len(b), 14+40+8)
	}
	return min(len(b), 14+20+8)
}

// outerFlow is what packets of the wire have in common that two sockets see in one order: addresses and ports. Between flows, which
// other CPUs send and receive, each socket has an order of its own.
func outerFlow(b []byte) string {
	from, to := 26, 38
	if len(b) > 12 && b[12] == 0x86 {
		from, to = 22, 58
	}
	return string(b[min(from, len(b)):min(to, len(b))])
}

// checkDissection demands that tshark finds the tunnel and, in the pings, both pairs of addresses.
func checkDissection(t *testing.T, file, dissect, ip, mark string, nodes, pods [2]netip.Addr) {
	t.Helper()
	packets, _ := readPcapNG(t, file)
	rows := tshark(t, file, "-d", dissect, "-e", "frame.comment", "-e", ip+".src", "-e", ip+".dst", "-e", mark, "-e", "frame.interface_name")
	if len(rows) != len(packets) {
		t.Errorf("tshark reads %d packets, %d were captured", len(rows), len(packets))
	}
	ends := func(a [2]netip.Addr, b [2]netip.Addr) [2]string {
		return [2]string{fmt.Sprintf("%s,%s", a[0], b[0]), fmt.Sprintf("%s,%s", a[1], b[1])}
	}
	out, back := ends([2]netip.Addr{nodes[0], nodes[1]}, pods), ends([2]netip.Addr{nodes[1], nodes[0]}, [2]netip.Addr{pods[1], pods[0]})
	var outs, backs int
	for _, r := range rows {
		if len(r) != 5 || !strings.HasPrefix(r[0], "stage wire") {
			t.Fatalf("row %q", r)
		}
		switch [2]string{r[1], r[2]} {
		case out:
			outs++
		case back:
			backs++
		}
	}
	if outs < 10 || backs < 10 {
		t.Errorf("tshark finds %d packets %v and %d packets %v among %d; the first: %q", outs, out, backs, back, len(rows), rows[0])
	}
}
