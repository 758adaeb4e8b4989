package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// A stockRuntime is a container runtime on a node whose plugins run there: the reference plugins have no daemon that does.
type stockRuntime struct {
	*cniRuntime
	n   lab.Node
	dir string // of host-local's addresses
}

func newStockRuntime(t *testing.T, n lab.Node, plugins func(dataDir string) []map[string]any) *stockRuntime {
	t.Helper()
	if err := upstreamPlugins(); err != nil {
		t.Fatal(err)
	}
	r := &stockRuntime{newRuntime(t, n, "1.1.0"), n, t.TempDir()}
	data, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": cniNetwork, "plugins": plugins(r.dir)})
	if err == nil {
		r.list, err = libcni.ConfListFromBytes(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *stockRuntime) at(f func() error) error { return lab.In(r.n.Namespace, f) }

func (r *stockRuntime) tryAdd(s *sandbox, capabilities map[string]any) (result *cni.Result, err error) {
	err = r.at(func() error { result, err = r.cniRuntime.tryAdd(s, capabilities); return err })
	return result, err
}

func (r *stockRuntime) add(s *sandbox, capabilities map[string]any) (addrs []netip.Addr) {
	r.t.Helper()
	result, err := r.tryAdd(s, capabilities)
	if err != nil {
		r.t.Fatal(err)
	}
	return addrsOf(result)
}

func (r *stockRuntime) check(s *sandbox, capabilities map[string]any) error {
	rt := s.config("eth0")
	rt.CapabilityArgs = capabilities
	return r.at(func() error { return r.cni.CheckNetworkList(r.t.Context(), r.list, rt) })
}

func (r *stockRuntime) del(s *sandbox, capabilities map[string]any) error {
	return r.at(func() error { return r.delWith(s, capabilities) })
}

// held lists the addresses that host-local has given away.
func (r *stockRuntime) held() (addrs []string) {
	files, _ := filepath.Glob(filepath.Join(r.dir, cniNetwork, "*"))
	for _, f := range files {
		name := strings.ReplaceAll(filepath.Base(f), "_", ":")
		if _, err := netip.ParseAddr(name); err == nil {
			addrs = append(addrs, name)
		}
	}
	return addrs
}

// TestUpstreamIPAM gives containers the addresses of the plugin host-local, out of the node's subnet.
func TestUpstreamIPAM(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile, Family: lab.FamilyDual})
	n := l.Nodes()[0]
	r := newStockRuntime(t, n, func(dir string) []map[string]any {
		return []map[string]any{{"type": "tulle-cni", "runDir": n.RunDir, "ipam": map[string]any{"type": "host-local", "dataDir": dir}}}
	})
	a, b := newSandbox(t, "a"), newSandbox(t, "b")
	addrs := r.add(a, nil)
	if len(addrs) != 2 || addrs[0].String() != "10.244.1.2" || addrs[1].String() != "fd44:0:0:1::2" {
		t.Errorf("addresses %v", addrs)
	}
	others := r.add(b, nil)
	for i, addr := range others {
		reach(t, a.run, addr)
		reach(t, inNode(n), addrs[i])
	}
	if err := errors.Join(r.check(a, nil), r.check(b, nil)); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if _, err := r.tryAdd(a, nil); err == nil {
		t.Error("ADD twice")
	}
	if held := r.held(); len(held) != 4 {
		t.Errorf("host-local holds %v after an ADD that failed", held)
	}
	if err := r.at(func() error {
		return r.cni.GCNetworkList(t.Context(), r.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "b", IfName: "eth0"}}})
	}); err != nil {
		t.Error(err)
	}
	if held := r.held(); fmt.Sprint(held) != fmt.Sprint([]string{others[0].String(), others[1].String()}) {
		t.Errorf("host-local holds %v after GC, want %v", held, others)
	}
	for range 2 {
		if err := r.del(b, nil); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	if held := r.held(); len(held) != 0 {
		t.Errorf("host-local holds %v after DEL", held)
	}
	traceless(t, n)
}

// TestUpstreamIPAMRefused names what is no plugin, and addresses that are not the node's: nothing is left of either.
func TestUpstreamIPAMRefused(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	s := newSandbox(t, "c")
	for what, c := range map[string]struct {
		ipam map[string]any
		want string
	}{
		"a path":               {map[string]any{"type": "../../bin/sh"}, "invalid plugin name"},
		"no plugin":            {map[string]any{"type": "tulle-no-such-plugin"}, "tulle-no-such-plugin"},
		"another node's":       {map[string]any{"type": "host-local", "ranges": [][]map[string]any{{{"subnet": "10.244.9.0/24"}}}}, "not of this node's pods"},
		"the node's addresses": {map[string]any{"type": "host-local", "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.254", "rangeEnd": "10.244.1.254", "gateway": "10.244.1.1"}, "node's own"},
	} {
		r := newStockRuntime(t, n, func(dir string) []map[string]any {
			c.ipam["dataDir"] = dir
			return []map[string]any{{"type": "tulle-cni", "runDir": n.RunDir, "ipam": c.ipam}}
		})
		if _, err := r.tryAdd(s, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
		if held := r.held(); len(held) != 0 {
			t.Errorf("%s: host-local holds %v", what, held)
		}
	}
	if links := podLinks(t, n); len(links) != 0 {
		t.Errorf("links: %v", links)
	}
}

// TestChained puts portmap, bandwidth and tuning of the reference plugins behind this one, with and without masquerading.
func TestChained(t *testing.T) {
	if _, err := need.Debian(t.Context(), "nft", "nftables"); err != nil { // portmap runs it
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"flat": nil, "island": {"--ip-masq"}} {
		t.Run(name, func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Routed: true, NodeArgs: args})
			n := l.Nodes()[0]
			r := newStockRuntime(t, n, func(string) []map[string]any {
				return []map[string]any{
					{"type": "tulle-cni", "runDir": n.RunDir},
					{"type": "portmap", "backend": "nftables", "capabilities": map[string]bool{"portMappings": true}},
					{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
					{"type": "tuning", "sysctl": map[string]string{"net.core.somaxconn": "1234"}},
				}
			})
			s := newSandbox(t, "c")
			asked := ports(cniapi.Port{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, cniapi.Port{HostPort: 8080, ContainerPort: 80, Protocol: "udp"})
			asked["bandwidth"] = cniapi.Bandwidth{EgressRate: 20e6, EgressBurst: 1 << 20}
			addr := r.add(s, asked)[0]
			serve(t, s.run, "c", 80)
			waitFor(t, func() bool {
				_, err := inquire(outside, "tcp", netip.AddrPortFrom(n.PublicIP, 8080))
				return err == nil
			})
			for what, from := range map[string]place{"outside": outside, "the node": inNode(n), "itself": s.run} {
				for _, protocol := range []string{"tcp", "udp"} {
					if got, err := inquire(from, protocol, netip.AddrPortFrom(n.PublicIP, 8080)); err != nil {
						t.Errorf("%s from %s: %q (%v)", protocol, what, got, err)
					}
				}
			}
			if got := rate(t, s.run, inNode(n), n.PublicIP, 4<<20); got > 60e6 {
				t.Errorf("%.1f Mbit/s", got/1e6)
			}
			if err := s.run(func() error {
				max, err := os.ReadFile("/proc/sys/net/core/somaxconn")
				if strings.TrimSpace(string(max)) != "1234" {
					t.Errorf("somaxconn %s", max)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
			reach(t, inNode(n), addr)
			if err := r.check(s, asked); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if err := r.del(s, asked); err != nil {
				t.Errorf("DEL: %v", err)
			}
			traceless(t, n)
		})
	}
}

// TestBridge is pods on the bridge cni0 of two nodes, with the reference plugins as flannel's plugin calls them, from subnet.env alone, and
// with this plugin's own attachment. They reach all others and the nodes, also after the daemons were killed.
func TestBridge(t *testing.T) {
	for name, plugin := range map[string]func(t *testing.T, n lab.Node, dir string) map[string]any{
		"flannel": fromSubnetEnv,
		"own": func(t *testing.T, n lab.Node, dir string) map[string]any {
			return map[string]any{"type": "tulle-cni", "runDir": n.RunDir, "attachment": "bridge", "ipam": map[string]any{"type": "host-local", "dataDir": dir}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0, Family: lab.FamilyDual, NodeArgs: []string{"--ip-masq"}})
			var runtimes []*stockRuntime
			var boxes []*sandbox
			var addrs [][]netip.Addr
			for i, n := range l.Nodes() {
				r := newStockRuntime(t, n, func(dir string) []map[string]any { return []map[string]any{plugin(t, n, dir)} })
				// The lab's nodes make no link-local addresses, without which a bridge asks for nobody's MAC.
				if err := r.at(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("0"), 0o644) }); err != nil {
					t.Fatal(err)
				}
				for j := range 2 {
					s := newSandbox(t, fmt.Sprintf("n%d-%d", i+1, j+1))
					runtimes, boxes, addrs = append(runtimes, r), append(boxes, s), append(addrs, r.add(s, nil))
				}
			}
			all := func() {
				t.Helper()
				for i, from := range boxes {
					for j := range boxes {
						for _, a := range addrs[j] {
							if i != j {
								reach(t, from.run, a)
							}
						}
					}
					for _, n := range l.Nodes() {
						reach(t, from.run, n.PublicIP)
						for _, a := range addrs[i] {
							reach(t, inNode(n), a)
						}
					}
				}
			}
			all()
			for i := range l.Nodes() {
				if err := errors.Join(l.StopNode(t.Context(), i+1, syscall.SIGKILL), l.StartNode(t.Context(), i+1)); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, func() bool { r := pingFrom(t, boxes[0].run, addrs[2][0]); return r.Lost() == 0 })
			all()
			for i, s := range boxes {
				if err := errors.Join(runtimes[i].check(s, nil), runtimes[i].del(s, nil), runtimes[i].del(s, nil)); err != nil {
					t.Error(err)
				}
				if err := s.run(func() error { _, err := netlink.LinkByName("eth0"); return err }); !errors.As(err, new(netlink.LinkNotFoundError)) {
					t.Errorf("eth0 after DEL: %v", err)
				}
			}
			for _, r := range runtimes {
				if held := r.held(); len(held) != 0 {
					t.Errorf("host-local holds %v", held)
				}
			}
		})
	}
}

// fromSubnetEnv is the configuration that flannel's plugin gives the plugin bridge for what subnet.env says.
func fromSubnetEnv(t *testing.T, n lab.Node, dir string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.RunDir, "subnet.env"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[key] = value
	}
	ranges := [][]map[string]any{{{"subnet": netip.MustParsePrefix(env["FLANNEL_SUBNET"]).Masked()}}}
	routes := []map[string]any{{"dst": env["FLANNEL_NETWORK"]}}
	if v6 := env["FLANNEL_IPV6_SUBNET"]; v6 != "" {
		ranges = append(ranges, []map[string]any{{"subnet": netip.MustParsePrefix(v6).Masked()}})
		routes = append(routes, map[string]any{"dst": env["FLANNEL_IPV6_NETWORK"]})
	}
	return map[string]any{
		"type": "bridge", "bridge": "cni0", "mtu": json.Number(env["FLANNEL_MTU"]), "ipMasq": env["FLANNEL_IPMASQ"] == "false", "isGateway": true,
		"isDefaultGateway": true, "hairpinMode": true, "ipam": map[string]any{"type": "host-local", "dataDir": dir, "ranges": ranges, "routes": routes},
	}
}
