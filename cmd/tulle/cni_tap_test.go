package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// tapPods are pods with TAPs and one with a link, on two nodes.
type tapPods struct {
	t     *testing.T
	l     *lab.Lab
	pods  []*sandbox
	addrs [][]netip.Addr
	nodes []int // of each pod, from 0
	by    []*cniRuntime
}

func newTAPPods(t *testing.T, c lab.Config) *tapPods {
	t.Helper()
	c.Nodes = 2
	p := &tapPods{t: t, l: labUnderTest(t, c)}
	for i, n := range p.l.Nodes() {
		taps, links := newTAPRuntime(t, n, "1.1.0"), newRuntime(t, n, "1.1.0")
		p.add(i, taps)
		if i == 0 {
			p.add(i, taps)
			p.add(i, links)
		}
	}
	return p
}

func (p *tapPods) add(node int, r *cniRuntime) {
	p.t.Helper()
	s := newSandbox(p.t, fmt.Sprintf("n%d-p%d", node, len(p.pods)))
	p.addrs = append(p.addrs, addrsOf(r.add(s)))
	p.pods, p.nodes, p.by = append(p.pods, s), append(p.nodes, node), append(p.by, r)
}

// everyWay pings between all pods and nodes.
func (p *tapPods) everyWay() {
	p.t.Helper()
	for i, from := range p.pods {
		for j, to := range p.addrs {
			for _, a := range to {
				if i != j {
					reach(p.t, from.run, a)
				}
			}
		}
		for k, n := range p.l.Nodes() {
			for _, a := range p.addrs[i] {
				reach(p.t, inNode(n), a)
			}
			if n.VTEP.IsValid() {
				reach(p.t, from.run, n.VTEP)
			}
			if p.nodes[i] == k && n.PublicIP.IsValid() {
				reach(p.t, from.run, n.PublicIP)
			}
		}
	}
}

// exchange sends bytes over TCP between two pods, whose hashes must be equal.
func (p *tapPods) exchange(from, to int, bytes int64) {
	p.t.Helper()
	for _, a := range p.addrs[to] {
		tx, rx, err := connect(p.pods[from].run, p.pods[to].run, a)
		if err != nil {
			p.t.Fatalf("pod %d to pod %d: %v", from, to, err)
		}
		ctx, cancel := context.WithTimeout(p.t.Context(), testTimeout)
		r, err := bench.Transfer(ctx, rand.NewChaCha8([32]byte{1}), bytes, tx, rx)
		cancel()
		tx.Close()
		rx.Close()
		if err != nil {
			p.t.Fatalf("pod %d to pod %d: %v", from, to, err)
		}
		p.t.Logf("pod %d to %s of pod %d: %.2f Gb/s", from, a, to, r.Gbps())
	}
}

// connect makes a TCP connection between two places.
func connect(from, at place, to netip.Addr) (tx, rx net.Conn, err error) {
	var l net.Listener
	if err := at(func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String()); return err }); err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if err := from(func() (err error) { tx, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second); return err }); err != nil {
		return nil, nil, err
	}
	rx, err = l.Accept()
	return tx, rx, err
}

// adopted demands that node 1's daemon has so many TAPs of the one before.
func (p *tapPods) adopted(want int) {
	p.t.Helper()
	if got := strings.Count(strings.Join(status(p.t, p.l, 1).Holder.Adopted, "\n"), partPod); got != want {
		p.t.Errorf("%d TAPs of pods were adopted, want %d", got, want)
	}
}

// agree holds what a node's engine counts of all pods' ports, since they were made, against what the pods' kernels count of their TAPs.
func (p *tapPods) agree(node int) {
	p.t.Helper()
	var in, out, lost uint64
	var got portReport
	for range 100 { // a pod's kernel may send by itself between both looks
		if in, out, lost = p.kernelCounts(node); lost > 0 {
			break
		}
		ports := status(p.t, p.l, node+1).Engine.Ports
		if got = ports[len(ports)-1]; got.Name == "pods" && got.FramesIn == in && got.FramesOut == out {
			return
		}
	}
	p.t.Errorf("the engine of node %d counts %+v, the pods %d frames to it and %d from it, %d lost", node+1, got, in, out, lost)
}

// kernelCounts are of all TAPs of a node's pods: frames to the engine, from it, and lost.
func (p *tapPods) kernelCounts(node int) (in, out, lost uint64) {
	p.t.Helper()
	for i, s := range p.pods {
		if p.nodes[i] != node {
			continue
		}
		if err := s.run(func() error {
			link, err := netlink.LinkByName("eth0")
			if err == nil && link.Type() == "tuntap" {
				n := link.Attrs().Statistics
				in, out, lost = in+n.TxPackets, out+n.RxPackets, lost+n.TxDropped
			}
			return err
		}); err != nil {
			p.t.Fatal(err)
		}
	}
	return in, out, lost
}

func (p *tapPods) delete() {
	p.t.Helper()
	for i, s := range p.pods {
		if err := p.by[i].del(s); err != nil {
			p.t.Error(err)
		}
		if err := s.run(func() error {
			_, err := netlink.LinkByName("eth0")
			if !errors.As(err, new(netlink.LinkNotFoundError)) {
				p.t.Errorf("eth0 of pod %d is left: %v", i, err)
			}
			return nil
		}); err != nil {
			p.t.Error(err)
		}
	}
	for _, n := range p.l.Nodes() {
		traceless(p.t, n)
	}
}

// TestTAPPods makes pods whose interfaces are TAPs, beside one with a link: all reach each other, their nodes, and are reached by them; TCP
// arrives whole; a daemon that is killed and started again serves them; and nothing is left of them in the end.
func TestTAPPods(t *testing.T) {
	for name, c := range map[string]lab.Config{
		"IPv4, two workers": {Family: lab.FamilyV4, NodeArgs: []string{"--workers", "2"}},
		"both, a holder":    {Family: lab.FamilyDual, Holder: true},
		"udp backend":       {Family: lab.FamilyV4, Backend: lab.BackendUDP},
		"packet sockets":    {Family: lab.FamilyDual, NodeArgs: []string{"--underlay", "packet"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTAPPods(t, c)
			p.everyWay()
			for _, pair := range [][2]int{{0, 1}, {0, 2}, {2, 0}, {0, 3}, {3, 0}, {2, 3}} {
				p.exchange(pair[0], pair[1], 30<<20)
			}
			for i, s := range p.pods {
				if err := p.by[i].check(s); err != nil {
					t.Error(err)
				}
			}
			p.agree(0)
			p.agree(1)
			if links := podLinks(t, p.l.Nodes()[0]); len(links) != 1 {
				t.Errorf("links of pods on node 1: %v, want that of one", links)
			}
			tx, rx, err := connect(p.pods[0].run, p.pods[3].run, p.addrs[3][0])
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(p.l.StopNode(t.Context(), 1, syscall.SIGKILL), p.l.StartNode(t.Context(), 1)); err != nil {
				t.Fatal(err)
			}
			p.everyWay()
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			if _, err := bench.Transfer(ctx, rand.NewChaCha8([32]byte{2}), 1<<20, tx, rx); err != nil {
				t.Errorf("the connection did not outlive the daemon: %v", err)
			}
			tx.Close()
			rx.Close()
			p.adopted(map[bool]int{true: 2}[c.Holder])
			if c.Holder {
				if err := p.l.TakeOver(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				p.adopted(2)
				p.everyWay()
			}
			for i, s := range p.pods {
				if err := p.by[i].check(s); err != nil {
					t.Errorf("after a restart: %v", err)
				}
			}
			p.delete()
			if c.Holder { // the kernel's counters of an adopted TAP go on from before
				stopClean(t, p.l)
			}
		})
	}
}

// TestTAPOutside asks a server outside from a pod with a TAP, whose node masquerades: it sees the node, and the answers come.
func TestTAPOutside(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0, Routed: true, Family: lab.FamilyDual, NodeArgs: []string{"--ip-masq"}})
	n := l.Nodes()[0]
	r, s := newTAPRuntime(t, n, "1.1.0"), newSandbox(t, "c")
	r.add(s)
	serve(t, outside, "outside", 8000)
	for i, node := range []netip.Addr{n.PublicIP, n.PublicIPv6} {
		for _, protocol := range []string{"tcp", "udp"} {
			got, err := inquire(s.run, protocol, netip.AddrPortFrom(l.Router()[2*i], 8000))
			if want := "outside " + node.String(); err != nil || got != want {
				t.Errorf("%s: %q (%v), want %q", protocol, got, err, want)
			}
		}
	}
	if err := r.del(s); err != nil {
		t.Error(err)
	}
	traceless(t, n)
}

// TestTAPVanished ends pods without DEL, of a daemon that made their TAPs and of one that found them: the sweep finds that they have gone.
func TestTAPVanished(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Store: lab.StoreFile})
	n := l.Nodes()[0]
	r := newTAPRuntime(t, n, "1.1.0")
	first, second := newSandbox(t, "first"), newSandbox(t, "second")
	r.add(first)
	addr := addrsOf(r.add(second))[0]
	swept := func(s *sandbox) {
		t.Helper()
		s.Close()
		for deadline := time.Now().Add(3 * podSweep); strings.Contains(leases(t, n), s.id); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the lease of %s is still there", s.id)
			}
		}
	}
	swept(first)
	if err := errors.Join(l.StopNode(t.Context(), 1, syscall.SIGKILL), l.StartNode(t.Context(), 1)); err != nil {
		t.Fatal(err)
	}
	reach(t, inNode(n), addr)
	swept(second)
	traceless(t, n)
}

func leases(t *testing.T, n lab.Node) string {
	t.Helper()
	data, err := os.ReadFile(strings.TrimSuffix(n.RunDir, "/run") + "/state/ipam.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
