package gossip

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-net/tulle/control/claim"
)

// someLives returns lives of n peers that joined at 0, and their records.
func someLives(n int) (*lives, claim.Records, []*claim.Record) {
	l, known := &lives{of: map[claim.NodeID]*life{}}, claim.Records{}
	var all []*claim.Record
	for i := range n {
		r := &claim.Record{ID: claim.NodeID{byte(i + 1)}, Epoch: 4, Name: fmt.Sprint("n", i), Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7946)}
		known[r.ID] = r
		all = append(all, r)
		l.joined(r.ID, 4, 0)
	}
	return l, known, all
}

func (l *lives) keptOf(all []*claim.Record) (n int) {
	for _, r := range all {
		if l.of[r.ID].kept {
			n++
		}
	}
	return n
}

func TestFewDeadAreDead(t *testing.T) {
	l, known, all := someLives(5)
	l.left(all[0].ID, 4, time.Minute)
	l.left(all[1].ID, 4, time.Minute)
	l.lastAck = time.Minute
	l.judge(known, claim.NodeID{99}, time.Minute)
	if l.cutOff || l.keptOf(all) != 0 {
		t.Errorf("two of five: %+v", l)
	}
}

func TestMostDeadAtOnceAreKept(t *testing.T) {
	l, known, all := someLives(5)
	for i := range 3 {
		l.left(all[i].ID, 4, time.Minute+time.Duration(i)*time.Second)
	}
	l.lastAck = time.Minute + 2*time.Second
	l.judge(known, claim.NodeID{99}, l.lastAck)
	if !l.cutOff || l.lost != 3 || l.all != 5 || l.keptOf(all) != 3 {
		t.Errorf("three of five: %+v", l)
	}
	// For as long as it takes.
	l.lastAck = time.Hour
	l.judge(known, claim.NodeID{99}, time.Hour)
	if l.keptOf(all) != 3 {
		t.Error("given up after an hour")
	}
	// One back: two of five are dead.
	l.joined(all[0].ID, 4, time.Hour)
	l.judge(known, claim.NodeID{99}, time.Hour)
	if l.cutOff || l.keptOf(all) != 0 {
		t.Errorf("two of five: %+v", l)
	}
}

func TestDeadOneByOneAreDead(t *testing.T) {
	l, known, all := someLives(5)
	for i := range 5 {
		now := time.Duration(i+1) * time.Hour
		l.lastAck = now
		l.judge(known, claim.NodeID{99}, now)
		l.left(all[i].ID, 4, now)
		l.judge(known, claim.NodeID{99}, now)
		if cut := i == 4; l.cutOff != cut { // the last peer is all there is
			t.Errorf("after %d: cut off %v", i+1, l.cutOff)
		}
	}
}

func TestADeafNodeKeepsTheFirstThatDies(t *testing.T) {
	l, known, all := someLives(5)
	l.lastAck = time.Minute
	now := l.lastAck + silence + 1
	l.left(all[0].ID, 4, now)
	l.judge(known, claim.NodeID{99}, now)
	if !l.cutOff || l.keptOf(all) != 1 {
		t.Errorf("%+v", l)
	}
	l.acked(all[1].ID, now) // it hears after all
	l.judge(known, claim.NodeID{99}, now)
	if l.cutOff || l.keptOf(all) != 0 {
		t.Errorf("%+v", l)
	}
}

func TestWhoLeftDoesNotCount(t *testing.T) {
	l, known, all := someLives(3)
	for i := range 2 {
		all[i].Flags = claim.FlagLeaving
		l.left(all[i].ID, 4, time.Minute)
	}
	l.lastAck = time.Minute
	l.judge(known, claim.NodeID{99}, time.Minute)
	if l.cutOff || l.alive(all[0]) || !l.alive(all[2]) {
		t.Errorf("%+v", l)
	}
}

func TestOnlyTheNewestBootCounts(t *testing.T) {
	l, _, all := someLives(1)
	r := all[0]
	l.left(r.ID, 3, 1) // an older boot's death
	if !l.alive(r) {
		t.Error("an older boot's death counts")
	}
	l.joined(r.ID, 5, 2)
	if l.alive(r) {
		t.Error("alive with a record of an older boot")
	}
	r.Epoch = 5
	if l.joined(r.ID, 4, 3); !l.alive(r) {
		t.Error("an older boot's return counts")
	}
	if l.left(r.ID, 4, 4); !l.alive(r) {
		t.Error("an older boot's death counts")
	}
	if l.left(r.ID, 5, 5); l.alive(r) {
		t.Error("the newest boot's death does not count")
	}
}

func TestConflicts(t *testing.T) {
	node := func(id byte, name string, host byte, tenure time.Duration) *claim.Record {
		r := &claim.Record{ID: claim.NodeID{id}, Name: name, Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, host}), uint16(id))}
		if tenure > 0 {
			r.Claims = []claim.Claim{{State: claim.Confirmed, Tenure: tenure}}
		}
		return r
	}
	a, b, c, d := node(9, "a", 1, time.Hour), node(1, "a", 2, time.Minute), node(2, "a", 3, 0), node(3, "d", 1, time.Minute)
	for _, order := range [][]*claim.Record{{a, b, c, d}, {d, c, b, a}, {b, d, a, c}} {
		got := conflicts(order)
		if len(got) != 3 || got[b.ID].with != a || got[c.ID].with != a || got[d.ID].with != a || got[d.ID].reason != refusedEndpoint || got[b.ID].reason != refusedName {
			t.Errorf("%v", got)
		}
	}
	if x, y := node(5, "x", 5, 0), node(4, "x", 6, 0); conflicts([]*claim.Record{x, y})[x.ID].with != y {
		t.Error("without subnets the lower ID stays")
	}
}
