package claim

import (
	"maps"
	"math"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func genFences(t *rapid.T) Fences {
	f := Fences{}
	for range rapid.IntRange(0, 4).Draw(t, "fences") {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, rapid.ByteRange(0, 3).Draw(t, "block"), 0}), 24)
		f[block] = Fence{rapid.Uint64Range(1, 3).Draw(t, "number"), time.Duration(rapid.Int64Range(0, 3).Draw(t, "served")) * time.Minute}
	}
	return f
}

func merged(all ...Fences) Fences {
	out := Fences{}
	for _, f := range all {
		for block, one := range f {
			out.Merge(block, one)
		}
	}
	return out
}

func TestFencesAreAJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genFences(t), genFences(t), genFences(t)
		want := merged(a, b, c)
		for _, got := range []Fences{merged(c, b, a), merged(merged(b, c), a), merged(a, a, b, c, b)} {
			if !maps.Equal(got, want) {
				t.Fatalf("%v and %v", got, want)
			}
		}
		for block, one := range want {
			if one.Number < max(a[block].Number, b[block].Number, c[block].Number) {
				t.Fatalf("the fence of %s fell: %v", block, want)
			}
		}
	})
}

// No record makes a fence that others would refuse, or more of them than there is room for.
func TestFencesAreBounded(t *testing.T) {
	f := Fences{}
	block := netip.MustParsePrefix("10.244.2.0/24")
	f.observe([]Claim{{Block: block, Fence: math.MaxUint64, State: Released}, {Block: block, Fence: math.MaxUint64}})
	if len(f) != 0 {
		t.Errorf("%v", f)
	}
	for i := range MaxFences + 10 {
		f.Raise(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), 1)
	}
	if len(f) != MaxFences {
		t.Errorf("%d fences", len(f))
	}
}

// A fence is of one block's claims: smaller and larger ones go on.
func TestAFenceIsOfOneBlock(t *testing.T) {
	f := Fences{}
	block := netip.MustParsePrefix("10.244.2.0/24")
	f.Raise(block, 2)
	for c, dead := range map[Claim]bool{
		{Block: block, Fence: 1}: true, {Block: block, Fence: 2}: false,
		{Block: netip.MustParsePrefix("10.244.2.0/23")}: false, {Block: netip.MustParsePrefix("10.244.2.0/25")}: false,
	} {
		if f.Dead(c) != dead {
			t.Errorf("%+v", c)
		}
	}
}

// Two nodes that tell each other of a fence all the time do not make the quarantine shorter.
func TestQuarantineIsCountedOnce(t *testing.T) {
	p := testPools("10.244.0.0", "10.244.3.0", 24)
	a, b := NewMachine(NodeID{1}, p, 1, Memory{}, 0), NewMachine(NodeID{2}, p, 1, Memory{}, 0)
	block := netip.MustParsePrefix("10.244.2.0/24")
	a.pass(0)
	a.Fences.Raise(block, 1)
	now := time.Duration(0)
	for ; now < Quarantine-time.Second; now += 250 * time.Millisecond {
		b.HearFences(a.Fences, now)
		a.HearFences(b.Fences, now+100*time.Millisecond)
	}
	if len(a.Fences.quarantined(Quarantine)) != 1 || len(b.Fences.quarantined(Quarantine)) != 1 {
		t.Fatalf("after %s it is over: %v, %v", now, a.Fences, b.Fences)
	}
	kept := a.Memory(netip.Prefix{})
	again := NewMachine(NodeID{1}, p, 2, kept, time.Hour) // the time between two boots does not count
	again.pass(time.Hour + 500*time.Millisecond)
	if len(again.Fences.quarantined(Quarantine)) != 1 {
		t.Errorf("a restart ends it: %v", again.Fences)
	}
	if again.pass(time.Hour + 2*time.Second); len(again.Fences.quarantined(Quarantine)) != 0 {
		t.Errorf("a restart begins it anew: %v", again.Fences)
	}
}

// machineTurn is what a caller does with one turn.
func machineTurn(m *Machine, s Situation) {
	s.Ready = true
	if confirm, _ := m.Turn(s); confirm {
		m.Claimer.Confirm(s.Now)
	}
	m.Self = &Record{ID: m.ID, Name: m.ID.String(), Seq: m.Self.Seq + 1, Claims: m.Claimer.Claims()}
	m.Known[m.ID] = m.Self
}

func newTestMachine(i byte, p Pools) *Machine {
	m := NewMachine(NodeID{i}, p, 1, Memory{}, 0)
	m.Self = &Record{ID: m.ID}
	return m
}

// The only block there is, given back: it is free again after the quarantine, and not before.
func TestAReleasedBlockIsUsedAgain(t *testing.T) {
	p := testPools("10.244.2.0", "10.244.2.0", 24)
	a, b := newTestMachine(1, p), newTestMachine(2, p)
	for now := time.Duration(0); now < 3*time.Second; now += 250 * time.Millisecond {
		machineTurn(a, Situation{Now: now, Members: 1})
	}
	if a.Claimer.Claim.State != Confirmed {
		t.Fatalf("%+v", a.Claimer)
	}
	a.Release(3 * time.Second)
	machineTurn(a, Situation{Now: 3 * time.Second, Members: 1})
	b.Hear(a.Self, 3*time.Second)
	at := time.Duration(0)
	for now := 3 * time.Second; at == 0 && now < 2*Quarantine; now += 250 * time.Millisecond {
		machineTurn(b, Situation{Now: now, Members: 1})
		if b.Claimer.Claim.Block.IsValid() {
			at = now
		}
	}
	if at < Quarantine+3*time.Second || at > Quarantine+4*time.Second || b.Claimer.Claim.Fence != 1 {
		t.Errorf("claimed at %s: %+v", at, b.Claimer.Claim)
	}
	if machineTurn(a, Situation{Now: Quarantine, Members: 1}); a.Claimer.Claim.Block.IsValid() {
		t.Error("who gave its block back claims another")
	}
}

// A node that is gone for too long loses its block, where more than half of the nodes see it so.
func TestReclaim(t *testing.T) {
	p := testPools("10.244.0.0", "10.244.9.0", 24)
	m := newTestMachine(1, p)
	m.ReclaimAfter, m.Known[m.ID] = time.Hour, m.Self
	dead := map[NodeID]bool{}
	for i := byte(2); i < 7; i++ {
		m.Hear(&Record{ID: NodeID{i}, Claims: []Claim{{Block: p.Claimed.Block(uint64(i)), State: Confirmed}}}, 0)
	}
	dead[NodeID{2}], dead[NodeID{3}] = true, true
	m.Turn(Situation{Now: time.Second, Members: 3, Dead: dead})
	m.Turn(Situation{Now: 2 * time.Hour, Members: 3, Dead: dead})
	if len(m.Fences) != 0 {
		t.Fatalf("a node that sees half of the others reclaims: %v", m.Fences)
	}
	m.Turn(Situation{Now: 2*time.Hour + time.Second, Members: 4, Dead: map[NodeID]bool{{2}: true}})
	if len(m.Fences) != 1 || m.Fences[p.Claimed.Block(2)].Number != 1 {
		t.Errorf("%v", m.Fences)
	}
}
