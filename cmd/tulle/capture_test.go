package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/dataplane/capture"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestCaptureKilled demands that what was written reads after kill -9, whenever that was.
func TestCaptureKilled(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n, p := l.Nodes()[0], between(l, 1, 2)
	for range 3 {
		file := filepath.Join(t.TempDir(), "killed.pcapng")
		cap := startCapture(t, n, "-s", "0", "--stage", "tap,encap,decap,drop,wire", "-w", file, "--max-size", "0")
		done := make(chan struct{})
		go func() { defer close(done); transfer(t, p, 20<<20) }()
		waitFor(t, func() bool { // something was captured: names of six interfaces are far less
			info, err := os.Stat(file)
			return err == nil && info.Size() > 1<<16
		})
		cap.cmd.Process.Signal(syscall.SIGKILL)
		<-done
		packets, ifaces := readPcapNG(t, file)
		rows := tshark(t, file, "-e", "frame.number")
		if len(packets) == 0 || len(ifaces) != 6 || len(rows) != len(packets) {
			t.Errorf("%d packets of %d interfaces read, %d by tshark", len(packets), len(ifaces), len(rows))
		}
		t.Logf("%d packets", len(packets))
	}
}

// TestCaptureFullDisk demands of a full disk that the capture ends, says so, and leaves a file of whole packets.
func TestCaptureFullDisk(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n, p := l.Nodes()[0], between(l, 1, 2)
	disk := t.TempDir()
	if err := unix.Mount("tulle-test", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(disk, 0) })
	file := filepath.Join(disk, "full.pcapng")
	cap := startCapture(t, n, "-s", "0", "--stage", "tap,wire", "-w", file)
	transfer(t, p, 5<<20)
	said := cap.wait(exitFailed)
	packets, _ := readPcapNG(t, file)
	if want := fmt.Sprintf("no space left on device: the %d packets before it are whole", len(packets)); len(packets) == 0 || !strings.Contains(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
	if rows := tshark(t, file, "-e", "frame.number"); len(rows) != len(packets) {
		t.Errorf("tshark reads %d packets of %d", len(rows), len(packets))
	}
}

// TestCaptureLimits demands that each limit ends a capture, or begins another file, where it says.
func TestCaptureLimits(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n, p := l.Nodes()[0], between(l, 1, 2)
	dir := t.TempDir()
	file := filepath.Join(dir, "a.pcapng")
	start := func(args ...string) *capturing { return startCapture(t, n, append([]string{"-w", file}, args...)...) }
	size := func(name string) int64 {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}

	cap := start("-c", "7", "-s", "60")
	pingAll(t, []lab.Pair{p}, bench.Ping{Count: 5, Timeout: time.Second})
	cap.wait(0)
	packets, _ := readPcapNG(t, file)
	if len(packets) != 7 || slices.ContainsFunc(packets, func(p filed) bool { return len(p.data) != 60 || p.length <= 60 }) {
		t.Errorf("-c 7 -s 60: %d packets, the first of %d bytes", len(packets), len(packets[0].data))
	}

	cap = start()
	transfer(t, p, 2<<20)
	said := cap.stop()
	packets, _ = readPcapNG(t, file)
	cut := 0
	for _, p := range packets {
		if len(p.data) != min(p.length, defaultSnapLen) {
			t.Fatalf("%d bytes of %d without -s", len(p.data), p.length)
		}
		if len(p.data) < p.length {
			cut++
		}
	}
	if want := fmt.Sprintf("%d of them cut to their first 2048 bytes (-s 0 keeps all)", cut); cut == 0 || !strings.Contains(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}

	begun := time.Now()
	start("--duration", "300ms").wait(0)
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("--duration 300ms took %v", took)
	}

	cap = start("--max-size", "200kB", "-s", "0")
	transfer(t, p, 2<<20)
	cap.wait(0)
	if n := size(file); n > 200e3 || n < 100e3 {
		t.Errorf("--max-size 200kB: %d bytes", n)
	}

	cap = start("--rotate-size", "200kB", "--rotate-files", "3", "-s", "0")
	transfer(t, p, 5<<20)
	said = cap.stop()
	files, err := filepath.Glob(filepath.Join(dir, "a-*.pcapng"))
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, want 3: %s", files, said)
	}
	for _, name := range files {
		packets, ifaces := readPcapNG(t, name)
		if n := size(name); n > 200e3 || len(packets) == 0 || len(ifaces) != 1 {
			t.Errorf("%s: %d bytes, %d packets, %d interfaces", name, n, len(packets), len(ifaces))
		}
	}
	if files[0] == filepath.Join(dir, "a-00001.pcapng") {
		t.Error("the first file is still there: nothing rotated")
	}

	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := tulle(t, nil, nil, "capture", "--run-dir", n.RunDir, "-w", link); code != exitFailed || !strings.Contains(errOut, "symbolic link") {
		t.Errorf("-w of a symbolic link: exit code %d, %s", code, errOut)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", st.Mode(), err)
	}
}

// TestCaptureSlowReader demands that a reader who stops does not stop the traffic, and is told what was missed.
func TestCaptureSlowReader(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n, p := l.Nodes()[0], between(l, 1, 2)
	conn, stream, hello, err := dialCapture(t.Context(), n.RunDir, (&captureOptions{stages: []string{"tap", "wire"}}).query())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	before := status(t, l, 1).Engine
	transfer(t, p, 60<<20) // nobody reads
	after := status(t, l, 1).Engine
	conn.CloseWrite()
	counts := make([]uint64, len(hello.Interfaces))
	stats := make([]capture.Statistics, len(hello.Interfaces))
	for r := capture.NewReader(stream); ; {
		e, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if e.Packet != nil {
			counts[e.Packet.Interface]++
		} else if e.Stats != nil {
			stats[e.Stats.Interface] = *e.Stats
		} else {
			break
		}
	}
	for i, s := range stats {
		if s.Missed == 0 || s.Received != counts[i]+s.Missed {
			t.Errorf("%s: %d read, %d missed, %d received", hello.Interfaces[i].Name, counts[i], s.Missed, s.Received)
		}
	}
	frames := after.Ports[0].FramesIn + after.Ports[0].FramesOut - before.Ports[0].FramesIn - before.Ports[0].FramesOut
	if got := stats[0].Received; got < frames || got > frames+100 { // some more come with the end of the transfer
		t.Errorf("the TAP's packets: %d counted by the capture, %d by the engine", got, frames)
	}
}

// TestCaptureLeavesNothing demands that a hundred captures, ended in every way, leave the daemon as it was, and that there are never more
// at a time than allowed.
func TestCaptureLeavesNothing(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n := l.Nodes()[0]
	query := (&captureOptions{stages: []string{"tap", "encap", "decap", "drop", "wire"}}).query()
	open := func() (func(), func(), error) {
		conn, stream, _, err := dialCapture(t.Context(), n.RunDir, query)
		if err != nil {
			return nil, nil, err
		}
		return func() { conn.CloseWrite(); io.Copy(io.Discard, stream); conn.Close() }, func() { conn.Close() }, nil
	}
	held := func() (fds, threads int) {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.PID))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), goroutines(t, n)
	}
	pingAll(t, l.PodPairs(), smallPing)
	fds, routines := held()
	for i := range 100 {
		end, drop, err := open()
		if err != nil {
			t.Fatalf("capture %d: %v", i, err)
		}
		if i%2 == 0 {
			end()
		} else {
			drop()
		}
		if i%4 == 3 { // those that were dropped end when the daemon notices
			waitFor(t, func() bool { now, _ := held(); return now <= fds+1 })
		}
	}
	waitFor(t, func() bool { f, r := held(); return f <= fds && r <= routines+2 })

	var ends []func()
	for range maxCaptures {
		end, _, err := open()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	if _, _, err := open(); err == nil || !strings.Contains(err.Error(), "4 captures run already") {
		t.Errorf("one too many: %v", err)
	}
	pingAll(t, l.PodPairs(), smallPing)
	for _, end := range ends {
		end()
	}
}

// TestCaptureOutlivesTAP demands that a capture goes on when the TAP is removed and made again, that a stopped daemon ends it, and that
// what is shown is what happened.
func TestCaptureOutlivesTAP(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n, p := l.Nodes()[0], between(l, 1, 2)
	cap := startCapture(t, n, "--stage", "tap,encap,decap,drop", "--inner", "icmp and host "+p.Addr.String(), "-o", "json")
	pingAll(t, []lab.Pair{p}, bench.Ping{Count: 1, Timeout: time.Second})
	in(t, n, func() error {
		link, err := netlink.LinkByName(tapName)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		return err
	})
	waitFor(t, func() bool { return status(t, l, 1).TAP.Reopened == 1 && status(t, l, 1).NotReady == "" })
	waitFor(t, func() bool { return ping(t, p, bench.Ping{Count: 1, Timeout: 200 * time.Millisecond}).Received == 1 })
	if err := l.StopNode(t.Context(), 1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if said := cap.wait(0); !strings.Contains(said, "the daemon ended") {
		t.Errorf("said %s", said)
	}
	if err := l.StartNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cap.pinged(2) // before and after
}

// TestCaptureDevices demands the engine's stages over raw sockets and over the devices of libraries too.
func TestCaptureDevices(t *testing.T) {
	for name, config := range map[string]lab.Config{
		"packet": {NodeArgs: []string{"--underlay", underlayPacket}}, "tun": {Device: lab.DeviceTUN}, "water": {Device: lab.DeviceWater},
	} {
		t.Run(name, func(t *testing.T) {
			config.Nodes, config.Pods = 2, 1
			l := labUnderTest(t, config)
			n, p := l.Nodes()[0], between(l, 1, 2)
			inner := "icmp and host " + p.Addr.String()
			file := filepath.Join(t.TempDir(), "stages.pcapng")
			shown := startCapture(t, n, "--stage", "tap,encap,decap,drop", "--inner", inner, "-o", "json")
			filed := startCapture(t, n, "--stage", "tap,encap,decap,wire", "--inner", inner, "-w", file)
			pingAll(t, []lab.Pair{p}, bench.Ping{Count: 3, Timeout: time.Second})
			shown.stop()
			filed.stop()
			shown.pinged(3)
			ends := map[string]int{}
			for _, r := range tshark(t, file, "-d", "udp.port==8472,vxlan", "-e", "frame.interface_name", "-e", "ip.dst", "-e", "icmp.type") {
				ends[strings.Join(r, " ")]++
			}
			in, outer := p.Addr.String(), l.Nodes()[1].PublicIP.String()+","+p.Addr.String()
			for _, want := range []string{"tap " + in + " 8", "encap " + outer + " 8", "eth0 " + outer + " 8", "decap " + n.Pods[0].Addr.String() + " 0"} {
				if ends[want] != 3 {
					t.Errorf("%d packets %q of %v", ends[want], want, ends)
				}
			}
		})
	}
}

// TestCaptureVerbose demands every header down to VXLAN's flags and VNI, and the reason of a drop.
func TestCaptureVerbose(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n, p := l.Nodes()[0], between(l, 1, 2)
	cap := startCapture(t, n, "-v", "--inner", "icmp and src host "+n.Pods[0].Addr.String())
	drops := startCapture(t, n, "--stage", "drop")
	pingAll(t, []lab.Pair{p}, bench.Ping{Count: 1, Size: 33, Timeout: time.Second})
	nobody := p
	nobody.Addr = netip.MustParseAddr("10.244.255.77")
	if r := ping(t, nobody, bench.Ping{Count: 1, Timeout: 200 * time.Millisecond}); r.Received > 0 {
		t.Errorf("%s answers", nobody.Addr)
	}
	cap.stop()
	drops.stop()
	shown := cap.stdout.String()
	for _, want := range []string{"wire  out " + n.PublicIP.String() + ":", "vxlan vni 1 | " + n.Pods[0].Addr.String() + " > " + p.Addr.String() + " icmp EchoRequest",
		"    VXLAN: Flags=0x08 I=true Reserved1=000000 VNI=1 Reserved2=00\n", "    UDP: SrcPort=", "DstPort=8472 ", "    ICMPv4: TypeCode=EchoRequest"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is missing in\n%s", want, shown)
		}
	}
	if strings.Contains(shown, "\x1b") {
		t.Error("escape sequences on what is no terminal")
	}
	if want := n.Pods[0].Addr.String() + " > 10.244.255.77 icmp"; !strings.Contains(drops.stdout.String(), want) || !strings.Contains(drops.stdout.String(), "verdict drop_reject") {
		t.Errorf("drops shown: %s", drops.stdout.String())
	}
}

// TestCaptureErrors demands that each mistake gets one line that names the thing, and its exit code.
func TestCaptureErrors(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--run-dir", dir}, exitUnreachable, "no daemon answers on " + dir + "/tulle.sock"},
		{[]string{"--stage", "frob"}, exitUsage, `--stage: stage "frob": unknown (allowed: tap, encap, decap, drop, wire)`},
		{[]string{"--filter", "tcp[13] & 2 != 0"}, exitUsage, `--filter: "["`},
		{[]string{"--inner", "host example.org"}, exitUsage, `--inner: "example.org"`},
		{[]string{"-s", "-1"}, exitUsage, "--snaplen -1: out of range"},
		{[]string{"-o", "xml"}, exitUsage, "-o xml: unknown format (allowed: text, json)"},
		{[]string{"-w", "x", "-v"}, exitUsage, "-w writes a file"},
		{[]string{"--rotate-size", "1MB"}, exitUsage, "--rotate-size: -w FILE is needed"},
		{[]string{"-w", "x", "--rotate-files", "3"}, exitUsage, "--rotate-size with it"},
		{[]string{"--max-size", "much"}, exitUsage, "a number of bytes is needed, such as 500kB, 100MB or 1GiB"},
		{[]string{"extra"}, exitUsage, `unexpected argument "extra"`},
	} {
		stdout, stderr, code := tulle(t, nil, nil, append([]string{"capture"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, want %d, with %q: %s", c.args, code, c.code, c.want, stderr)
		}
	}
}

// TestCaptureNeedsPrivilege demands that whoever may not talk to the daemon is told so.
func TestCaptureNeedsPrivilege(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	runtime.LockOSThread() // for a file system identity of its own
	defer runtime.UnlockOSThread()
	unix.SetfsuidRetUid(65534)
	_, _, _, err = dialCapture(t.Context(), dir, nil)
	unix.SetfsuidRetUid(0)
	if err == nil || !strings.Contains(err.Error(), "permission denied: captures are for root and the daemon's own user: run it with sudo") {
		t.Errorf("%v", err)
	}
}
