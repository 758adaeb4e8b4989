package control

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/dataplane/tables"
)

// A street is a link to a neighbour in another namespace. The test's thread is on this side.
type street struct {
	t           *testing.T
	here, there netns.NsHandle
	hops        Hops
	fail        error
	handed      int // calls of apply
	r           *Resolver
}

var (
	ownMAC     = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	peerMAC    = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	neighbour4 = netip.MustParseAddr("192.0.2.2")
	neighbour6 = netip.MustParseAddr("2001:db8::2")
)

func newStreet(t *testing.T) *street {
	t.Helper()
	s := &street{t: t}
	for _, ns := range []*netns.NsHandle{&s.there, &s.here} {
		inNamespace(t)
		var err error
		if *ns, err = netns.Get(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tulle-u0", HardwareAddr: ownMAC}, PeerName: "tulle-v0", PeerHardwareAddr: peerMAC,
		PeerNamespace: netlink.NsFd(s.there)}
	s.must(netlink.LinkAdd(veth))
	s.over(func() { s.setUp("tulle-v0", "192.0.2.2/24", "2001:db8::2/64") })
	s.setUp("tulle-u0", "192.0.2.1/24", "2001:db8::1/64")
	u := UnderlayLink{Name: "tulle-u0", Addr: netip.MustParseAddr("192.0.2.1"), Addr6: netip.MustParseAddr("2001:db8::1")}
	s.r = NewResolver(u, func(h Hops) error { s.hops = h; s.handed++; return s.fail })
	return s
}

func (s *street) must(errs ...error) {
	s.t.Helper()
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
}

// over runs f on the neighbour's side.
func (s *street) over(f func()) {
	s.t.Helper()
	s.must(netns.Set(s.there))
	f()
	s.must(netns.Set(s.here))
}

func (s *street) setUp(name string, addrs ...string) netlink.Link {
	s.t.Helper()
	link, err := netlink.LinkByName(name)
	s.must(err)
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		s.must(err)
		addr.Flags = unix.IFA_F_NODAD
		s.must(netlink.AddrAdd(link, addr))
	}
	s.must(netlink.LinkSetUp(link))
	return link
}

// neighbour returns what the kernel knows of one.
func (s *street) neighbour(a netip.Addr) (netlink.Neigh, bool) {
	s.t.Helper()
	link, err := netlink.LinkByName("tulle-u0")
	s.must(err)
	known, err := neighboursOf(link.Attrs().Index)
	s.must(err)
	n, ok := known[a]
	return n, ok
}

// resolved passes until there is a next hop for the address.
func (s *street) resolved(a netip.Addr) NextHop {
	s.t.Helper()
	await(s.t, "next hop of "+a.String(), func() bool {
		s.r.pass()
		_, ok := s.hops.Next[a]
		return ok
	})
	return s.hops.Next[a]
}

// problem passes and demands one that contains want.
func (s *street) problem(want string) {
	s.t.Helper()
	s.r.pass()
	if !slices.ContainsFunc(s.r.Problems(), func(p string) bool { return strings.Contains(p, want) }) {
		s.t.Errorf("problems %q, want %q", s.r.Problems(), want)
	}
}

func isManaged(n netlink.Neigh) bool { return n.FlagsExt&netlink.NTF_EXT_MANAGED != 0 }

// The kernel resolves neighbours and keeps them; whatever is done to its tables, the next hops follow.
func TestResolver(t *testing.T) {
	for _, plain := range []bool{false, true} {
		s := newStreet(t)
		s.r.plain, s.r.probed = plain, plain
		for _, peer := range []netip.Addr{neighbour4, neighbour6} {
			s.r.Want([]netip.Addr{peer, peer})
			s.problem("has not answered yet")
			want := NextHop{MAC: tables.MAC(peerMAC), Source: tables.MAC(ownMAC), MTU: 1500}
			if hop := s.resolved(peer); hop != want || len(s.r.Problems()) != 0 {
				t.Fatalf("plain %t: %+v, problems %v; want %+v", plain, hop, s.r.Problems(), want)
			}
			n, _ := s.neighbour(peer)
			if isManaged(n) == plain || s.r.plain != plain {
				t.Errorf("plain %t: neighbour %+v", plain, n)
			}
			s.must(netlink.NeighDel(&n))
			s.problem("has not answered yet")
			if s.hops.OnLink[peer] != want.MAC {
				t.Errorf("on link while the neighbour does not answer: %v", s.hops.OnLink)
			}
			if hop := s.resolved(peer); hop != want {
				t.Errorf("after the neighbour was deleted: %+v", hop)
			}
			s.fixed(peer)
			s.r.Want(nil)
			s.r.pass()
			if len(s.hops.Next) != 0 || len(s.hops.OnLink) != 0 || len(s.r.managed) != 0 {
				t.Errorf("nothing is wanted: %+v, %v", s.hops, s.r.managed)
			}
		}
	}
}

// Who is behind a gateway is not on link, also when it was before.
func TestOffLink(t *testing.T) {
	s := newStreet(t)
	s.r.Want([]netip.Addr{neighbour4})
	if s.resolved(neighbour4); s.hops.OnLink[neighbour4] != tables.MAC(peerMAC) {
		t.Errorf("a neighbour: on link are %v", s.hops.OnLink)
	}
	s.must(netlink.RouteAdd(&netlink.Route{Dst: ipNet(hostPrefix(neighbour4)), Gw: net.IP{192, 0, 2, 9}}))
	s.problem("neighbour 192.0.2.9 on tulle-u0 has not answered yet")
	if len(s.hops.OnLink) != 0 {
		t.Errorf("behind a gateway that does not answer: on link are %v", s.hops.OnLink)
	}
	s.over(func() { s.setUp("tulle-v0", "192.0.2.9/24") })
	if s.resolved(neighbour4); len(s.hops.OnLink) != 0 {
		t.Errorf("behind a gateway: on link are %v", s.hops.OnLink)
	}
}

// fixed gives a neighbour a MAC for good, and takes it back.
func (s *street) fixed(peer netip.Addr) {
	s.t.Helper()
	n, _ := s.neighbour(peer)
	other := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	s.must(netlink.NeighSet(&netlink.Neigh{LinkIndex: n.LinkIndex, IP: n.IP, State: netlink.NUD_PERMANENT, HardwareAddr: other}))
	if hop := s.resolved(peer); hop.MAC != tables.MAC(other) {
		s.t.Errorf("a fixed neighbour: %+v", hop)
	}
	if n, _ = s.neighbour(peer); n.State != netlink.NUD_PERMANENT {
		s.t.Errorf("what somebody fixed was changed: %+v", n)
	}
	s.must(netlink.NeighDel(&n))
	await(s.t, "the right MAC", func() bool { s.r.pass(); return s.hops.Next[peer].MAC == tables.MAC(peerMAC) })
}

// What is not wanted any more is left as any other neighbour.
func TestResolverReleases(t *testing.T) {
	s := newStreet(t)
	s.r.Want([]netip.Addr{neighbour4})
	s.resolved(neighbour4)
	if n, ok := s.neighbour(neighbour4); !ok || !isManaged(n) {
		t.Fatalf("%+v, %t: not managed", n, ok)
	}
	s.r.Want(nil)
	s.r.pass()
	if n, ok := s.neighbour(neighbour4); ok && isManaged(n) {
		t.Errorf("%+v: still managed", n)
	}
}

// Gateways and the MTUs of routes are followed, level-triggered.
func TestResolverRoutes(t *testing.T) {
	s := newStreet(t)
	link, err := netlink.LinkByName("tulle-u0")
	s.must(err)
	far := netip.MustParseAddr("203.0.113.7")
	s.r.Want([]netip.Addr{far, neighbour4})
	s.problem("no route")
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), Gw: neighbour4.AsSlice(), MTU: 1400}
	s.must(netlink.RouteAdd(route))
	if hop := s.resolved(far); hop.MAC != tables.MAC(peerMAC) || hop.MTU != 1400 {
		t.Errorf("by the gateway: %+v", hop)
	}
	if hop := s.resolved(neighbour4); hop.MTU != 1500 {
		t.Errorf("the gateway itself: %+v", hop)
	}
	route.Gw, route.Via, route.MTU = nil, &netlink.Via{AddrFamily: unix.AF_INET6, Addr: neighbour6.AsSlice()}, 0
	s.must(netlink.RouteReplace(route))
	s.must(netlink.LinkSetMTU(link, 1300))
	await(t, "a gateway of the other family", func() bool {
		s.r.pass()
		return s.hops.Next[far] == NextHop{MAC: tables.MAC(peerMAC), Source: tables.MAC(ownMAC), MTU: 1300}
	})
	s.must(netlink.RouteDel(route))
	s.problem("no route")
	if _, ok := s.hops.Next[far]; ok {
		t.Error("a next hop without a route")
	}
}

// An address that another link leads to, or nobody, has no next hop, and the reason says so.
func TestResolverProblems(t *testing.T) {
	s := newStreet(t)
	s.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tulle-w0"}, PeerName: "tulle-w1"}))
	s.setUp("tulle-w0", "198.51.100.1/24")
	s.r.Want([]netip.Addr{netip.MustParseAddr("198.51.100.2")})
	s.problem("its route leads to link tulle-w0 and not to tulle-u0")
	s.r.Want([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	s.problem("no route to another host")
	s.r.Want([]netip.Addr{neighbour4})
	s.resolved(neighbour4)
	link, err := netlink.LinkByName("tulle-u0")
	s.must(err)
	s.must(netlink.LinkSetDown(link))
	s.problem("underlay link tulle-u0: it is down")
	if len(s.hops.Next) != 0 || s.hops.Link != link.Attrs().Index {
		t.Errorf("a link that is down: %+v", s.hops)
	}
	s.must(netlink.LinkDel(link))
	s.problem("underlay link tulle-u0: Link not found")
	if len(s.hops.Next) != 0 || s.hops.Link != 0 {
		t.Errorf("a link that is gone: %+v", s.hops)
	}
}

// What is handed over is handed over once, unless it was not taken.
func TestResolverApplies(t *testing.T) {
	s := newStreet(t)
	s.fail = errors.New("not bound")
	s.r.Want([]netip.Addr{neighbour4})
	s.resolved(neighbour4)
	before := s.handed
	s.problem("not bound")
	if s.handed != before+1 {
		t.Errorf("%d more calls after a failed one", s.handed-before)
	}
	s.fail = nil
	s.r.pass()
	before = s.handed
	s.r.pass()
	s.r.pass()
	if s.handed != before || len(s.r.Problems()) != 0 {
		t.Errorf("%d calls without a change, problems %v", s.handed-before, s.r.Problems())
	}
}

// On a link without link-local address the kernel asks for no IPv6 neighbour by itself.
func TestResolverWithoutLinkLocal(t *testing.T) {
	s := newStreet(t)
	link, err := netlink.LinkByName("tulle-u0")
	s.must(err)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	s.must(err)
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() {
			s.must(netlink.AddrDel(link, &a))
		}
	}
	s.r.Want([]netip.Addr{neighbour6})
	for range 3 {
		if hop := s.resolved(neighbour6); hop.MAC != tables.MAC(peerMAC) {
			t.Errorf("%+v", hop)
		}
		n, _ := s.neighbour(neighbour6)
		s.must(netlink.NeighDel(&n))
		s.problem("has not answered yet")
	}
}
