package claim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A loneNode is a claimer with its own map and no network: the test carries its records.
type loneNode struct {
	claimer Claimer
	known   Records
	self    *Record
	gains   int // confirmations
}

func newLoneNode(i int, p Pools) *loneNode {
	id := NodeID{byte(i + 1), byte(i * 37)}
	n := &loneNode{claimer: Claimer{ID: id, Pools: p}, known: Records{}, self: &Record{ID: id, Name: fmt.Sprint("n", i), Raw: []byte{}}}
	n.known.Merge(n.self)
	return n
}

func (n *loneNode) situation(now time.Duration, members int) Situation {
	others := maps.Clone(n.known)
	delete(others, n.self.ID)
	return Situation{
		Now: now, Self: n.self, Others: slices.Collect(Holdings(n.claimer.Pools, maps.Values(others))), Members: members, Ready: true,
	}
}

// turn is Store.turn without disk and network.
func (n *loneNode) turn(now time.Duration, members int) {
	s := n.situation(now, members)
	if n.claimer.Turn(s) {
		n.claimer.Confirm(now)
		n.gains++
	}
	if n.claimer.Stale(s) {
		next := *n.self
		next.Seq++
		next.Claims = n.claimer.Claims()
		n.self = &next
		n.known[next.ID] = n.self
	}
}

// collides says whether both nodes claim an address, of whichever family.
func (n *loneNode) collides(other *loneNode) bool {
	a, b := &n.claimer, &other.claimer
	return a.Claim.Block.IsValid() && b.Claim.Block.IsValid() && (a.Claim.Block.Overlaps(b.Claim.Block) || a.paired().Overlaps(b.paired()))
}

func (n *loneNode) hear(other *loneNode) {
	for _, r := range other.known {
		if r.ID != n.self.ID {
			n.known.Merge(r)
		}
	}
}

// Nodes in changing partitions, which hear each other or not: once they all do, everybody has a block, no two overlap, and
// of those who had the same the one that had it longest kept it.
func TestClaimsConverge(t *testing.T) {
	all := dualPools(t)
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		p := testPools("10.244.0.0", fmt.Sprintf("10.244.%d.0", 8+rng.IntN(4)), 24)
		if rng.IntN(2) == 0 {
			p.Paired = all.Paired
		}
		var nodes []*loneNode
		for i := range 2 + rng.IntN(6) {
			nodes = append(nodes, newLoneNode(i, p))
		}
		now := time.Duration(0)
		step := func(side func(int) int, loss float64) {
			now += time.Duration(rng.IntN(400)) * time.Millisecond
			for _, i := range rng.Perm(len(nodes)) {
				for _, j := range rng.Perm(len(nodes)) {
					if i != j && side(i) == side(j) && rng.Float64() >= loss {
						nodes[i].hear(nodes[j])
					}
				}
				if rng.IntN(4) > 0 {
					nodes[i].turn(now, len(nodes))
				}
			}
		}
		if p.Dual() && rng.IntN(2) == 0 { // one with given subnets that do not go with each other: it has block 0 and half of the pair of 1
			nodes[0].claimer.Given, nodes[0].claimer.Given6 = p.Claimed.Block(0), netip.MustParsePrefix("fd00:244:0:1:8000::/65")
		}
		for range 1 + rng.IntN(3) {
			cut := rng.Uint64()
			for range 5 + rng.IntN(20) {
				step(func(i int) int { return int(cut>>i) & 1 }, 0.3)
			}
		}
		longest := longestOwners(nodes, now)
		for range 60 {
			step(func(int) int { return 0 }, 0)
		}
		for i, n := range nodes {
			if n.claimer.Claim.State != Confirmed && (!n.claimer.Given.IsValid() || n.claimer.Problem == "") {
				t.Fatalf("%s has no block: %+v", n.self.Name, n.claimer)
			}
			for _, other := range nodes[:i] {
				if n.collides(other) {
					t.Fatalf("%s and %s both have %s", n.self.Name, other.self.Name, n.claimer.Claim.Block)
				}
			}
			if had, ok := longest[n]; ok && n.claimer.Claim.Block != had {
				t.Fatalf("%s had %s the longest and has %s now", n.self.Name, had, n.claimer.Claim.Block)
			}
		}
	})
}

// newsTravel is how much later one side of a conflict may hear of it than the other, and so count more tenure.
const newsTravel = 3 * time.Second

// longestOwners returns for each block that somebody has confirmed who had it longest; nobody, where it is close.
func longestOwners(nodes []*loneNode, now time.Duration) map[*loneNode]netip.Prefix {
	owners := map[*loneNode]netip.Prefix{}
	for _, n := range nodes {
		block, age := n.claimer.Claim.Block, n.claimer.Age(now)
		close := slices.ContainsFunc(nodes, func(o *loneNode) bool {
			return o != n && o.claimer.Claim.State == Confirmed && o.collides(n) && o.claimer.Age(now)+newsTravel > age
		})
		if n.claimer.Claim.State == Confirmed && !close {
			owners[n] = block
		}
	}
	return owners
}

// Two nodes that have had one block for the same time, and always know a little less of the other than of themselves.
func TestEqualTenuresAreDecided(t *testing.T) {
	p := testPools("10.244.0.0", "10.244.1.0", 24)
	a, b := newLoneNode(1, p), newLoneNode(2, p)
	for _, n := range []*loneNode{a, b} {
		n.claimer.Adopt(Claim{Block: netip.MustParsePrefix("10.244.0.0/24"), State: Confirmed, Tenure: time.Hour}, nil, 0)
	}
	for now := time.Duration(0); now < 8*time.Second; now += 700 * time.Millisecond {
		a.hear(b)
		a.turn(now, 2)
		b.hear(a)
		b.turn(now+350*time.Millisecond, 2)
	}
	if a.claimer.Lost+b.claimer.Lost != 1 || a.claimer.Claim.Block == b.claimer.Claim.Block || a.gains+b.gains != 1 {
		t.Errorf("%+v\n%+v", a.claimer, b.claimer)
	}
}

// The record of a confirmed claim is as old as its last news: a younger claim with newer news must not win over it.
func TestOldTenureIsRefreshedBeforeItIsCompared(t *testing.T) {
	p := testPools("10.244.0.0", "10.244.1.0", 24)
	old, young := newLoneNode(1, p), newLoneNode(2, p)
	block := netip.MustParsePrefix("10.244.0.0/24")
	old.turn(0, 1)
	old.claimer.Adopt(Claim{Block: block, State: Confirmed}, nil, 0)
	old.turn(time.Millisecond, 1)
	young.claimer.Adopt(Claim{Block: block, State: Confirmed, Tenure: 20 * time.Second}, nil, 50*time.Second)
	young.turn(50*time.Second, 1) // its record says 20 s; the other one's says nothing
	for now := 51 * time.Second; now < 60*time.Second; now += 500 * time.Millisecond {
		old.hear(young)
		young.hear(old)
		old.turn(now, 2)
		young.turn(now, 2)
	}
	if old.claimer.Claim.Block != block || old.claimer.Lost != 0 {
		t.Errorf("the older claim was withdrawn: %+v", old.claimer)
	}
	if young.claimer.Claim.Block == block || young.claimer.Lost != 1 || young.claimer.Claim.State != Confirmed {
		t.Errorf("the younger claim: %+v", young.claimer)
	}
}

// The same where the two blocks meet in IPv6 alone: the younger one is given and does not go with its IPv4 block.
func TestOldTenureIsRefreshedBeforeItIsComparedInIPv6(t *testing.T) {
	p := dualPools(t)
	old, young := newLoneNode(1, p), newLoneNode(2, p)
	old.claimer.Adopt(Claim{Block: p.Claimed.Block(0), State: Confirmed, Tenure: time.Hour}, nil, 0)
	old.turn(0, 1) // its record says an hour from now on
	young.claimer.Given, young.claimer.Given6 = p.Claimed.Block(9), p.Paired.Block(0)
	young.claimer.Adopt(Claim{Block: young.claimer.Given, State: Confirmed, Tenure: time.Hour + 5*time.Second}, nil, 9*time.Second)
	young.turn(9*time.Second, 1)
	for now := 9 * time.Second; now < 20*time.Second; now += 500 * time.Millisecond {
		old.hear(young)
		young.hear(old)
		old.turn(now, 2)
		young.turn(now, 2)
	}
	if old.claimer.Claim.Block != p.Claimed.Block(0) || old.claimer.Lost != 0 {
		t.Errorf("the older claim was withdrawn: %+v", old.claimer)
	}
	if young.claimer.Claim.Block.IsValid() || young.claimer.Lost != 1 || !strings.Contains(young.claimer.Problem, "subnet fd00:244::/64 is given, but n1") {
		t.Errorf("the younger claim: %+v", young.claimer)
	}
}

func TestClaimWaits(t *testing.T) {
	n := newLoneNode(1, testPools("10.244.0.0", "10.244.3.0", 24))
	s := n.situation(time.Second, 1)
	s.Ready = false
	if n.claimer.Turn(s); n.claimer.Claim.Block.IsValid() {
		t.Fatal("claimed before it asked the others")
	}
	n.turn(time.Second, 5)
	if n.claimer.Claim.State != Tentative || !n.claimer.Claim.Block.IsValid() || n.gains != 0 {
		t.Fatalf("%+v", n.claimer)
	}
	n.turn(time.Second+claimWait(5)-1, 5)
	if n.gains != 0 {
		t.Fatal("confirmed too early")
	}
	n.turn(time.Second+claimWait(5), 5)
	if n.gains != 1 || n.claimer.Claim.State != Confirmed {
		t.Fatalf("%+v", n.claimer)
	}
}

func TestClaimWait(t *testing.T) {
	for members, want := range map[int]time.Duration{0: time.Second, 1: time.Second, 3: time.Second, 5: 1500 * time.Millisecond, 16: 1500 * time.Millisecond, 1000: 3300 * time.Millisecond} {
		if got := claimWait(members); got != want {
			t.Errorf("%d members: %s, want %s", members, got, want)
		}
	}
}

func taken(blocks ...string) (all []holding) {
	for i, b := range blocks {
		all = append(all, holding{Claim{Block: netip.MustParsePrefix(b), State: Confirmed}, &Record{ID: NodeID{200, byte(i)}, Name: fmt.Sprint("other", i)}})
	}
	return all
}

func TestNoFreeBlock(t *testing.T) {
	n := newLoneNode(1, testPools("10.244.0.0", "10.244.3.0", 24))
	s := n.situation(0, 3)
	s.Others = taken("10.244.0.0/24", "10.244.2.0/23")
	s.Reserved = []netip.Prefix{netip.MustParsePrefix("10.244.1.128/25")}
	s.Dead = map[NodeID]bool{{200, 1}: true}
	n.claimer.Turn(s)
	want := "no free subnet: 4 /24 subnets from 10.244.0.0 to 10.244.3.0 in 10.244.0.0/16 are all taken, by 2 other nodes (1 of them not alive) and 1 reserved prefixes: "
	if !strings.HasPrefix(n.claimer.Problem, want) {
		t.Errorf("problem %q", n.claimer.Problem)
	}
	s.Reserved = nil
	if n.claimer.Turn(s); n.claimer.Claim.Block != netip.MustParsePrefix("10.244.1.0/24") || n.claimer.Problem != "" {
		t.Errorf("%+v", n.claimer)
	}
}

func TestGivenSubnet(t *testing.T) {
	n := newLoneNode(1, testPools("10.244.0.0", "10.244.3.0", 24))
	n.claimer.Given = netip.MustParsePrefix("10.244.200.0/23")
	s := n.situation(0, 3)
	s.Others = taken("10.244.201.0/24")
	if n.claimer.Turn(s); n.claimer.Claim.Block.IsValid() || !strings.Contains(n.claimer.Problem, "10.244.200.0/23 is given, but other0") {
		t.Errorf("%+v", n.claimer)
	}
	s.Others = nil
	if n.claimer.Turn(s); n.claimer.Claim.Block != n.claimer.Given || n.claimer.Problem != "" {
		t.Errorf("%+v", n.claimer)
	}
	if !n.claimer.Fits(Claim{Block: n.claimer.Given}) || n.claimer.Fits(Claim{Block: netip.MustParsePrefix("10.244.1.0/24")}) {
		t.Error("fits")
	}
}

// An IPv6 subnet that is given beside another IPv4 one waits for the end of the quarantine too.
func TestGivenSubnetInIPv6(t *testing.T) {
	n := newLoneNode(1, dualPools(t))
	n.claimer.Given, n.claimer.Given6 = netip.MustParsePrefix("10.244.2.0/23"), netip.MustParsePrefix("fd00:244:0:7::/64")
	s := n.situation(0, 3)
	s.Quarantined = []netip.Prefix{netip.MustParsePrefix("fd00:244:0:7::/64")}
	if n.claimer.Turn(s); n.claimer.Claim.Block.IsValid() || !strings.Contains(n.claimer.Problem, "fd00:244:0:7::/64 is given, but was taken from its owner") {
		t.Errorf("%+v", n.claimer)
	}
	s.Quarantined = nil
	if n.claimer.Turn(s); n.claimer.Claim.Block != n.claimer.Given || n.claimer.Problem != "" {
		t.Errorf("%+v", n.claimer)
	}
}

func TestBarredNodeLosesItsClaimAfterAWhile(t *testing.T) {
	n := newLoneNode(1, testPools("10.244.0.0", "10.244.3.0", 24))
	n.turn(0, 1)
	barred := func(now time.Duration) {
		s := n.situation(now, 2)
		s.Barred = "the name is another's"
		if n.claimer.Turn(s) {
			t.Error("confirms while barred")
		}
	}
	if barred(time.Second); n.claimer.Claim.Block.IsValid() || n.claimer.Problem != "the name is another's" {
		t.Errorf("a tentative claim outlasts: %+v", n.claimer)
	}
	n.turn(2*time.Second, 1)
	n.turn(4*time.Second, 1)
	if n.claimer.Claim.State != Confirmed || n.claimer.Problem != "" {
		t.Fatalf("%+v", n.claimer)
	}
	if barred(5 * time.Second); n.claimer.Claim.State != Confirmed {
		t.Error("a confirmed claim went at once")
	}
	if n.turn(6*time.Second, 1); n.claimer.Problem != "" || n.claimer.Claim.State != Confirmed {
		t.Errorf("%+v", n.claimer)
	}
	barred(7 * time.Second)
	if barred(7*time.Second + barredClaim - 1); n.claimer.Claim.State != Confirmed {
		t.Error("the time before counts")
	}
	if barred(7*time.Second + barredClaim); n.claimer.Claim.Block.IsValid() {
		t.Error("a confirmed claim stays")
	}
}

// The claim on a given IPv6 subnet has the fence of that subnet, which ends it and no other does.
func TestFenceOfGivenIPv6Subnet(t *testing.T) {
	n := newLoneNode(1, dualPools(t))
	v4, v6 := netip.MustParsePrefix("10.244.2.0/23"), netip.MustParsePrefix("fd00:244:0:7::/64")
	n.claimer.Given, n.claimer.Given6 = v4, v6
	s := n.situation(0, 3)
	s.Fences = Fences{v4: {Number: 5, Served: Quarantine}, v6: {Number: 2, Served: Quarantine}}
	fences := func() (numbers []uint64) {
		for _, c := range n.claimer.Claims() {
			numbers = append(numbers, c.Fence)
		}
		return numbers
	}
	if n.claimer.Turn(s); !slices.Equal(fences(), []uint64{5, 2}) {
		t.Errorf("chosen with fences %v", fences())
	}
	n.claimer.Adopt(Claim{Block: v4, Fence: 5, State: Confirmed}, s.Fences, 0)
	if n.claimer.Turn(s); !slices.Equal(fences(), []uint64{5, 2}) || n.claimer.Claim.State != Confirmed {
		t.Errorf("from disk with fences %v: %+v", fences(), n.claimer)
	}
	s.Fences[v6] = Fence{Number: 3}
	s.Quarantined = []netip.Prefix{v6}
	if n.claimer.Turn(s); n.claimer.Claim.Block.IsValid() || n.claimer.Lost != 1 {
		t.Errorf("goes on although the IPv6 subnet was taken away: %+v", n.claimer)
	}
}
