package gossip

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/claim"
)

// quietStore is a Store that neither speaks nor runs, with itself at 192.0.2.1.
func quietStore(t *testing.T) *Store {
	t.Helper()
	s, err := newStore(Config{
		Self:    control.Node{Name: "self", PublicIP: netip.MustParseAddr("192.0.2.1")},
		Network: netip.MustParsePrefix("10.244.0.0/16"), SubnetLen: 24,
		SubnetMin: netip.MustParseAddr("10.244.0.0"), SubnetMax: netip.MustParseAddr("10.244.255.0"), TunnelPort: 8472,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.id = claim.NodeID{250}
	s.self = &claim.Record{ID: s.id, Name: "self", Endpoint: s.endpoint}
	s.known, s.lives = claim.Records{s.id: s.self}, lives{of: map[claim.NodeID]*life{}}
	return s
}

// add makes a live peer with a confirmed block of the given tenure known.
func (s *Store) add(i int, block string, tenure time.Duration) *claim.Record {
	r := &claim.Record{
		ID: claim.NodeID{byte(i)}, Name: fmt.Sprintf("n%d", i), TunnelPort: 8472,
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7946),
		Claims:   []claim.Claim{{Block: netip.MustParsePrefix(block), Tenure: tenure, State: claim.Confirmed}},
	}
	s.known[r.ID] = r
	s.lives.joined(r.ID, 0, 0)
	return r
}

func TestWhoIsRoutable(t *testing.T) {
	s := quietStore(t)
	s.add(2, "10.244.2.0/24", time.Hour)
	s.add(3, "10.244.2.128/25", time.Minute)
	s.add(4, "10.244.4.0/24", time.Hour).TunnelPort = 4789
	s.add(5, "10.99.5.0/24", time.Hour)
	s.add(6, "10.244.6.0/24", time.Hour).Claims[0].State = claim.Tentative
	s.add(7, "10.244.7.0/24", time.Hour).Flags = claim.FlagLeaving
	s.lives.left(s.add(8, "10.244.8.0/24", time.Hour).ID, 0, 1)
	kept := s.add(9, "10.244.9.0/24", time.Hour)
	s.lives.left(kept.ID, 0, 1)
	s.lives.of[kept.ID].kept, s.lives.lost, s.lives.all = true, 5, 9
	replaced := s.add(10, "10.244.10.0/24", time.Hour)
	replaced.Name = "n2"
	s.lives.left(replaced.ID, 0, 1)
	s.lives.of[replaced.ID].kept = true
	type fate struct {
		routable bool
		state    string
		subnet   string
		reason   string
	}
	want := map[string]fate{}
	for id, f := range map[claim.NodeID]fate{
		{2}:  {true, Alive, "10.244.2.0/24", ""},
		{3}:  {false, Alive, "10.244.2.128/25", "its subnet 10.244.2.128/25 is n2 (192.0.2.2, id "},
		{4}:  {false, Alive, "10.244.4.0/24", "its tunnel is at UDP port 4789, this node's at 8472"},
		{5}:  {false, Alive, "10.99.5.0/24", "its subnet 10.99.5.0/24 is not in the network 10.244.0.0/16"},
		{6}:  {false, Alive, "invalid Prefix", "it has no subnet yet"},
		{7}:  {false, Left, "10.244.7.0/24", "it left"},
		{8}:  {false, Dead, "10.244.8.0/24", "it does not answer"},
		{9}:  {true, Dead, "10.244.9.0/24", "it does not answer, but neither do 5 of 9 peers: this node believes itself cut off and keeps its routes"},
		{10}: {false, Dead, "10.244.10.0/24", "it does not answer, and n2 ("},
	} {
		want[id.String()] = f
	}
	v, changed := s.look(0)
	if !changed || len(v.Peers) != len(want) || v.Members != 6 {
		t.Errorf("%v %+v", changed, v)
	}
	for _, p := range v.Peers {
		w := want[p.NodeID]
		if p.Routable != w.routable || p.State != w.state || p.Subnet.String() != w.subnet || !strings.HasPrefix(p.Reason, w.reason) || (w.reason == "") != (p.Reason == "") {
			t.Errorf("%+v\nwant %+v", p, w)
		}
	}
	for i := range len(v.Peers) - 1 {
		if v.Peers[i].Name > v.Peers[i+1].Name {
			t.Error("the peers are not sorted by name")
		}
	}
	s.lives.acked(claim.NodeID{2}, time.Hour)
	if _, changed := s.look(0); changed {
		t.Error("a sign of life alone is a change")
	}
	s.refuse(refusedKey, "the node at 192.0.2.99: why")
	if v, changed := s.look(0); !changed || v.Refused[refusedKey] != 1 || !strings.Contains(strings.Join(v.Problems, "\n"), "refused (key): the node at 192.0.2.99: why") {
		t.Errorf("%v %+v", changed, v)
	}
	if v, _ := s.look(s.now() + refusalShown + time.Second); len(v.Problems) != 0 || v.Refused[refusedKey] != 1 {
		t.Errorf("an old refusal is still a problem: %+v", v)
	}
}

// TestComesBackWithoutAGap is a node that was killed and started again: whichever of its new record and its new membership comes first, there
// is no moment without a route to it. It has none when its last boot is dead, or when it said that it leaves.
func TestComesBackWithoutAGap(t *testing.T) {
	s := quietStore(t)
	old := s.add(2, "10.244.2.0/24", time.Hour)
	demand := func(what string, routable bool) {
		t.Helper()
		v, _ := s.look(0)
		if p := v.Peers[0]; len(v.Peers) != 1 || p.Routable != routable || (p.State == Alive) != routable {
			t.Errorf("%s: %+v", what, v.Peers)
		}
	}
	boot := func(epoch uint64) *claim.Record {
		r := *old
		r.Epoch = epoch
		return &r
	}
	s.known[old.ID] = boot(1)
	demand("its record is first", true)
	s.lives.joined(old.ID, 1, 1)
	demand("then its membership", true)
	s.lives.joined(old.ID, 2, 2)
	demand("its membership is first", true)
	s.lives.left(old.ID, 1, 3)
	demand("the boot before is found dead", true)
	s.known[old.ID] = boot(2)
	demand("then its record", true)
	s.known[old.ID] = boot(3)
	s.lives.left(old.ID, 2, 4)
	demand("its record is there, and the boot before dead", false)
	s.lives.joined(old.ID, 3, 5)
	s.known[old.ID].Flags = claim.FlagLeaving
	s.lives.joined(old.ID, 4, 6)
	demand("it left and came back, and its record did not", false)
}

// A node of which only the IPv6 block is another's gets no traffic.
func TestWhoIsRoutableInIPv6(t *testing.T) {
	s := quietStore(t)
	s.pools = dualPools(t)
	s.machine.Pools = s.pools
	s.add(2, "10.244.2.0/24", time.Hour)
	given := s.add(3, "10.244.200.0/23", time.Minute)
	given.Claims = append(given.Claims, claim.Claim{Block: netip.MustParsePrefix("fd00:244:0:2::/63"), Tenure: time.Minute, State: claim.Confirmed})
	outside := s.add(4, "10.244.4.0/24", time.Hour)
	outside.Claims = append(outside.Claims, claim.Claim{Block: netip.MustParsePrefix("fd00:9::/64"), Tenure: time.Minute, State: claim.Confirmed})
	s.add(5, "10.244.5.0/24", time.Hour).Addrs = []netip.Addr{netip.MustParseAddr("2001:db8::5")}
	v, _ := s.look(0)
	for i, want := range [][2]string{
		{"fd00:244:0:2::/64", ""}, {"fd00:244:0:2::/63", "its subnet fd00:244:0:2::/63 is n2 (192.0.2.2, id "},
		{"fd00:9::/64", "its subnet fd00:9::/64 is not in the network 10.244.0.0/16 and fd00:244::/48"}, {"fd00:244:0:5::/64", ""},
	} {
		if p := v.Peers[i]; p.IPv6Subnet.String() != want[0] || !strings.HasPrefix(p.Reason, want[1]) || p.Routable != (want[1] == "") {
			t.Errorf("%+v, want %s", p, want)
		}
	}
	if p := v.Peers[3]; p.PublicIPv6.String() != "2001:db8::5" || p.PublicIP.String() != "192.0.2.5" {
		t.Errorf("%+v", p)
	}
}

// Large networks are looked at often.
func BenchmarkLook(b *testing.B) {
	s := quietStore(&testing.T{})
	for i := range 1000 {
		r := s.add(i%250, "10.244.0.0/24", time.Hour)
		delete(s.known, r.ID)
		r.ID = claim.NodeID{byte(i), byte(i >> 8), 1}
		r.Name, r.Claims[0].Block = fmt.Sprint("n", i), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 2), byte(i << 6)}), 26)
		s.known[r.ID] = r
		s.lives.joined(r.ID, 0, 0)
	}
	for b.Loop() {
		s.look(0)
	}
}
