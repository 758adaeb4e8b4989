package main

import (
	"slices"
	"time"
)

// joinWait is how long a packet waits for its other half, which a packet that was lost does not have.
const joinWait = time.Second

// A tracedPacket is what tulle trace shows: one packet, its way through one node, or through two.
type tracedPacket struct {
	SchemaVersion int          `json:"schemaVersion"`
	Number        int          `json:"number"`
	About         int          `json:"about,omitempty"` // number of the packet that this one, made by an engine, answers or complains of
	Packet        packetReport `json:"packet"`
	Verdict       string       `json:"verdict"` // of the last node, or the first drop
	Cause         string       `json:"cause"`
	// Ways are those through the nodes, in the packet's order: of a super-packet one for each piece that arrived.
	Ways []*wayReport `json:"ways"`
	// OneWayMicroseconds is the time from the encap stage of one node to the read stage of the other; absent unless both nodes have
	// one clock.
	OneWayMicroseconds *float64 `json:"oneWayMicroseconds,omitempty"`
	// NotSeenOn names the other node of two when the packet was sent to it and did not come in there.
	NotSeenOn string `json:"notSeenOn,omitempty"`
	// OneClock says that the nodes' startNanoseconds can be compared.
	OneClock bool `json:"oneClock"`
}

// A traceGroup is one packet as far as it was seen: at most one way that leads out to a peer, which comes first, and those that
// came in from it.
type traceGroup struct {
	ways    []*wayReport
	arrived time.Time
}

// A traceJoiner puts the ways of a packet through two nodes together, by what stays the same on the wire. The zero value joins
// nothing.
type traceJoiner struct {
	other  string // name of the second node; "" for a trace of one
	groups []*traceGroup
}

// otherThan is the one of two nodes that node is not, "" in a trace of one.
func (j *traceJoiner) otherThan(node, first string) string {
	if j.other == "" || node == first {
		return j.other
	}
	return first
}

func cameIn(w *wayReport) bool   { return !w.Made && w.From != "tap" }
func leadsOut(w *wayReport) bool { return w.Wire != nil }

// add takes one more way.
func (j *traceJoiner) add(w *wayReport, now time.Time) {
	if g := j.groupOf(w); g != nil {
		g.ways = append(g.ways, w)
		return
	}
	g := &traceGroup{ways: []*wayReport{w}, arrived: now}
	if leadsOut(w) {
		j.absorb(g)
	}
	j.groups = append(j.groups, g)
}

// groupOf is the oldest packet that w, which came in, may be the other half of; nil when there is none.
func (j *traceJoiner) groupOf(w *wayReport) *traceGroup {
	if j.other == "" || !cameIn(w) {
		return nil
	}
	for _, g := range j.groups {
		if out := g.ways[0]; leadsOut(out) && !g.arrivedWhole() && isOtherHalf(out, w) {
			return g
		}
	}
	return nil
}

// absorb gives a packet that leads out the halves that were here before it.
func (j *traceJoiner) absorb(g *traceGroup) {
	j.groups = slices.DeleteFunc(j.groups, func(early *traceGroup) bool {
		w := early.ways[0]
		if j.other == "" || len(early.ways) > 1 || !cameIn(w) || g.arrivedWhole() || !isOtherHalf(g.ways[0], w) {
			return false
		}
		g.ways = append(g.ways, w)
		return true
	})
}

// arrivedWhole says whether every segment that left came in.
func (g *traceGroup) arrivedWhole() bool {
	in := 0
	for _, w := range g.ways[1:] {
		in += w.Segments
	}
	return in >= g.ways[0].Segments
}

// ready returns the packets that are whole, or have waited long enough, and forgets them.
func (j *traceJoiner) ready(now time.Time) (done []*traceGroup) {
	j.groups = slices.DeleteFunc(j.groups, func(g *traceGroup) bool {
		ready := j.complete(g) || now.Sub(g.arrived) >= joinWait
		if ready {
			done = append(done, g)
		}
		return ready
	})
	return done
}

func (j *traceJoiner) complete(g *traceGroup) bool {
	w := g.ways[0]
	switch {
	case j.other == "":
		return true
	case leadsOut(w) && w.Verdict == "encapsulated":
		return g.arrivedWhole()
	}
	return !cameIn(w) // else the half that leads out may come yet
}

// isOtherHalf says whether what left one node as out may be what another node read as in: addresses, protocol, ports and fragment
// offset are the same, and so is what tells the packets of a flow apart. TTL, ECN and DSCP may change on the way.
func isOtherHalf(out, in *wayReport) bool {
	a, b := out.Wire, &in.Packet
	if out.Node == in.Node || a.Src != b.Src || a.Dst != b.Dst || a.Proto != b.Proto || a.Offset != b.Offset || a.SrcPort != b.SrcPort || a.DstPort != b.DstPort {
		return false
	}
	if out.Segments > 1 {
		return isSegment(a, b, out.Segments)
	}
	return a.ID == b.ID && a.Seq == b.Seq && a.Length == b.Length && a.Message == b.Message && a.Checksum == b.Checksum
}

// isSegment is isOtherHalf for a super-packet, which is cut behind the engine: TCP's sequence numbers go on, and so do the
// identifications of IPv4.
func isSegment(super, b *packetReport, segments int) bool {
	if super.Proto == "tcp" {
		return b.Seq-super.Seq < uint32(max(1, super.Payload))
	}
	return uint16(b.ID-super.ID) < uint16(segments)
}

// report makes of a group what is shown. other is the second node, or "" for one; oneClock says that their times can be compared.
func (g *traceGroup) report(other string, oneClock bool) *tracedPacket {
	first, last := g.ways[0], g.ways[len(g.ways)-1]
	for _, w := range slices.Backward(g.ways) {
		if dropped(w) {
			last = w
		}
	}
	p := &tracedPacket{SchemaVersion: schemaVersion, Packet: first.Packet, Verdict: last.Verdict, Cause: last.Cause, Ways: g.ways, OneClock: oneClock}
	if len(g.ways) == 1 && leadsOut(first) && first.Peer != "" && first.Peer == other {
		p.NotSeenOn = other
	}
	if oneClock && len(g.ways) > 1 {
		us := float64(g.ways[1].Start-first.at("encap")) / 1e3
		p.OneWayMicroseconds = &us
	}
	return p
}

// at is the time of a stage that the way has, in the terms of Start.
func (w *wayReport) at(stage string) int64 {
	i := slices.IndexFunc(w.Stages, func(s stageReport) bool { return s.Stage == stage })
	return w.Start + int64(w.Stages[i].Microseconds*1e3)
}

func dropped(w *wayReport) bool { return w.Stages[len(w.Stages)-1].Stage == "drop" }
