package gossip

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// someLives returns lives of n peers that joined at 0, and their records.
func someLives(n int) (*lives, records, []*record) {
	l, known := &lives{of: map[nodeID]*life{}}, records{}
	var all []*record
	for i := range n {
		r := &record{id: nodeID{byte(i + 1)}, epoch: 4, name: fmt.Sprint("n", i), endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 7946)}
		known[r.id] = r
		all = append(all, r)
		l.joined(r.id, 4, 0)
	}
	return l, known, all
}

func (l *lives) keptOf(all []*record) (n int) {
	for _, r := range all {
		if l.of[r.id].kept {
			n++
		}
	}
	return n
}

func TestFewDeadAreDead(t *testing.T) {
	l, known, all := someLives(5)
	l.left(all[0].id, 4, time.Minute)
	l.left(all[1].id, 4, time.Minute)
	l.lastAck = time.Minute
	l.judge(known, nodeID{99}, time.Minute)
	if l.cutOff || l.keptOf(all) != 0 {
		t.Errorf("two of five: %+v", l)
	}
}

func TestMostDeadAtOnceAreKept(t *testing.T) {
	l, known, all := someLives(5)
	for i := range 3 {
		l.left(all[i].id, 4, time.Minute+time.Duration(i)*time.Second)
	}
	l.lastAck = time.Minute + 2*time.Second
	l.judge(known, nodeID{99}, l.lastAck)
	if !l.cutOff || l.lost != 3 || l.all != 5 || l.keptOf(all) != 3 {
		t.Errorf("three of five: %+v", l)
	}
	// For as long as it takes.
	l.lastAck = time.Hour
	l.judge(known, nodeID{99}, time.Hour)
	if l.keptOf(all) != 3 {
		t.Error("given up after an hour")
	}
	// One back: two of five are dead.
	l.joined(all[0].id, 4, time.Hour)
	l.judge(known, nodeID{99}, time.Hour)
	if l.cutOff || l.keptOf(all) != 0 {
		t.Errorf("two of five: %+v", l)
	}
}

func TestDeadOneByOneAreDead(t *testing.T) {
	l, known, all := someLives(5)
	for i := range 5 {
		now := time.Duration(i+1) * time.Hour
		l.lastAck = now
		l.judge(known, nodeID{99}, now)
		l.left(all[i].id, 4, now)
		l.judge(known, nodeID{99}, now)
		if cut := i == 4; l.cutOff != cut { // the last peer is all there is
			t.Errorf("after %d: cut off %v", i+1, l.cutOff)
		}
	}
}

func TestADeafNodeKeepsTheFirstThatDies(t *testing.T) {
	l, known, all := someLives(5)
	l.lastAck = time.Minute
	now := l.lastAck + silence + 1
	l.left(all[0].id, 4, now)
	l.judge(known, nodeID{99}, now)
	if !l.cutOff || l.keptOf(all) != 1 {
		t.Errorf("%+v", l)
	}
	l.acked(all[1].id, now) // it hears after all
	l.judge(known, nodeID{99}, now)
	if l.cutOff || l.keptOf(all) != 0 {
		t.Errorf("%+v", l)
	}
}

func TestWhoLeftDoesNotCount(t *testing.T) {
	l, known, all := someLives(3)
	for i := range 2 {
		all[i].flags = flagLeaving
		l.left(all[i].id, 4, time.Minute)
	}
	l.lastAck = time.Minute
	l.judge(known, nodeID{99}, time.Minute)
	if l.cutOff || l.alive(all[0]) || !l.alive(all[2]) {
		t.Errorf("%+v", l)
	}
}

func TestOnlyTheNewestBootCounts(t *testing.T) {
	l, _, all := someLives(1)
	r := all[0]
	l.left(r.id, 3, 1) // an older boot's death
	if !l.alive(r) {
		t.Error("an older boot's death counts")
	}
	l.joined(r.id, 5, 2)
	if l.alive(r) {
		t.Error("alive with a record of an older boot")
	}
	r.epoch = 5
	if l.joined(r.id, 4, 3); !l.alive(r) {
		t.Error("an older boot's return counts")
	}
	if l.left(r.id, 4, 4); !l.alive(r) {
		t.Error("an older boot's death counts")
	}
	if l.left(r.id, 5, 5); l.alive(r) {
		t.Error("the newest boot's death does not count")
	}
}

func TestConflicts(t *testing.T) {
	node := func(id byte, name string, host byte, tenure time.Duration) *record {
		r := &record{id: nodeID{id}, name: name, endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, host}), uint16(id))}
		if tenure > 0 {
			r.claims = []claim{{state: confirmed, tenure: tenure}}
		}
		return r
	}
	a, b, c, d := node(9, "a", 1, time.Hour), node(1, "a", 2, time.Minute), node(2, "a", 3, 0), node(3, "d", 1, time.Minute)
	for _, order := range [][]*record{{a, b, c, d}, {d, c, b, a}, {b, d, a, c}} {
		got := conflicts(order)
		if len(got) != 3 || got[b.id].with != a || got[c.id].with != a || got[d.id].with != a || got[d.id].reason != refusedEndpoint || got[b.id].reason != refusedName {
			t.Errorf("%v", got)
		}
	}
	if x, y := node(5, "x", 5, 0), node(4, "x", 6, 0); conflicts([]*record{x, y})[x.id].with != y {
		t.Error("without subnets the lower ID stays")
	}
}

func TestMemberNames(t *testing.T) {
	id := nodeID{1, 2, 3}
	if got, epoch, ok := parseMember(memberName(id, 77)); !ok || got != id || epoch != 77 {
		t.Errorf("%s %d %v", got, epoch, ok)
	}
	for _, name := range []string{"", ".", "n1", id.String(), id.String() + ".", id.String() + ".-1", id.String() + ".01", id.String() + ".1.2", "." + id.String()} {
		if _, _, ok := parseMember(name); ok {
			t.Errorf("%q is taken for a member", name)
		}
	}
}

func TestTwins(t *testing.T) {
	self := &record{epoch: 5, nonce: 5}
	at := func(r record) *record { r.endpoint = netip.MustParseAddrPort("192.0.2.9:7946"); return &r }
	earlier, later := at(record{epoch: 5, nonce: 4}), at(record{epoch: 6})

	var moved twins // this node's own last boot at its former address, for some seconds
	moved.met(earlier, 0)
	moved.met(earlier, 6*time.Second)
	if v := moved.verdict(self, time.Minute); v != nil {
		t.Errorf("%+v", v)
	}
	var copied twins
	copied.met(earlier, 0)
	copied.met(earlier, laterGivesWay)
	if v := copied.verdict(self, laterGivesWay); v == nil || !v.fresh {
		t.Errorf("the later boot does not give way: %+v", v)
	}
	var original twins
	original.heard(later, self)
	original.met(later, 0)
	original.met(later, laterGivesWay)
	if v := original.verdict(self, laterGivesWay); v != nil {
		t.Errorf("the earlier boot gives way: %+v", v)
	}
	gone := at(record{epoch: 6, seq: 2, flags: flagLeaving})
	original.heard(gone, self)
	if v := original.verdict(self, laterGivesWay); v == nil || v.fresh || v.above != gone {
		t.Errorf("the earlier boot does not take its identity back: %+v", v)
	}
	var both twins
	both.met(later, 0)
	both.met(later, earlierGivesWay)
	if v := both.verdict(self, earlierGivesWay); v == nil || !v.fresh {
		t.Errorf("nobody gives way: %+v", v)
	}
}
