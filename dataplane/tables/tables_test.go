package tables_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/dataplane/tables"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

func newRand(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("random test: repeat with -seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// randomAddr draws from few addresses, so that prefixes nest and lookups hit.
func randomAddr(r *rand.Rand) netip.Addr {
	if r.IntN(4) == 0 {
		a := [16]byte{0xfd, 15: byte(r.IntN(8))}
		a[r.IntN(16)] |= 1 << r.IntN(8)
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(4)) << 6, byte(r.IntN(256))})
}

func randomPrefix(r *rand.Rand) netip.Prefix {
	a := randomAddr(r)
	return netip.PrefixFrom(a, r.IntN(a.BitLen()+1)) // with host bits
}

// naive is the FIB as a list: the longest prefix that contains the address wins.
type naive []tables.Route

func (n naive) lookup(a netip.Addr) *tables.Route {
	var best *tables.Route
	for i := range n {
		if n[i].Prefix.Contains(a) && (best == nil || n[i].Prefix.Bits() > best.Prefix.Bits()) {
			best = &n[i]
		}
	}
	return best
}

func randomRoutes(r *rand.Rand, peers []*tables.Peer) naive {
	var routes naive
	seen := map[netip.Prefix]bool{}
	for range r.IntN(60) {
		route := tables.Route{Prefix: randomPrefix(r), Kind: tables.Kind(1 + r.IntN(4))}
		if route.Kind == tables.ToPeer {
			route.Peer = peers[r.IntN(len(peers))]
		}
		if p := route.Prefix.Masked(); !seen[p] {
			seen[p] = true
			routes = append(routes, route)
		}
	}
	return routes
}

func peer(i int, sources ...string) *tables.Peer {
	p := &tables.Peer{Name: fmt.Sprint("node", i), Endpoint: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:8472", i))}
	for _, s := range sources {
		p.Sources = append(p.Sources, netip.MustParsePrefix(s))
	}
	return p
}

func TestLookupMatchesNaive(t *testing.T) {
	r := newRand(t)
	peers := []*tables.Peer{peer(1), peer(2), peer(3)}
	for range 300 {
		routes := randomRoutes(r, peers)
		set, err := tables.Compile(7, tables.Node{MTU: 1450}, peers, routes)
		if err != nil {
			t.Fatal(err)
		}
		if set.Generation != 7 || set.Node.MTU != 1450 || set.Peers() != 3 {
			t.Fatalf("generation %d, node %+v, %d peers", set.Generation, set.Node, set.Peers())
		}
		for range 500 {
			a := randomAddr(r)
			got, want := set.Lookup(a), routes.lookup(a)
			if (got == nil) != (want == nil) || got != nil && (got.Prefix != want.Prefix.Masked() || got.Kind != want.Kind || got.Peer != want.Peer) {
				t.Fatalf("%v: %+v, want %+v", a, got, want)
			}
		}
		checkRoutes(t, set, routes)
	}
	empty, err := tables.Compile(0, tables.Node{}, nil, nil)
	if err != nil || empty.Lookup(randomAddr(r)) != nil || empty.Lookup(netip.Addr{}) != nil || empty.Owner(netip.Addr{}) != nil {
		t.Errorf("an empty Set: %v, or it finds something", err)
	}
}

// checkRoutes: Routes lists exactly the routes, IPv4 before IPv6, each sorted by address and length.
func checkRoutes(t *testing.T, set *tables.Set, routes naive) {
	t.Helper()
	var want, got []netip.Prefix
	for _, r := range routes {
		want = append(want, r.Prefix.Masked())
	}
	slices.SortFunc(want, func(a, b netip.Prefix) int {
		if c := a.Addr().BitLen() - b.Addr().BitLen(); c != 0 {
			return c
		}
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	for r := range set.Routes() {
		got = append(got, r.Prefix)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("Routes lists %v, want %v", got, want)
	}
	for range set.Routes() {
		break // an early end is allowed
	}
}

// Owner and PeerAt against a list, with disjoint random sources.
func TestOwnerMatchesNaive(t *testing.T) {
	r := newRand(t)
	for range 300 {
		peers := []*tables.Peer{peer(1), peer(2), peer(3), peer(4)}
		var taken []netip.Prefix
		for range 40 {
			p, prefix := peers[r.IntN(4)], randomPrefix(r)
			if !slices.ContainsFunc(taken, prefix.Overlaps) {
				taken = append(taken, prefix)
				p.Sources = append(p.Sources, prefix)
			}
		}
		set, err := tables.Compile(1, tables.Node{}, peers, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			a := randomAddr(r)
			var want *tables.Peer
			for _, p := range peers {
				if slices.ContainsFunc(p.Sources, func(s netip.Prefix) bool { return s.Contains(a) }) {
					want = p
				}
			}
			if got := set.Owner(a); got != want {
				t.Fatalf("owner of %v: %v, want %v", a, got, want)
			}
		}
		for _, p := range peers {
			if set.PeerAt(p.Endpoint.Addr()) != p || set.PeerAt(netip.MustParseAddr("192.0.2.9")) != nil {
				t.Fatal("PeerAt finds another peer")
			}
		}
	}
}

// refusal is one input of Compile and what the error says; empty for none.
type refusal struct {
	name   string
	peers  []*tables.Peer
	routes []tables.Route
	want   string
}

func checkRefusals(t *testing.T, tests []refusal) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, err := tables.Compile(1, tables.Node{}, tt.peers, tt.routes)
			switch {
			case tt.want == "" && (err != nil || set == nil):
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || set != nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCompileRefusesPeers(t *testing.T) {
	one := peer(1, "10.1.0.0/16", "10.2.0.0/24")
	mapped := peer(3)
	mapped.Endpoint = netip.MustParseAddrPort("[::ffff:192.0.2.1]:1")
	nowhere := &tables.Peer{Name: "nowhere"}
	unspecified := &tables.Peer{Name: "unspecified", Endpoint: netip.MustParseAddrPort("0.0.0.0:8472")}
	noPrefix := peer(5)
	noPrefix.Sources = []netip.Prefix{{}}
	checkRefusals(t, []refusal{
		{"sound", []*tables.Peer{one, peer(2, "10.3.0.0/16")}, nil, ""},
		{"own sources nest", []*tables.Peer{peer(1, "10.1.0.0/16", "10.1.2.0/24", "10.1.0.0/16")}, nil, ""},
		{"one endpoint", []*tables.Peer{one, peer(1)}, nil, "peers node1 and node1 share the endpoint 192.0.2.1"},
		{"one endpoint, mapped", []*tables.Peer{one, mapped}, nil, "peers node1 and node3 share the endpoint 192.0.2.1"},
		{"no endpoint", []*tables.Peer{nowhere}, nil, "peer nowhere has no endpoint"},
		{"unspecified endpoint", []*tables.Peer{unspecified}, nil, "peer unspecified has no endpoint"},
		{"same source", []*tables.Peer{one, peer(2, "10.1.0.0/16")}, nil, "10.1.0.0/16 of peer node2 overlaps"},
		{"source inside", []*tables.Peer{one, peer(2, "10.1.7.0/24")}, nil, "10.1.7.0/24 of peer node2 overlaps"},
		{"source around", []*tables.Peer{one, peer(2, "10.0.0.0/8")}, nil, "10.0.0.0/8 of peer node2 overlaps"},
		{"host bits", []*tables.Peer{one, peer(2, "10.2.0.77/20")}, nil, "10.2.0.77/20 of peer node2 overlaps"},
		{"no source", []*tables.Peer{noPrefix}, nil, "peer node5: invalid prefix"},
	})
}

func TestCompileRefusesRoutes(t *testing.T) {
	two := peer(2)
	route := func(prefix string, kind tables.Kind, p *tables.Peer) tables.Route {
		return tables.Route{Prefix: netip.MustParsePrefix(prefix), Kind: kind, Peer: p}
	}
	local := func(prefixes ...string) (routes []tables.Route) {
		for _, p := range prefixes {
			routes = append(routes, route(p, tables.Local, nil))
		}
		return routes
	}
	one := func(r tables.Route) []tables.Route { return []tables.Route{r} }
	checkRefusals(t, []refusal{
		{"sound", nil, local("10.0.0.0/8", "10.0.0.0/9", "0.0.0.0/0"), ""},
		{"two routes", nil, local("10.1.0.0/16", "10.1.0.0/16"), "two routes for 10.1.0.0/16"},
		{"two routes, host bits", nil, local("10.1.0.0/16", "10.1.2.3/16"), "two routes for 10.1.0.0/16"},
		{"no prefix", nil, one(tables.Route{Kind: tables.Local}), "route of kind local: invalid prefix"},
		{"no kind", nil, one(route("10.0.0.0/8", 0, nil)), "10.0.0.0/8 is of kind kind(0)"},
		{"unknown kind", nil, one(route("10.0.0.0/8", 9, nil)), "10.0.0.0/8 is of kind kind(9)"},
		{"peer route without peer", nil, one(route("10.0.0.0/8", tables.ToPeer, nil)), "route 10.0.0.0/8 is of kind peer"},
		{"pod's route", nil, one(tables.Route{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Kind: tables.Local, Pod: &tables.Pod{Port: 1}}), ""},
		{"pod's route without port", nil, one(tables.Route{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Kind: tables.Local, Pod: &tables.Pod{}}), "to the port 0 of a pod"},
		{"host route of a pod", nil, one(tables.Route{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Kind: tables.Host, Pod: &tables.Pod{Port: 1}}), "is of kind host to the port 1"},
		{"local route with peer", []*tables.Peer{two}, one(route("10.0.0.0/8", tables.Local, two)), "route 10.0.0.0/8 is of kind local"},
	})
}

func TestKindNames(t *testing.T) {
	for kind, want := range map[tables.Kind]string{tables.Local: "local", tables.ToPeer: "peer", tables.Host: "host", tables.Reject: "reject", 77: "kind(77)"} {
		if text, err := kind.MarshalText(); kind.String() != want || string(text) != want || err != nil {
			t.Errorf("kind %d is called %q and %q (%v)", uint8(kind), kind, text, err)
		}
	}
}

func TestLookupAllocates(t *testing.T) {
	p := peer(1, "10.1.0.0/16")
	set, err := tables.Compile(1, tables.Node{}, []*tables.Peer{p}, []tables.Route{{Prefix: p.Sources[0], Kind: tables.ToPeer, Peer: p}})
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("10.1.2.3")
	n := testing.AllocsPerRun(100, func() {
		if set.Lookup(a) == nil || set.Owner(a) != p || set.PeerAt(p.Endpoint.Addr()) != p {
			t.Error("not found")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for three lookups", n)
	}
}
