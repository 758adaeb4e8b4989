package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cni "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestCNIUnavailable asks for what cannot be: 11 while no subnet is confirmed, 50 while no daemon answers.
func TestCNIUnavailable(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0})
	n := l.Nodes()[0]
	r := newRuntime(t, n, "1.1.0")
	s := newSandbox(t, "c")
	if err := r.cni.GetStatusNetworkList(t.Context(), r.list); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	r.add(s)
	if err := l.StopNode(t.Context(), 1, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "STATUS without daemon", r.cni.GetStatusNetworkList(t.Context(), r.list), cniapi.CodeUnavailable)
	_, err := r.tryAdd(newSandbox(t, "d"), nil)
	wantCode(t, "ADD without daemon", err, cniapi.CodeUnavailable)
	wantCode(t, "DEL without daemon", r.del(s), cniapi.CodeUnavailable)
	if err := l.StartNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	r.list = conflist(t, newUnconfirmed(t), "1.1.0")
	wantCode(t, "STATUS without subnet", r.cni.GetStatusNetworkList(t.Context(), r.list), cniapi.CodeTryAgain)
	_, err = r.tryAdd(newSandbox(t, "d"), nil)
	wantCode(t, "ADD without subnet", err, cniapi.CodeTryAgain)
}

// newUnconfirmed starts a daemon of its own namespace whose store cannot give it a subnet: all of the network is reserved by
// a static peer. It returns the run directory.
func newUnconfirmed(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	runDir, peers, conf := filepath.Join(dir, "run"), filepath.Join(dir, "peers.json"), filepath.Join(dir, "net-conf.json")
	for path, content := range map[string]string{
		peers: `[{"name":"all","publicIP":"192.0.2.9","subnet":"10.99.0.0/16","backendType":"vxlan","backendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}]`,
		conf:  `{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}`,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newSandbox(t, "node")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "node", "--name", "u", "--insecure-no-key", "--config", conf, "--peers", peers, "--run-dir", runDir,
		"--state-dir", filepath.Join(dir, "state"), "--public-ip", "192.0.2.1", "--metrics-addr", "")
	cmd.Env = append(os.Environ(), asTulle+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := s.run(func() error {
		under := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "under"}, PeerName: "other"}
		addr, err := netlink.ParseAddr("192.0.2.1/24")
		return errors.Join(err, netlink.LinkAdd(under), netlink.LinkSetUp(under), netlink.AddrAdd(under, addr))
	}); err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{})
	started := make(chan error, 1)
	go s.run(func() error { // the thread that starts it must live: it is the parent of Pdeathsig
		started <- cmd.Start()
		<-held
		return nil
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); close(held) })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(runDir, socketName)); err == nil {
			return runDir
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("no socket: %s", &log)
		}
	}
}

// TestCNIRefused gives the plugin itself what no runtime should.
func TestCNIRefused(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	s := newSandbox(t, "c")
	good := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"net","type":"tulle-cni","runDir":%q}`, n.RunDir)
	with := func(key, value string) string {
		return strings.Replace(good, "{", fmt.Sprintf("{%q:%s,", key, value), 1)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, command, config string
		env                   []string
		code                  uint
	}{
		{"container ID", "ADD", good, []string{"CNI_CONTAINERID=../x"}, 4},
		{"interface", "ADD", good, []string{"CNI_IFNAME=../x"}, 4},
		{"interface dots", "ADD", good, []string{"CNI_IFNAME=.."}, 4},
		{"long interface", "ADD", good, []string{"CNI_IFNAME=abcdefghijklmnop"}, 4},
		{"namespace detour", "ADD", good, []string{"CNI_NETNS=/run/netns/../../proc/1/ns/net"}, 4},
		{"relative namespace", "ADD", good, []string{"CNI_NETNS=ns"}, 4},
		{"no namespace", "ADD", good, []string{"CNI_NETNS=" + file}, 4},
		{"other namespace", "ADD", good, []string{"CNI_NETNS=/proc/self/ns/mnt"}, 4},
		{"absent namespace", "ADD", good, []string{"CNI_NETNS=/proc/self/ns/nothing"}, 4},
		{"the node's namespace", "ADD", good, []string{fmt.Sprintf("CNI_NETNS=/proc/%d/ns/net", n.PID)}, 4},
		{"DEL detour", "DEL", good, []string{"CNI_NETNS=/a/../b"}, 4},
		{"DEL container", "DEL", good, []string{"CNI_CONTAINERID=a/b"}, 4},
		{"CHECK detour", "CHECK", good, []string{"CNI_NETNS=/a/../b"}, 4},
		{"network name", "ADD", strings.Replace(good, `"net"`, `"../net"`, 1), nil, 7},
		{"no network name", "ADD", strings.Replace(good, `"net"`, `""`, 1), nil, 7},
		{"run directory", "ADD", strings.Replace(good, n.RunDir, n.RunDir+"/../run", 1), nil, 7},
		{"relative run directory", "ADD", strings.Replace(good, n.RunDir, "run", 1), nil, 7},
		{"no JSON", "ADD", "hello", nil, 6},
		{"half JSON", "ADD", good[:20], nil, 6},
		{"empty", "ADD", "", nil, 6},
		{"list", "ADD", "[" + good + "]", nil, 6},
		{"deep", "ADD", with("x", strings.Repeat("[", 20000)), nil, 6},
		{"type", "ADD", with("dns", `"x"`), nil, 6},
		{"old version", "ADD", strings.Replace(good, "1.1.0", "0.2.0", 1), nil, 1},
		{"future version", "ADD", strings.Replace(good, "1.1.0", "9.0.0", 1), nil, 1},
		{"GC of an old version", "GC", strings.Replace(good, "1.1.0", "1.0.0", 1), nil, 1},
		{"GC without a list", "GC", good, nil, 7},
		{"CHECK without result", "CHECK", good, nil, 7},
		{"prevResult", "CHECK", with("prevResult", `{"cniVersion":"1.1.0","interfaces":[],"ips":[{"address":"10.0.0.1/32","interface":7}]}`), nil, 7},
		{"attachment", "ADD", with("attachment", `"macvlan"`), nil, 7},
		{"the node's namespace for a TAP", "ADD", with("attachment", `"tap"`), []string{fmt.Sprintf("CNI_NETNS=/proc/%d/ns/net", n.PID)}, 4},
		{"absent namespace for a TAP", "ADD", with("attachment", `"tap"`), []string{"CNI_NETNS=/proc/self/ns/nothing"}, 4},
		{"command", "FROB", good, nil, 4},
	} {
		code, out := plugin(t, c.command, c.config, s, c.env...)
		var e struct {
			CNIVersion string
			Code       uint
			Msg        string
		}
		if err := json.Unmarshal(out, &e); err != nil || code != 1 || e.Code != c.code || e.Msg == "" || e.CNIVersion == "" {
			t.Errorf("%s: exit %d, %s, want code %d (%v)", c.what, code, out, c.code, err)
		}
	}
	if links := podLinks(t, n); len(links) != 0 {
		t.Errorf("links: %v", links)
	}
	chained(t, s, with)
}

// chained puts the plugin behind another: what that one's result had stays in front.
func chained(t *testing.T, s *sandbox, with func(key, value string) string) {
	t.Helper()
	previous := `{"cniVersion":"1.1.0","interfaces":[{"name":"eth7","sandbox":"/x"}],"ips":[{"address":"192.0.2.7/24","interface":0}],"dns":{}}`
	code, out := plugin(t, "ADD", with("prevResult", previous), s)
	var r cni.Result
	if err := json.Unmarshal(out, &r); err != nil || code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if len(r.Interfaces) != 3 || r.Interfaces[0].Name != "eth7" || len(r.IPs) != 2 || *r.IPs[0].Interface != 0 || *r.IPs[1].Interface != 2 {
		t.Errorf("chained: %s", out)
	}
	if code, out := plugin(t, "CHECK", with("prevResult", string(out)), s); code != 0 {
		t.Errorf("CHECK: %s", out)
	}
	for range 2 {
		if code, out := plugin(t, "DEL", with("prevResult", previous), s, "CNI_NETNS="); code != 0 {
			t.Errorf("DEL: %s", out)
		}
	}
}

// plugin runs the binary as a runtime does.
func plugin(t testing.TB, command, config string, s *sandbox, env ...string) (exit int, stdout []byte) {
	t.Helper()
	bin, err := pluginDir()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "tulle-cni"))
	cmd.Env = append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.name, "CNI_IFNAME=eth0", "CNI_PATH=/x"}, env...)
	cmd.Stdin = strings.NewReader(config)
	out, err := cmd.Output()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out
}
