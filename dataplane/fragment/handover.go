package fragment

import (
	"net/netip"
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
)

// A Handover is what a Tracker knows, for another one to go on with: in another process perhaps, and of another build. Times are the
// Trackers' common clock's.
type Handover struct {
	Datagrams []Datagram `json:"datagrams,omitempty"` // the one used last is the last
	Waiting   []Waiting  `json:"waiting,omitempty"`   // in the order of arrival
}

// A Datagram is one that fragments were seen of.
type Datagram struct {
	Src      netip.Addr    `json:"src"`
	Dst      netip.Addr    `json:"dst"`
	ID       uint32        `json:"id"`
	Proto    uint8         `json:"proto"` // 0 for IPv6
	Expires  time.Duration `json:"expires"`
	Decided  bool          `json:"decided,omitempty"`
	Verdict  string        `json:"verdict,omitempty"` // of the first fragment, by name; valid iff Decided
	Poisoned bool          `json:"poisoned,omitempty"`
	Seen     []Place       `json:"seen,omitempty"` // valid iff not Poisoned
}

// A Place is where a fragment lies in its datagram, bytes.
type Place struct {
	From int  `json:"from"`
	To   int  `json:"to"`
	More bool `json:"more,omitempty"`
}

// A Waiting is a fragment that waits for its first one.
type Waiting struct {
	Frame    []byte        `json:"frame"`
	Detached bool          `json:"detached,omitempty"`
	VNet     packet.VNet   `json:"vnet"`
	Deadline time.Duration `json:"deadline"`
}

// HandOver returns what the Tracker knows and leaves it without. What Expire has to return by then is not in it.
func (t *Tracker) HandOver() Handover {
	var h Handover
	for d := t.table.oldest(); d != nil; d = d.newer {
		if d.used() {
			h.Datagrams = append(h.Datagrams, d.describe())
		}
	}
	for e := t.hold.waiting.first; e != nil; e = e.next {
		f := &e.frame
		h.Waiting = append(h.Waiting, Waiting{Frame: append([]byte(nil), f.Bytes()...), Detached: f.Detached, VNet: f.VNet, Deadline: e.deadline})
	}
	*t = *New(t.limits)
	return h
}

// Adopt makes a Tracker that is new go on where another one handed over. What cannot be, as it came from another build or a damaged
// answer, is left out. It returns the segments that it holds now.
func (t *Tracker) Adopt(h Handover, now time.Duration) int {
	for _, g := range h.Datagrams {
		t.adoptDatagram(g, now)
	}
	last := now // held fragments lie in the order of their deadlines
	for _, w := range h.Waiting {
		last = max(last, min(w.Deadline, now+t.limits.Wait))
		t.adoptWaiting(w, last)
	}
	return t.Held()
}

func (t *Tracker) adoptDatagram(g Datagram, now time.Duration) {
	verdict, known := verdictNamed(g.Verdict)
	if g.Src.Is4() != g.Dst.Is4() || !g.Src.IsValid() || !g.Dst.IsValid() || g.Decided && !known {
		return
	}
	k := key{src: g.Src.As16(), dst: g.Dst.As16(), id: g.ID, proto: g.Proto, v6: g.Src.Is6()}
	if t.table.find(k) != nil || t.table.oldest().used() {
		return
	}
	d := t.table.oldest()
	t.table.rename(d, k)
	d.reset(now)
	for _, s := range g.Seen {
		p := piece{offset: s.From, length: s.To - s.From, more: s.More}
		if s.From < 0 || s.From%blockLen != 0 || !p.sound() || p.end() > maxDatagram || d.place(p) != fresh {
			d.poisoned = true // of two that contradict each other nobody knows which was seen
			break
		}
		d.mark(p, now)
	}
	d.expires = max(min(d.expires, g.Expires), 1) // 0 is an entry that is unused
	d.decided, d.verdict, d.poisoned = g.Decided, verdict, d.poisoned || g.Poisoned
	t.table.touch(d)
}

// adoptWaiting holds a fragment of a datagram that was adopted and waits for its first one.
func (t *Tracker) adoptWaiting(w Waiting, deadline time.Duration) {
	if len(w.Frame) > packet.MaxFrame {
		return
	}
	b := packet.NewBatch(0)
	slot := b.Slot(len(w.Frame))
	f := b.Append(slot, packet.Headroom, packet.Headroom+copy(slot[packet.Headroom:], w.Frame))
	f.Detached, f.VNet = w.Detached, w.VNet
	if f.Parse() != packet.None || !f.Fragment {
		return
	}
	if d := t.table.find(keyOf(f)); d != nil && !d.decided && !d.poisoned {
		t.hold.keep(d, f, deadline)
	}
}

// used reports whether the entry was ever a datagram's.
func (d *datagram) used() bool { return d.expires != 0 }

func (d *datagram) describe() Datagram {
	k := d.key
	g := Datagram{
		Src: netip.AddrFrom16(k.src), Dst: netip.AddrFrom16(k.dst), ID: k.id, Proto: k.proto,
		Expires: d.expires, Decided: d.decided, Poisoned: d.poisoned,
	}
	if !k.v6 {
		g.Src, g.Dst = g.Src.Unmap(), g.Dst.Unmap()
	}
	if d.decided && d.verdict != packet.None {
		g.Verdict = d.verdict.String()
	}
	if !d.poisoned {
		g.Seen = d.places()
	}
	return g
}

// places lists the fragments that were marked.
func (d *datagram) places() (all []Place) {
	end := blocksTo(d.reach)
	for from := 0; from < end; from++ {
		if !d.starts.has(from) {
			continue
		}
		to := from + 1
		for to < end && d.blocks.has(to) && !d.starts.has(to) {
			to++
		}
		last := d.closed && to == end
		all = append(all, Place{From: from * blockLen, To: min(to*blockLen, d.reach), More: !last})
	}
	return all
}

// verdictNamed returns the verdict of a name; None for the empty one.
func verdictNamed(name string) (packet.Verdict, bool) {
	if name == "" {
		return packet.None, true
	}
	for v := packet.None + 1; v < packet.NumVerdicts; v++ {
		if v.String() == name {
			return v, true
		}
	}
	return packet.None, false
}
