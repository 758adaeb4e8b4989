package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/attach"
	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// wantCode demands an error with a code of the specification.
func wantCode(t testing.TB, what string, err error, code uint) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("%s: %v, want code %d", what, err, code)
	}
}

// podLinks lists the node's ends of pods.
func podLinks(t *testing.T, n lab.Node) (links []string) {
	t.Helper()
	in(t, n, func() error {
		names, err := attach.Links()
		for name := range names {
			if (strings.HasPrefix(name, "tulle") || strings.HasPrefix(name, "tifb")) && name != tapName && name != tunnelName {
				links = append(links, name)
			}
		}
		return err
	})
	return links
}

// traceless demands that a node has nothing of any pod any more.
func traceless(t *testing.T, n lab.Node) {
	t.Helper()
	if links := podLinks(t, n); len(links) != 0 {
		t.Errorf("%s: links are left: %v", n.Name, links)
	}
	in(t, n, func() error {
		for _, table := range []int{8401, 8402} {
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
			if err != nil || len(routes) != 0 {
				t.Errorf("%s: table %d has %v, %v", n.Name, table, routes, err)
			}
		}
		return nil
	})
	data, err := os.ReadFile(filepath.Join(filepath.Dir(n.RunDir), "state", "ipam.json"))
	if err != nil || !bytes.Contains(data, []byte(`"leases":[]`)) && !bytes.Contains(data, []byte(`"leases":null`)) {
		t.Errorf("%s: leases are left: %s %v", n.Name, data, err)
	}
}

// TestCNIVerbs goes through the rules of the specification, on one node, in each version that the plugin speaks.
func TestCNIVerbs(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) { lifeOf(t, n, newRuntime(t, n, version), version) })
		t.Run(version+" tap", func(t *testing.T) { lifeOf(t, n, newTAPRuntime(t, n, version), version) })
	}
	traceless(t, n)
}

func lifeOf(t *testing.T, n lab.Node, r *cniRuntime, version string) {
	if _, err := r.cni.ValidateNetworkList(t.Context(), r.list); err != nil {
		t.Errorf("VERSION, as podman and CRI ask for it: %v", err)
	}
	s := newSandbox(t, "c-"+version)
	rt := s.config("eth0")
	raw, err := r.cni.AddNetworkList(t.Context(), r.list, rt)
	if err != nil {
		t.Fatal(err)
	}
	if raw.Version() != version {
		t.Errorf("result of version %s", raw.Version())
	}
	result, err := cni.NewResultFromResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	checkResult(t, n, s, result, version)
	_, err = r.tryAdd(s, nil)
	wantCode(t, "ADD again", err, cniapi.CodeExists)
	if version != "0.3.1" { // which has no CHECK
		if err := r.check(s); err != nil {
			t.Errorf("CHECK: %v", err)
		}
	}
	if err := r.del(s); err != nil {
		t.Fatal(err)
	}
	if err := s.run(func() error { _, err := netlink.LinkByName("eth0"); return err }); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("eth0 after DEL: %v", err)
	}
	if err := r.del(s); err != nil {
		t.Errorf("DEL again: %v", err)
	}
	rt.NetNS = ""
	if err := r.cni.DelNetworkList(t.Context(), r.list, rt); err != nil {
		t.Errorf("DEL without namespace: %v", err)
	}
	again := addrsOf(r.add(s))
	if before := addrsOf(result); again[0] == before[0] {
		t.Errorf("address %s is used again at once", again[0])
	}
	rt.NetNS = "/proc/1/fd/99999/gone"
	if err := r.cni.DelNetworkList(t.Context(), r.list, rt); err != nil {
		t.Errorf("DEL with the namespace gone: %v", err)
	}
}

func checkResult(t *testing.T, n lab.Node, s *sandbox, r *cni.Result, version string) {
	t.Helper()
	if n := len(r.Interfaces); n < 1 || n > 2 || len(r.IPs) != 1 || len(r.Routes) != 1 {
		t.Fatalf("result %+v", r)
	}
	last := len(r.Interfaces) - 1 // the only one with a TAP
	pod, ip := r.Interfaces[last], r.IPs[0]
	for _, node := range r.Interfaces[:last] {
		if node.Sandbox != "" || !strings.HasPrefix(node.Name, "tulle") || version == "1.1.0" && node.Mtu != 1450 {
			t.Errorf("interface %+v", node)
		}
	}
	if pod.Name != "eth0" || pod.Sandbox != s.name || ip.Interface == nil || *ip.Interface != last {
		t.Errorf("interface %+v, address on %v", pod, ip.Interface)
	}
	if version == "1.1.0" && pod.Mtu != 1450 {
		t.Errorf("MTU %d", pod.Mtu)
	}
	if a, _ := netip.AddrFromSlice(ip.Address.IP); !n.Subnet.Contains(a.Unmap()) || !strings.HasSuffix(ip.Address.String(), "/32") || ip.Gateway.String() != "169.254.1.1" {
		t.Errorf("address %v via %v", &ip.Address, ip.Gateway)
	}
	if r.Routes[0].Dst.String() != "0.0.0.0/0" {
		t.Errorf("route %v", r.Routes[0])
	}
	if err := s.run(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if mac := link.Attrs().HardwareAddr.String(); mac != pod.Mac || link.Attrs().MTU != 1450 {
			t.Errorf("MAC %s, MTU %d; the result says %s", mac, link.Attrs().MTU, pod.Mac)
		}
		ra, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra")
		if strings.TrimSpace(string(ra)) != "0" {
			t.Errorf("accept_ra %q", ra)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// TestCNIConcurrent adds 200 containers at once, every third with a TAP: each has an address of its own. Then it deletes them at once.
func TestCNIConcurrent(t *testing.T) {
	const containers = 200
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	links, taps := newRuntime(t, n, "1.1.0"), newTAPRuntime(t, n, "1.1.0")
	of := func(i int) *cniRuntime {
		if i%3 == 0 {
			return taps
		}
		return links
	}
	boxes, addrs := make([]*sandbox, containers), make([]netip.Addr, containers)
	for i := range boxes {
		boxes[i] = newSandbox(t, fmt.Sprint("c", i))
	}
	start := time.Now()
	all := func(what string, f func(int) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range boxes {
			wg.Go(func() {
				if err := f(i); err != nil {
					t.Errorf("%s of container %d: %v", what, i, err)
				}
			})
		}
		wg.Wait()
	}
	all("ADD", func(i int) error {
		result, err := of(i).tryAdd(boxes[i], nil)
		if err == nil {
			addrs[i] = addrsOf(result)[0]
		}
		return err
	})
	t.Logf("%d containers at once added in %s", containers, time.Since(start).Round(time.Millisecond))
	seen := map[netip.Addr]bool{}
	for _, a := range addrs {
		if seen[a] || !n.Subnet.Contains(a) {
			t.Errorf("address %s twice, or not of %s", a, n.Subnet)
		}
		seen[a] = true
	}
	for range 10 {
		reach(t, boxes[rand.IntN(containers)].run, addrs[rand.IntN(containers)])
	}
	all("CHECK", func(i int) error { return of(i).check(boxes[i]) })
	all("DEL", func(i int) error { return of(i).del(boxes[i]) })
	traceless(t, n)
}

// TestCNIAddAgain adds a container whose link has gone, as after a crash between lease and link: at once, and not when the sweep
// has come. With its link it is there already.
func TestCNIAddAgain(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	r := newRuntime(t, n, "1.1.0")
	s := newSandbox(t, "c")
	r.add(s)
	_, err := r.tryAdd(s, nil)
	wantCode(t, "ADD twice", err, cniapi.CodeExists)
	in(t, n, func() error { return attach.Remove(podLinks(t, n)[0]) })
	reach(t, inNode(n), addrsOf(r.add(s))[0])
	if err := r.del(s); err != nil {
		t.Error(err)
	}
	traceless(t, n)
}

// TestCNIGC keeps the attachments that are named and frees all others of this network, not those of another one.
func TestCNIGC(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	r, foreign := newRuntime(t, n, "1.1.0"), newRuntime(t, n, "1.1.0")
	foreign.list = renamed(t, n.RunDir, "tulle-other")
	var boxes []*sandbox
	for i := range 6 {
		boxes = append(boxes, newSandbox(t, fmt.Sprint("c", i)))
		r.add(boxes[i])
	}
	alien := newSandbox(t, "c0-alien")
	foreign.add(alien)
	var keep []types.GCAttachment
	for _, s := range boxes[:2] {
		keep = append(keep, types.GCAttachment{ContainerID: s.id, IfName: "eth0"})
	}
	// A runtime that lost its cache: the plugin's own GC has to do it, not the library's DELs.
	forgetful := newRuntime(t, n, "1.1.0")
	if err := forgetful.cni.GCNetworkList(t.Context(), forgetful.list, &libcni.GCArgs{ValidAttachments: keep}); err != nil {
		t.Fatal(err)
	}
	if links := podLinks(t, n); len(links) != 3 {
		t.Errorf("%d links are left: %v", len(links), links)
	}
	for i, s := range boxes {
		if err := r.check(s); (err == nil) != (i < 2) {
			t.Errorf("container %d after GC: %v", i, err)
		}
	}
	if err := foreign.check(alien); err != nil {
		t.Errorf("the other network's container: %v", err)
	}
	for _, x := range []*cniRuntime{forgetful, foreign} {
		if err := x.cni.GCNetworkList(t.Context(), x.list, &libcni.GCArgs{}); err != nil {
			t.Error(err)
		}
	}
	traceless(t, n)
}

func renamed(t testing.TB, runDir, name string) *libcni.NetworkConfigList {
	t.Helper()
	list := conflist(t, runDir, "1.1.0")
	data := bytes.ReplaceAll(list.Bytes, []byte(cniNetwork), []byte(name))
	list, err := libcni.ConfListFromBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestCNIVanished frees what belongs to a container whose namespace went without DEL, also while the daemon was dead.
func TestCNIVanished(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile})
	n := l.Nodes()[0]
	r := newRuntime(t, n, "1.1.0")
	gone, stays := newSandbox(t, "gone"), newSandbox(t, "stays")
	r.add(gone)
	r.add(stays)
	if err := l.StopNode(t.Context(), 1, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for deadline := time.Now().Add(30 * time.Second); len(podLinks(t, n)) != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the kernel keeps the link")
		}
	}
	if err := l.StartNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := r.check(stays); err != nil {
		t.Error(err)
	}
	wantCode(t, "CHECK of the vanished", r.check(gone), cniapi.CodeUnknownContainer)
	if err := r.del(stays); err != nil {
		t.Error(err)
	}
	traceless(t, n)
}

// TestCNIStatic asks for addresses and a MAC.
func TestCNIStatic(t *testing.T) {
	t.Run("veth", func(t *testing.T) { testStatic(t, newRuntime) })
	t.Run("tap", func(t *testing.T) { testStatic(t, newTAPRuntime) })
}

func testStatic(t *testing.T, runtimeOf func(testing.TB, lab.Node, string) *cniRuntime) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile, Family: lab.FamilyDual})
	n := l.Nodes()[0]
	r := runtimeOf(t, n, "1.1.0")
	v4, v6 := "10.244.1.77", "fd44:0:0:1::77"
	s, other := newSandbox(t, "static"), newSandbox(t, "other")
	result, err := r.tryAdd(s, map[string]any{"ips": []string{v6 + "/64", v4 + "/24"}, "mac": "02:11:22:33:44:55"})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(addrsOf(result)); got != fmt.Sprintf("[%s %s]", v4, v6) || result.Interfaces[len(result.Interfaces)-1].Mac != "02:11:22:33:44:55" {
		t.Errorf("addresses %s, interfaces %+v", got, result.Interfaces)
	}
	if err := r.check(s); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]struct {
		capabilities map[string]any
		code         uint
	}{
		"taken":      {map[string]any{"ips": []string{v4}}, cniapi.CodeNoAddress},
		"the node's": {map[string]any{"ips": []string{"10.244.1.1"}}, cniapi.CodeConfig},
		"elsewhere":  {map[string]any{"ips": []string{"10.244.2.9"}}, cniapi.CodeConfig},
		"no address": {map[string]any{"ips": []string{"10.244.2"}}, cniapi.CodeConfig},
		"group MAC":  {map[string]any{"mac": "01:11:22:33:44:55"}, cniapi.CodeConfig},
	} {
		_, err := r.tryAdd(other, c.capabilities)
		wantCode(t, what, err, c.code)
	}
	reach(t, inNode(n), netip.MustParseAddr(v4))
	reach(t, inNode(n), netip.MustParseAddr(v6))
	if err := errors.Join(r.del(s), r.del(other)); err != nil {
		t.Error(err)
	}
	traceless(t, n)
}
