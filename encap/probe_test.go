package encap

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A road is a link of MTU 1500 with the node's address on it, a neighbour at its other end and behind a route of
// MTU 1300 a far node; nobody answers for them.
type road struct {
	family           *family
	local, near, far netip.AddrPort
}

var roads = map[string]road{
	"IPv4": {&inet4, netip.MustParseAddrPort("10.7.0.1:8472"), netip.MustParseAddrPort("10.7.0.2:8472"), netip.MustParseAddrPort("10.8.0.2:8472")},
	"IPv6": {&inet6, netip.MustParseAddrPort("[fd07::1]:8472"), netip.MustParseAddrPort("[fd07::2]:8472"), netip.MustParseAddrPort("[fd08::2]:8472")},
}

// build makes the road in a namespace of the test's own, and returns a packet socket that sees what leaves.
func (r road) build(t *testing.T) (capture int) {
	t.Helper()
	inNamespace(t, 65536)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tulle-road", MTU: 1500}, PeerName: "tulle-end", PeerMTU: 1500}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	end, err := netlink.LinkByName(veth.PeerName)
	if err != nil {
		t.Fatal(err)
	}
	bits := r.local.Addr().BitLen()
	address := &netlink.Addr{IPNet: subnet(r.local.Addr(), bits*3/4, bits), Flags: unix.IFA_F_NODAD}
	route := &netlink.Route{LinkIndex: veth.Index, Dst: subnet(r.far.Addr(), bits, bits), MTU: 1300}
	err = errors.Join(netlink.LinkSetUp(end), netlink.LinkSetUp(veth), netlink.AddrAdd(veth, address), netlink.RouteAdd(route))
	for _, to := range []netip.AddrPort{r.near, r.far} {
		neighbour := &netlink.Neigh{
			LinkIndex: veth.Index, IP: to.Addr().AsSlice(), HardwareAddr: end.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
		}
		err = errors.Join(err, netlink.NeighSet(neighbour))
	}
	if err != nil {
		t.Fatal(err)
	}
	return captureOn(t, veth.Index)
}

func subnet(a netip.Addr, length, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(length, bits)}
}

// captureOn returns a packet socket. A device without a queue hands it what is sent before the send returns.
func captureOn(t *testing.T, index int) int {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// captured returns the packets from the node's address that the socket has seen.
func (r road) captured(t *testing.T, fd int) (all []gopacket.Packet) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		p := gopacket.NewPacket(bytes.Clone(buf[:n]), layers.LayerTypeEthernet, gopacket.Default)
		if ip := p.NetworkLayer(); ip != nil && bytes.Equal(ip.NetworkFlow().Src().Raw(), r.local.Addr().AsSlice()) {
			all = append(all, p)
		}
	}
}

// mayFragment reports whether a router may cut the packet, or somebody has.
func mayFragment(p gopacket.Packet) bool {
	if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
		return ip.Flags != layers.IPv4DontFragment || ip.FragOffset != 0
	}
	return p.Layer(layers.LayerTypeIPv6Fragment) != nil
}

// ofSize is a frame that gives an outer packet of n bytes.
func (r road) ofSize(t *testing.T, n int, to netip.AddrPort) (*packet.Batch, *packet.Frame) {
	t.Helper()
	b, inner := packet.NewBatch(0), n-outerIPLen(r.family == &inet6)-outerUDPLen-vxlanLen
	return b, outgoing(t, b, flow{1, 2}.udp(t, pattern(inner-14-20-8)), 0, to)
}

func openProbe(t *testing.T, local netip.Addr) *Probe {
	t.Helper()
	p, err := OpenProbe(local)
	return untilEnd(t, p, err)
}

func openProbeFixed(t *testing.T, local netip.AddrPort) *Probe {
	t.Helper()
	p, err := OpenProbeFixed(local)
	return untilEnd(t, p, err)
}

// untilEnd closes a probe at the end of the test.
func untilEnd(t *testing.T, p *Probe, err error) *Probe {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

// A probe is one packet with DF set, or it is none: up to the device's MTU it leaves, although the kernel takes the
// path for a narrower one, and beyond it does not.
func TestProbeSize(t *testing.T) {
	for name, r := range roads {
		t.Run(name, func(t *testing.T) {
			fd := r.build(t)
			r.probeSizes(t, fd, openProbe(t, r.local.Addr()), 0)
			if r.family == &inet4 {
				r.probeSizes(t, fd, openProbeFixed(t, netip.AddrPortFrom(r.local.Addr(), 8472)), 8472)
			}
		})
	}
}

// probeSizes sends probes of sizes around the MTUs. fixed is their source port, 0 if it may be any but the tunnel's.
func (r road) probeSizes(t *testing.T, fd int, p *Probe, fixed layers.UDPPort) {
	t.Helper()
	for _, to := range []netip.AddrPort{r.near, r.far} {
		for _, size := range []int{100, 1300, 1301, 1500} {
			_, f := r.ofSize(t, size, to)
			if err := p.Send(f); err != nil || f.Sent != 1 || f.Refused != 0 || f.SentBytes != f.Len() {
				t.Fatalf("%d bytes to %v: %v, %d sent, %d refused, %d bytes", size, to, err, f.Sent, f.Refused, f.SentBytes)
			}
			checkProbe(t, r.captured(t, fd), f, size, fixed)
		}
		for _, size := range []int{1501, 9000} {
			_, f := r.ofSize(t, size, to)
			if err := p.Send(f); !errors.Is(err, ErrTooBig) || f.Sent != 0 || f.Refused != 1 || f.SentBytes != 0 {
				t.Errorf("%d bytes to %v: %v, %d sent, %d refused", size, to, err, f.Sent, f.Refused)
			}
			if all := r.captured(t, fd); len(all) != 0 {
				t.Errorf("%d bytes to %v: %d packets leave", size, to, len(all))
			}
		}
	}
}

// checkProbe: the packet carries the frame and is the only one.
func checkProbe(t *testing.T, all []gopacket.Packet, f *packet.Frame, size int, fixed layers.UDPPort) {
	t.Helper()
	if len(all) != 1 {
		t.Fatalf("%d bytes: %d packets", size, len(all))
	}
	udp, _ := all[0].TransportLayer().(*layers.UDP)
	if mayFragment(all[0]) || udp == nil || !bytes.Equal(udp.Payload, f.Bytes()) || len(all[0].Data()) != size+14 {
		t.Fatalf("%d bytes: %v", size, all[0])
	}
	if udp.DstPort != 8472 || (udp.SrcPort == 8472) != (fixed == 8472) {
		t.Errorf("ports %d to %d", udp.SrcPort, udp.DstPort)
	}
	if ip, ok := all[0].NetworkLayer().(*layers.IPv4); ok && fixed != 0 {
		sum := packet.Sum(0).Add(ip.SrcIP).Add(ip.DstIP).AddUint16(packet.ProtoUDP).AddUint16(udp.Length).Add(ip.Payload)
		if sum.Fold() != 0xffff || packet.Sum(0).Add(ip.Contents).Fold() != 0xffff || ip.TTL != 64 {
			t.Errorf("%d bytes: a checksum is wrong, or the TTL %d", size, ip.TTL)
		}
	}
}

// What the tunnel carries is not a probe: it crosses a narrow path in fragments.
func TestUnderlayFragments(t *testing.T) {
	for name, r := range roads {
		t.Run(name, func(t *testing.T) {
			fd := r.build(t)
			hashed := openConfig(t, Config{Local: r.local, Framing: codec(t, 1)})[0]
			fixed := openConfig(t, Config{Local: netip.AddrPortFrom(r.local.Addr(), 8285), Framing: codec(t, 1), FixedSource: true})[0]
			for _, tt := range []struct {
				size, want int
				to         netip.AddrPort
			}{{1300, 1, r.far}, {1400, 2, r.far}, {1500, 1, r.near}, {1501, 2, r.near}} {
				r.checkPackets(t, fd, hashed, tt.size, tt.to, tt.want)
				r.checkPackets(t, fd, fixed, tt.size, tt.to, tt.want)
			}
		})
	}
}

// checkPackets sends one datagram and counts the packets that leave, none of them with DF set.
func (r road) checkPackets(t *testing.T, fd int, u *Underlay, size int, to netip.AddrPort, want int) {
	t.Helper()
	b, f := r.ofSize(t, size, to)
	u.Write(b)
	all := r.captured(t, fd)
	if len(all) != want || f.Sent != 1 {
		t.Fatalf("%d bytes to %v: %d packets, want %d; %d sent", size, to, len(all), want, f.Sent)
	}
	for _, p := range all {
		if r.family == &inet4 && !mayFragment(p) {
			t.Errorf("%d bytes to %v: DF is set", size, to)
		}
	}
}

// What comes back to a probe's port is not queued, in both families.
func TestProbeHearsNothing(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		p := openProbe(t, lo.a)
		u := openConfig(t, Config{Local: netip.AddrPortFrom(lo.b, 0), Framing: codec(t, 1)})[0]
		deaf := []int{p.fd}
		for i := range u.senders {
			deaf = append(deaf, u.senders[i].fd)
		}
		for _, fd := range deaf {
			out := packet.NewBatch(1 << 20)
			for range 10 {
				outgoing(t, out, flow{1, 2}.udp(t, pattern(1000)), 0, boundTo(t, fd))
			}
			u.Write(out)
			checkSent(t, out)
			if info, err := socketMemory(fd); err != nil || info[skMemInfoRmemAlloc] != 0 {
				t.Errorf("%d bytes wait at a port that hears nothing (%v)", info[skMemInfoRmemAlloc], err)
			}
		}
	})
}

func TestProbeRefuses(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		p, b := openProbe(t, lo.a), packet.NewBatch(1<<20)
		other := loopback4.a
		if lo == loopback4 {
			other = loopback6.a
		}
		for name, f := range map[string]*packet.Frame{
			"a super-packet":       outgoing(t, b, flow{1, 2}.tcp(t, pattern(3000)), 1000, netip.AddrPortFrom(lo.b, 8472)),
			"of the other family":  outgoing(t, b, flow{1, 2}.tcp(t, nil), 0, netip.AddrPortFrom(other, 8472)),
			"to nobody":            outgoing(t, b, flow{1, 2}.tcp(t, nil), 0, netip.AddrPortFrom(netip.Addr{}, 8472)),
			"to port 0 (EINVAL)":   outgoing(t, b, flow{1, 2}.tcp(t, nil), 0, netip.AddrPortFrom(lo.b, 0)),
			"more than UDP allows": outgoing(t, b, flow{1, 2}.udp(t, pattern(65535-28)), 0, netip.AddrPortFrom(lo.b, 8472)),
		} {
			if err := p.Send(f); err == nil || f.Sent != 0 || f.SentBytes != 0 || f.Refused != f.Segments {
				t.Errorf("%s: %v, %d sent, %d refused of %d", name, err, f.Sent, f.Refused, f.Segments)
			}
		}
	})
}

// Several goroutines may probe at once, and a probe allocates nothing.
func TestProbeConcurrently(t *testing.T) {
	inBothFamilies(t, func(t *testing.T, lo loopback) {
		_, b, to := lo.pair(t)
		p := openProbe(t, lo.a)
		var wg sync.WaitGroup
		for i := range uint16(4) {
			f := outgoing(t, packet.NewBatch(0), flow{i, 2}.udp(t, pattern(100)), 0, to)
			wg.Go(func() {
				for range 25 {
					if err := p.Send(f); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		receive(t, b, packet.NewBatch(1<<21), 100)
		f := outgoing(t, packet.NewBatch(0), flow{1, 2}.udp(t, pattern(100)), 0, to)
		if n := testing.AllocsPerRun(20, func() { p.Send(f) }); n != 0 {
			t.Errorf("%v allocations for a probe", n)
		}
	})
}
