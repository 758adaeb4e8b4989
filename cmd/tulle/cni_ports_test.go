package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// A place is where a client or a server runs.
type place = func(func() error) error

func outside(f func() error) error { return lab.In(lab.RouterNamespace, f) }

// serve answers, over TCP and UDP and at every address of a place, with a name and with who asks.
func serve(t *testing.T, at place, name string, port uint16) {
	t.Helper()
	answer := func(from net.Addr) []byte {
		return []byte(name + " " + netip.MustParseAddrPort(from.String()).Addr().Unmap().String())
	}
	for version, any := range map[string]netip.Addr{"4": netip.IPv4Unspecified(), "6": netip.IPv6Unspecified()} {
		var tcp net.Listener
		var udp net.PacketConn
		if err := at(func() (err error) {
			if tcp, err = net.Listen("tcp"+version, netip.AddrPortFrom(any, port).String()); err == nil {
				udp, err = net.ListenPacket("udp"+version, netip.AddrPortFrom(any, port).String())
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tcp.Close(); udp.Close() })
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				c.Write(answer(c.RemoteAddr()))
				c.Close()
			}
		}()
		go func() {
			b := make([]byte, 2000)
			for {
				_, from, err := udp.ReadFrom(b)
				if err != nil {
					return
				}
				udp.WriteTo(answer(from), from)
			}
		}()
	}
}

// inquire asks once from a place. A UDP answer is taken from nobody but who was asked.
func inquire(from place, protocol string, to netip.AddrPort) (string, error) {
	var c net.Conn
	if err := from(func() (err error) { c, err = net.DialTimeout(protocol, to.String(), 3*time.Second); return err }); err != nil {
		return "", err
	}
	defer c.Close()
	return inquireOn(c, protocol)
}

func inquireOn(c net.Conn, protocol string) (answer string, err error) {
	b := make([]byte, 2000)
	for range 3 { // a datagram may be lost
		if protocol == "udp" {
			if _, err = c.Write([]byte("who am I?")); err != nil {
				continue
			}
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = c.Read(b); err == nil {
			return string(b[:n]), nil
		}
	}
	return "", err
}

// ports are a container's capability arguments.
func ports(p ...cniapi.Port) map[string]any { return map[string]any{"portMappings": p} }

func (r *cniRuntime) addWith(s *sandbox, capabilities map[string]any) *cni.Result {
	r.t.Helper()
	result, err := r.tryAdd(s, capabilities)
	if err != nil {
		r.t.Fatal(err)
	}
	return result
}

func (r *cniRuntime) delWith(s *sandbox, capabilities map[string]any) error {
	rt := s.config("eth0")
	rt.CapabilityArgs = capabilities
	return r.cni.DelNetworkList(contextOfTests, r.list, rt)
}

// TestHostPorts reaches a container by its node's ports from everywhere, with and without masquerading, with a FORWARD chain that drops,
// and after the daemon was killed.
func TestHostPorts(t *testing.T) {
	for name, args := range map[string][]string{"flat": nil, "island": {"--ip-masq"}, "flat, TAPs": nil, "island, TAPs": {"--ip-masq"}} {
		t.Run(name, func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0, Routed: true, Family: lab.FamilyDual, NodeArgs: args})
			n1, n2 := l.Nodes()[0], l.Nodes()[1]
			for _, n := range []lab.Node{n1, n2} {
				for _, family := range []string{lab.FamilyV4, lab.FamilyV6} {
					in(t, n, func() error { return dropForwards(family) })
				}
			}
			r1, r2 := newRuntime(t, n1, "1.1.0"), newRuntime(t, n2, "1.1.0")
			if strings.Contains(name, "TAPs") {
				r1, r2 = newTAPRuntime(t, n1, "1.1.0"), newTAPRuntime(t, n2, "1.1.0")
			}
			h := &hostPorts{t: t, l: l, n1: n1, n2: n2, mapped: newSandbox(t, "mapped"), near: newSandbox(t, "near"), far: newSandbox(t, "far")}
			all := ports(cniapi.Port{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, cniapi.Port{HostPort: 8080, ContainerPort: 80, Protocol: "UDP"},
				cniapi.Port{HostPort: 8081, ContainerPort: 80, Protocol: "tcp", HostIP: n1.PublicIP.String()},
				cniapi.Port{HostPort: 8081, ContainerPort: 80, Protocol: "udp", HostIP: "::"})
			h.addrs = addrsOf(r1.addWith(h.mapped, all))
			r1.add(h.near)
			r2.add(h.far)
			serve(t, h.mapped.run, "mapped", 80)
			h.check()
			h.checkHostIP()
			if err := l.StopNode(t.Context(), 1, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := l.StartNode(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			h.check()
			h.repaired()
			for _, err := range []error{r1.delWith(h.mapped, all), r1.del(h.near), r2.del(h.far)} {
				if err != nil {
					t.Error(err)
				}
			}
			traceless(t, n1)
			traceless(t, n2)
			if got, err := inquire(outside, "tcp", netip.AddrPortFrom(n1.PublicIP, 8080)); err == nil {
				t.Errorf("after DEL %s answers", got)
			}
		})
	}
}

// hostPorts is a lab with a container on the first node that has ports of it, another one beside it and one on the second node.
type hostPorts struct {
	t                 *testing.T
	l                 *lab.Lab
	n1, n2            lab.Node
	mapped, near, far *sandbox
	addrs             []netip.Addr // of mapped
}

// check asks from everywhere, and demands that whoever can be told apart is.
func (h *hostPorts) check() {
	h.t.Helper()
	for i, node := range []netip.Addr{h.n1.PublicIP, h.n1.PublicIPv6} {
		tunnel := []netip.Addr{h.n1.VTEP, h.n1.VTEPv6}[i]
		far := h.l.Router()[2*i].String()
		for _, protocol := range []string{"tcp", "udp"} {
			for _, c := range []struct {
				what string
				from place
				to   netip.Addr
				want string // empty for any
			}{
				{"outside", outside, node, far},
				{"the node", inNode(h.n1), node, node.String()},
				{"the node at its address in the network", inNode(h.n1), tunnel, tunnel.String()},
				{"the other node", inNode(h.n2), node, []netip.Addr{h.n2.PublicIP, h.n2.PublicIPv6}[i].String()},
				{"the other node at the address in the network", inNode(h.n2), tunnel, ""},
				{"itself", h.mapped.run, node, tunnel.String()},
				{"itself at the address in the network", h.mapped.run, tunnel, tunnel.String()},
				{"a container beside it", h.near.run, node, tunnel.String()},
				{"a container of the other node", h.far.run, node, ""},
				{"a container of the other node at the address in the network", h.far.run, tunnel, tunnel.String()},
			} {
				got, err := inquire(c.from, protocol, netip.AddrPortFrom(c.to, 8080))
				if err != nil || !strings.HasPrefix(got, "mapped ") || c.want != "" && got != "mapped "+c.want {
					h.t.Errorf("%s from %s at %s: %q (%v), want %q", protocol, c.what, c.to, got, err, c.want)
				}
			}
			if got, err := inquire(inNode(h.n1), protocol, netip.AddrPortFrom([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}[i], 8080)); !errors.Is(err, syscall.ECONNREFUSED) {
				h.t.Errorf("%s to the node's loopback address: %s (%v)", protocol, got, err)
			}
		}
		for what, from := range map[string]place{"its node": inNode(h.n1), "a container beside it": h.near.run, "a container of the other node": h.far.run, "the other node": inNode(h.n2)} {
			if got, err := inquire(from, "tcp", netip.AddrPortFrom(h.addrs[i], 80)); err != nil {
				h.t.Errorf("from %s, not mapped: %q (%v)", what, got, err)
			}
		}
	}
}

// checkHostIP demands of the ports that are mapped at some addresses only that they are not at others.
func (h *hostPorts) checkHostIP() {
	h.t.Helper()
	for _, c := range []struct {
		protocol string
		at       netip.Addr
		want     bool
	}{
		{"tcp", h.n1.PublicIP, true}, {"tcp", h.n1.VTEP, false}, {"tcp", h.n1.PublicIPv6, false},
		{"udp", h.n1.PublicIPv6, true}, {"udp", h.n1.VTEPv6, true}, {"udp", h.n1.PublicIP, false},
	} {
		if got, err := inquire(inNode(h.n1), c.protocol, netip.AddrPortFrom(c.at, 8081)); (err == nil) != c.want {
			h.t.Errorf("%s at %s: %q (%v), want %t", c.protocol, c.at, got, err, c.want)
		}
	}
}

// repaired deletes the node's table by hand: the ports are back.
func (h *hostPorts) repaired() {
	h.t.Helper()
	in(h.t, h.n1, func() error { _, err := deleteOurs(); return err })
	waitFor(h.t, func() bool {
		_, err := inquire(outside, "tcp", netip.AddrPortFrom(h.n1.PublicIP, 8080))
		return err == nil
	})
}

// TestHostPortMoves gives a port to one container after the other, while a client outside goes on from one UDP port: it reaches who has the
// port, and nobody when nobody has it.
func TestHostPortMoves(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Routed: true, Store: lab.StoreFile})
	n := l.Nodes()[0]
	r := newRuntime(t, n, "1.1.0")
	var client net.Conn
	if err := outside(func() (err error) {
		client, err = net.Dial("udp", netip.AddrPortFrom(n.PublicIP, 9000).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	port := ports(cniapi.Port{HostPort: 9000, ContainerPort: 90, Protocol: "udp"})
	for i := range 3 {
		serve(t, inNode(n), "node", 9001+uint16(i)) // does nothing but show that others are left alone
		if got, err := inquireOn(client, "udp"); err == nil {
			t.Fatalf("nobody has the port, and %s answers", got)
		}
		s := newSandbox(t, fmt.Sprint("c", i))
		r.addWith(s, port)
		serve(t, s.run, s.id, 90)
		if got, err := inquireOn(client, "udp"); err != nil || !strings.HasPrefix(got, s.id+" ") {
			t.Errorf("container %d: %q (%v)", i, got, err)
		}
		if got, err := inquire(outside, "udp", netip.AddrPortFrom(n.PublicIP, 9001+uint16(i))); err != nil {
			t.Errorf("the node's own port: %q (%v)", got, err)
		}
		if err := r.delWith(s, port); err != nil {
			t.Fatal(err)
		}
	}
	traceless(t, n)
}

// TestHostPortsRefused asks for ports that cannot be, and for one that is another container's, also after a kill.
func TestHostPortsRefused(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0})
	n := l.Nodes()[0]
	r := newRuntime(t, n, "1.1.0")
	holder, other := newSandbox(t, "holder"), newSandbox(t, "other")
	held := ports(cniapi.Port{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "192.0.2.77"})
	r.addWith(holder, held)
	refuse := func() {
		t.Helper()
		for _, c := range []struct {
			port cniapi.Port
			code uint
			want string
		}{
			{cniapi.Port{HostPort: 8080, ContainerPort: 81, Protocol: "tcp"}, cniapi.CodePort, "container holder"},
			{cniapi.Port{HostPort: 8080, ContainerPort: 81, Protocol: "tcp", HostIP: "0.0.0.0"}, cniapi.CodePort, "192.0.2.77:8080/tcp"},
			{cniapi.Port{HostPort: 0, ContainerPort: 81, Protocol: "tcp"}, cniapi.CodeConfig, "65535"},
			{cniapi.Port{HostPort: 70000, ContainerPort: 81, Protocol: "tcp"}, cniapi.CodeConfig, "65535"},
			{cniapi.Port{HostPort: 81, ContainerPort: -1, Protocol: "tcp"}, cniapi.CodeConfig, "65535"},
			{cniapi.Port{HostPort: 81, ContainerPort: 81, Protocol: "sctp"}, cniapi.CodeConfig, "sctp"},
			{cniapi.Port{HostPort: 81, ContainerPort: 81, Protocol: "tcp", HostIP: "127.0.0.1"}, cniapi.CodeConfig, "loopback"},
			{cniapi.Port{HostPort: 81, ContainerPort: 81, Protocol: "tcp", HostIP: "192.0.2"}, cniapi.CodeConfig, "no IP address"},
			{cniapi.Port{HostPort: 81, ContainerPort: 81, Protocol: "tcp", HostIP: "::"}, cniapi.CodeConfig, "family"},
			{cniapi.Port{HostPort: 8472, ContainerPort: 81, Protocol: "udp"}, cniapi.CodeConfig, "tulle's own"},
			{cniapi.Port{HostPort: 7946, ContainerPort: 81, Protocol: "tcp"}, cniapi.CodeConfig, "tulle's own"},
		} {
			_, err := r.tryAdd(other, ports(c.port))
			wantCode(t, fmt.Sprintf("%+v", c.port), err, c.code)
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v, want %q", c.port, err, c.want)
			}
		}
	}
	refuse()
	if err := errors.Join(l.StopNode(t.Context(), 1, syscall.SIGKILL), l.StartNode(t.Context(), 1)); err != nil {
		t.Fatal(err)
	}
	refuse()
	free := ports(cniapi.Port{HostPort: 8080, ContainerPort: 81, Protocol: "tcp", HostIP: "192.0.2.78"}, cniapi.Port{HostPort: 8080, ContainerPort: 81, Protocol: "udp"})
	r.addWith(other, free)
	if err := errors.Join(r.delWith(holder, held), r.delWith(other, free)); err != nil {
		t.Error(err)
	}
	traceless(t, n)
}

// TestHostPortsIsolated refuses a port where nothing comes in from outside.
func TestHostPortsIsolated(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, NodeArgs: modeArgs(t, "isolated", lab.FamilyV4)})
	r := newRuntime(t, l.Nodes()[0], "1.1.0")
	_, err := r.tryAdd(newSandbox(t, "c"), ports(cniapi.Port{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}))
	wantCode(t, "a port in mode isolated", err, cniapi.CodeConfig)
}
