package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/scripts/lab"
)

// tulle runs one command line as its own process and returns what it printed and its exit code.
func tulle(t *testing.T, attr *syscall.SysProcAttr, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // a daemon that starts where it should refuse
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(append(os.Environ(), asTulle+"=1"), env...)
	cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = attr, &out, &errOut
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// TestErrors demands that each mistake gets one line that names the thing, and its exit code.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	conf := write("ok.json", `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`)
	dualConf := write("dual.json", `{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}}`)
	node := []string{"node", "--store", "file", "--subnet", "10.244.1.0/24", "--config", conf}
	with := func(extra ...string) []string { return append(append([]string{}, node...), extra...) }
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"frobnicate"}, 2, `unknown command "frobnicate"`},
		{[]string{"status", "--frobnicate"}, 2, "unknown flag: --frobnicate"},
		{[]string{"status", "-o", "xml"}, 2, "-o xml: unknown format (allowed: table, json)"},
		{[]string{"status", "extra"}, 2, `unexpected argument "extra"`},
		{[]string{"status", "--run-dir", dir}, 3, "no daemon answers on " + dir + "/tulle.sock"},
		{[]string{"routes", "--run-dir", dir}, 3, "start tulle node"},
		{[]string{"node", "--store", "file", "--config", conf}, 2, "--subnet is missing"},
		{[]string{"node", "--config", conf}, 2, "a cluster key is missing: make one with tulle keygen"},
		{[]string{"node", "--config", conf, "--key-file", dir + "/nokey"}, 1, "make a key with: tulle keygen -w " + dir + "/nokey"},
		{[]string{"node", "--config", conf, "--key-file", conf}, 1, "not a key of tulle keygen"},
		{[]string{"node", "--key-file", conf, "--insecure-no-key"}, 2, "exclude each other"},
		{[]string{"node", "--store", "redis"}, 2, "--store redis: unknown (allowed: gossip, etcd, file)"},
		{[]string{"node", "--store", "etcd"}, 2, "--etcd-endpoints is missing"},
		{append(node, "--etcd-endpoints", "http://127.0.0.1:1"), 2, "--etcd-endpoints with --store file: choose one of both"},
		{[]string{"node", "--etcd-endpoints", "http://127.0.0.1:1", "--etcd-password", "a", "--etcd-password-file", "b"}, 2, "--etcd-password and --etcd-password-file exclude each other"},
		{[]string{"node", "--etcd-endpoints", "http://127.0.0.1:1", "--etcd-password-file", dir + "/absent"}, 1, "--etcd-password-file: open"},
		{[]string{"node", "--etcd-endpoints", "http://127.0.0.1:1", "--subnet-lease-ttl", "1s"}, 2, "--subnet-lease-ttl 1s: out of range (allowed: 5s and more)"},
		{[]string{"node", "--etcd-endpoints", "http://127.0.0.1:1", "--subnet-lease-renew-margin", "24h"}, 2, "--subnet-lease-renew-margin 24h0m0s: out of range"},
		{[]string{"node", "--etcd-endpoints", "http://127.0.0.1:1", "--state-dir", dir + "/none"}, 1, "http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused"},
		{append(node, "--tunnel-gso", "on"), 2, "--tunnel-gso on: unknown (allowed: auto, off)"},
		{[]string{"node", "--insecure-no-key", "--gossip-port", "70000"}, 2, "--gossip-port 70000: out of range (allowed: 1 to 65535)"},
		{[]string{"keygen", "-w", conf}, 1, "is there already: a key in use is not overwritten"},
		{[]string{"config", "check"}, 2, "one file is needed"},
		{[]string{"config", "check", dir + "/absent.json"}, 1, "absent.json: no such file"},
		{[]string{"config", "check", write("comma.json", "{\n\"Network\": \"10.1.0.0/16\",\n\"SubnetMax\": \"10.1.9.0\"\n\"Backend\": {\"Type\": \"vxlan\"}\n}")}, 1, "comma.json:4:1: expected ','"},
		{[]string{"config", "check", write("type.json", `{"Network": "10.1.0.0/16", "Backend": {"Type": "carrier-pigeon"}}`)}, 1, "type.json:1:48: Backend.Type: "},
		{[]string{"node", "--store", "file", "--config", dir + "/absent.json", "--subnet", "10.244.1.0/24"}, 1, "absent.json: no such file"},
		{with("--iface", "eth9"), 1, "tulle node: --iface eth9: no such link (have: "},
		{with("--public-ip", "203.0.113.9"), 1, "--public-ip 203.0.113.9: no link has this address (have: "},
		{with("--public-ip", "nonsense"), 2, "--public-ip nonsense: an IPv4 address is needed"},
		{with("--subnet", "10.9.1.0/24"), 2, "--subnet 10.9.1.0/24: it must lie inside the cluster network 10.244.0.0/16"},
		{with("--subnet", "10.244.1.7/24"), 2, "--subnet 10.244.1.7/24 has host bits: write 10.244.1.0/24"},
		{with("--workers", "0"), 2, "--workers 0: out of range (allowed: 1 to 64)"},
		{with("--max-flows", "1000"), 2, "--max-flows 1000: out of range (allowed: 1024 to 16777216)"},
		{with("--max-flows-per-source", "-1"), 2, "--max-flows-per-source -1: out of range (allowed: 0 to 16777216)"},
		{with("--reclaim-after", "1m"), 2, "--reclaim-after 1m0s: out of range (allowed: 0, or 1h0m0s and more)"},
		{with("--ip-masq", "--config", write("mode.json", `{"Network": "10.244.0.0/16", "Mode": "flat"}`)), 2, "--ip-masq with Mode flat of net-conf.json: that mode masquerades nothing"},
		{with("--config", write("mode2.json", `{"Network": "10.244.0.0/16", "Mode": "pensinsula"}`)), 1, "mode2.json:1:38: Mode: "},
		{with("--device", "pigeon"), 2, "--device pigeon: unknown (allowed: tap, tun, water)"},
		{with("--device", "tun", "--workers", "2"), 2, "--workers 2 with --device tun: its library has a single queue, which serves one worker: leave out --workers or use --device tap"},
		{with("--device", "water", "--keep"), 2, "--keep with --device water: the device ends with its single queue: leave out --keep or use --device tap"},
		{with("--underlay", "pigeon"), 2, "--underlay pigeon: unknown (allowed: udp, packet)"},
		{with("--iface", "lo", "--peers", dir+"/none.json"), 1, "peers file: open " + dir + "/none.json: no such file"},
		{with("--iface", "lo", "--peers", write("bad1.json", `[{"name":"x","publicIP":"1.2.3.4","subnet":"10.244.2.9/24"}]`)), 1, `peer 1 ("x"): subnet 10.244.2.9/24 has host bits: write 10.244.2.0/24`},
		{with("--iface", "lo", "--peers", write("bad2.json", "[{\n\"name\":\"x\"\n\"publicIP\":1}]")), 1, "bad2.json: line 3: "},
		{with("--iface", "lo", "--peers", write("bad3.json", `[{"name":"x","publicIP":"1.2.3.4","subnet":"10.244.2.0/24","backendType":"vxlan"}]`)), 1, `backendData.VtepMAC: "" is no 48-bit MAC address`},
		{[]string{"node", "--store", "file", "--subnet", "10.244.1.0/24", "--config", write("len.json", `{"Network": "10.244.0.0/16", "SubnetLen": 31, "Backend": {"Type": "vxlan"}}`)}, 1, "len.json:1:43: SubnetLen: 31: "},
		{[]string{"node", "--store", "file", "--subnet", "10.244.1.0/24", "--config", write("wg.json", `{"Network": "10.244.0.0/16", "Backend": {"Type": "wireguard"}}`)}, 1, "Backend.Type wireguard: this version runs vxlan, udp and host-gw only"},
		{[]string{"config", "check", write("udp6.json", `{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/48"}`)}, 1, "udp6.json: EnableIPv6 is true: the udp backend carries IPv4 only: choose Backend.Type vxlan"},
		{with("--public-ipv6", "2001:db8::1"), 2, "--public-ipv6 2001:db8::1: EnableIPv6 is not true: the network has no use for it"},
		{with("--public-ipv6", "192.0.2.1"), 2, "--public-ipv6 192.0.2.1: a global IPv6 address is needed"},
		{with("--public-ipv6", "fe80::1"), 2, "--public-ipv6 fe80::1: a global IPv6 address is needed"},
		{with("--subnet", "10.244.1.0/24,fd00:244:0:1::/64"), 2, "--subnet fd00:244:0:1::/64: the cluster network has none of this family"},
		{with("--subnet", "10.244.1.0/24,10.244.2.0/24"), 2, "10.244.1.0/24 and 10.244.2.0/24 are of one family"},
		{[]string{"node", "--store", "file", "--config", dualConf, "--subnet", "10.244.1.0/24"}, 2, "--subnet 10.244.1.0/24: the IPv6 subnet is missing, such as --subnet 10.244.1.0/24,fd00:244:0:1::/64"},
		{[]string{"node", "--store", "file", "--config", dualConf, "--subnet", "fd00:244:0:1::/64"}, 2, "--subnet fd00:244:0:1::/64: the IPv4 subnet is missing, such as --subnet 10.244.1.0/24,fd00:244:0:1::/64"},
		{[]string{"node", "--store", "file", "--config", dualConf, "--subnet", "10.244.1.0/24,fd00:9::/64"}, 2, "--subnet fd00:9::/64: it must lie inside the cluster network fd00:244::/48 and be /126 or shorter"},
		{[]string{"node", "--store", "file", "--config", dualConf, "--subnet", "10.244.1.0/24,fd00:244:0:1::/64", "--iface", "lo"}, 1, "--iface lo: it has no global IPv6 address"},
	} {
		stdout, stderr, code := tulle(t, nil, nil, c.args...)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("tulle %s:\nexit %d, want %d\nstderr %q, want one line with %q\nstdout %q", strings.Join(c.args, " "), code, c.code, stderr, c.want, stdout)
		}
	}
}

// TestNotRoot demands one clear sentence and exit 2 from everything that needs root.
func TestNotRoot(t *testing.T) {
	// Somebody else must be able to run the test binary.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tulle-notroot")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	binary := filepath.Join(dir, "tulle")
	copyFile(t, self, binary)
	for _, args := range [][]string{{"node", "--insecure-no-key"}, {"lab", "up"}, {"lab", "down"}} {
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Env = append(os.Environ(), asTulle+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != exitUsage || !strings.Contains(string(out), "needs root") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("tulle %v as nobody: exit %d, %q", args, code, out)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestStatusAndRoutes reads a daemon's reports as a script would, and as a person would.
func TestStatusAndRoutes(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
	runDir := l.Nodes()[0].RunDir
	var routes routesReport
	out, _, code := tulle(t, nil, []string{"TULLE_RUN_DIR=" + runDir}, "routes", "-o", "json")
	if err := json.Unmarshal([]byte(out), &routes); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, out)
	}
	kinds := map[string]string{}
	for _, r := range routes.Routes {
		kinds[r.Prefix] = r.Kind + r.Peer
	}
	for p, want := range map[string]string{"10.244.0.0/16": "reject", "10.244.1.0/24": "local", "10.244.1.0/32": "host", "10.244.2.0/24": "peern2", "10.244.1.254/32": "reject"} {
		if kinds[p] != want {
			t.Errorf("route %s is %q, want %q", p, kinds[p], want)
		}
	}
	r := status(t, l, 1)
	if r.SchemaVersion != 1 || r.Node.Name != "n1" || r.Node.Subnet != "10.244.1.0/24" || r.Node.Backend != "vxlan" || r.Node.MTU != 1450 || len(r.Verdicts) == 0 || len(r.Problems) != 0 {
		t.Errorf("status %+v", r)
	}
	for _, command := range []string{"status", "routes"} {
		if out, _, code := tulle(t, nil, nil, command, "--run-dir", runDir); code != 0 || !strings.Contains(out, "n2") {
			t.Errorf("tulle %s: exit %d: %s", command, code, out)
		}
	}
	if info, err := os.Stat(filepath.Join(runDir, socketName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v %v, want mode 0600", info, err)
	}
}

// TestCleanUp demands that SIGTERM leaves nothing of the daemon's in the kernel, and --keep all of it; and that a daemon
// takes over what a kept or killed one left.
func TestCleanUp(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep=%t", keep), func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, NodeArgs: []string{fmt.Sprintf("--keep=%t", keep)}})
			if !kernelState(t, l.Nodes()[1]) {
				t.Error("no kernel state while the daemon runs")
			}
			stop := func() {
				if err := l.StopNode(t.Context(), 2, syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if left := kernelState(t, l.Nodes()[1]); left != keep {
					t.Errorf("kernel state there after SIGTERM: %t", left)
				}
			}
			stop()
			if err := l.StartNode(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			pingAll(t, l.PodPairs(), smallPing)
			stop()
		})
	}
}

// kernelState reports whether the TAP and both routes are there; part of it is an error.
func kernelState(t *testing.T, n lab.Node) bool {
	t.Helper()
	found := 0
	err := lab.In(n.Namespace, func() error {
		if _, err := netlink.LinkByName(tapName); err == nil {
			found++
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, 0)
		for _, r := range routes {
			dst, ok := netip.AddrFromSlice(r.Dst.IP.To4())
			switch {
			case ok && r.Type == unix.RTN_UNREACHABLE && dst == n.Subnet.Addr():
				found++
			case r.Dst.String() == "10.244.0.0/16":
				found++
			}
		}
		return err
	})
	if err != nil || found != 0 && found != 3 {
		t.Fatalf("%d of 3 parts of the kernel state, %v", found, err)
	}
	return found == 3
}

// TestPeersChange demands that a changed peers file is taken at once, and that a broken one changes nothing.
func TestPeersChange(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Store: lab.StoreFile})
	path := filepath.Join(l.Dir(), "peers.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, content string
		peers         int
		problem, ping bool
	}{
		{"broken", "[{", 1, true, true},
		{"empty", "[]", 0, false, false},
		{"good", string(good), 1, false, true},
	} {
		if err := os.WriteFile(path, []byte(c.content), 0o644); err != nil {
			t.Fatal(err)
		}
		awaitStatus(t, l, func(r *statusReport) bool { return len(r.Peers) == c.peers && (len(r.Problems) > 0) == c.problem })
		if c.ping {
			pingAll(t, l.PodPairs(), smallPing)
		}
	}
}

func awaitStatus(t *testing.T, l *lab.Lab, ok func(*statusReport) bool) {
	t.Helper()
	for _, n := range l.Nodes() {
		if n.PID == 0 {
			continue
		}
		deadline := time.Now().Add(5 * time.Second)
		for !ok(status(t, l, n.Number)) {
			if time.Now().After(deadline) {
				t.Fatalf("node %s: %+v", n.Name, status(t, l, n.Number))
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// TestSecondDaemon demands that a second daemon in a namespace is refused and harms nothing.
func TestSecondDaemon(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1})
	n := l.Nodes()[0]
	second := func(runDir string) (out string) {
		err := lab.In(n.Namespace, func() error {
			_, out, _ = tulle(t, nil, nil, "node", "--store", "file", "--subnet", n.Subnet.String(), "--public-ip", n.PublicIP.String(), "--run-dir", runDir)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := second(n.RunDir); !strings.Contains(out, "another daemon uses it") {
		t.Errorf("same run directory: %s", out)
	}
	if out := second(t.TempDir()); !strings.Contains(out, "tulle-tap") && !strings.Contains(out, "8472") {
		t.Errorf("other run directory: %s", out)
	}
	pingAll(t, l.PodPairs(), smallPing)
}
