package main

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

const cniNetwork = "tulle-test"

// A sandbox is a container's network namespace. It has no name and goes with the test's process.
type sandbox struct {
	*lab.Sandbox
	id, name string // name is the path by which the daemon opens it
}

func newSandbox(t testing.TB, id string) *sandbox {
	t.Helper()
	s, err := lab.NewSandbox()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &sandbox{s, id, s.Path()}
}

func (s *sandbox) run(f func() error) error { return s.In(f) }

func (s *sandbox) config(ifname string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: s.id, NetNS: s.name, IfName: ifname}
}

// pluginHome is what pluginDir made, for TestMain to remove.
var pluginHome string

// pluginDir builds the plugin once for all tests.
var pluginDir = sync.OnceValues(func() (dir string, err error) {
	if pluginHome, err = os.MkdirTemp("", "tulle-cni-"); err == nil {
		_, err = need.Binary(contextOfTests, pluginHome, "cmd/tulle-cni")
	}
	return pluginHome, err
})

// upstreamPlugins builds the reference plugins beside it, once for all tests that want them.
var upstreamPlugins = sync.OnceValue(func() error {
	dir, err := pluginDir()
	if err == nil {
		err = need.CNIPlugins(contextOfTests, dir)
	}
	return err
})

// A cniRuntime is a container runtime's use of CNI on one node.
type cniRuntime struct {
	t    testing.TB
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func newRuntime(t testing.TB, n lab.Node, version string) *cniRuntime {
	t.Helper()
	bin, err := pluginDir()
	if err != nil {
		t.Fatal(err)
	}
	return &cniRuntime{t, libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil), conflist(t, n.RunDir, version)}
}

// newTAPRuntime is one whose pods' interfaces are TAPs.
func newTAPRuntime(t testing.TB, n lab.Node, version string) *cniRuntime {
	t.Helper()
	r := newRuntime(t, n, version)
	r.list = conflistWith(t, n.RunDir, version, map[string]any{"attachment": "tap"})
	return r
}

func conflist(t testing.TB, runDir, version string) *libcni.NetworkConfigList {
	t.Helper()
	return conflistWith(t, runDir, version, nil)
}

func conflistWith(t testing.TB, runDir, version string, keys map[string]any) *libcni.NetworkConfigList {
	t.Helper()
	plugin := map[string]any{"type": "tulle-cni", "runDir": runDir, "capabilities": map[string]bool{"ips": true, "mac": true, "portMappings": true, "bandwidth": true}}
	maps.Copy(plugin, keys)
	data, err := json.Marshal(map[string]any{"cniVersion": version, "name": cniNetwork, "plugins": []map[string]any{plugin}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (r *cniRuntime) tryAdd(s *sandbox, capabilities map[string]any) (*cni.Result, error) {
	rt := s.config("eth0")
	rt.CapabilityArgs = capabilities
	result, err := r.cni.AddNetworkList(r.t.Context(), r.list, rt)
	if err != nil {
		return nil, err
	}
	return cni.NewResultFromResult(result)
}

func (r *cniRuntime) add(s *sandbox) *cni.Result {
	r.t.Helper()
	result, err := r.tryAdd(s, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return result
}

func (r *cniRuntime) del(s *sandbox) error {
	return r.cni.DelNetworkList(contextOfTests, r.list, s.config("eth0"))
}

func (r *cniRuntime) check(s *sandbox) error {
	return r.cni.CheckNetworkList(r.t.Context(), r.list, s.config("eth0"))
}

// addrsOf returns the addresses in a result.
func addrsOf(r *cni.Result) (addrs []netip.Addr) {
	for _, ip := range r.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		addrs = append(addrs, a.Unmap())
	}
	return addrs
}

// reach demands that pings from a namespace are answered.
func reach(t testing.TB, from func(func() error) error, to netip.Addr) {
	t.Helper()
	if r := pingFrom(t, from, to); r.Lost() != 0 || r.Duplicates != 0 || r.Corrupt != 0 {
		t.Errorf("ping %s: %+v", to, r)
	}
}

func pingFrom(t testing.TB, from func(func() error) error, to netip.Addr) bench.PingResult {
	t.Helper()
	return pingBy(t, from, to, bench.Ping{Count: 3, Size: 56, Timeout: 2 * time.Second})
}

// inNode runs f in a node's namespace.
func inNode(n lab.Node) func(func() error) error {
	return func(f func() error) error { return lab.In(n.Namespace, f) }
}
