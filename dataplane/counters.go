package dataplane

import "github.com/tulle-net/tulle/dataplane/packet"

// PortCounters count one side. Frames are reads and writes of the port, which a super-packet
// is one of; segments are what it stands for on the wire; bytes are of frames in and of
// segments out as the port sees them.
type PortCounters struct {
	FramesIn    uint64 `json:"framesIn"`
	SegmentsIn  uint64 `json:"segmentsIn"`
	BytesIn     uint64 `json:"bytesIn"`
	FramesOut   uint64 `json:"framesOut"`
	SegmentsOut uint64 `json:"segmentsOut"`
	BytesOut    uint64 `json:"bytesOut"`
}

// Counters is everything that one worker, or the whole engine, counted since it was made.
type Counters struct {
	Ports     [numCounters]PortCounters
	Generated uint64 // packets that the engine made itself, in segments
	Queued    uint64 // segments taken in and not yet settled: measured, not derived
	Inherited int64  // segments taken over from another engine, which waited there, less those left to one
	// ICMPLimited counts the ICMP errors that were not made because there were too many. They are no packets.
	ICMPLimited uint64
	Verdicts    [packet.NumVerdicts]uint64
}

func (c *Counters) add(o *Counters) {
	for i := range c.Ports {
		p, q := &c.Ports[i], &o.Ports[i]
		p.FramesIn += q.FramesIn
		p.SegmentsIn += q.SegmentsIn
		p.BytesIn += q.BytesIn
		p.FramesOut += q.FramesOut
		p.SegmentsOut += q.SegmentsOut
		p.BytesOut += q.BytesOut
	}
	c.Generated += o.Generated
	c.Queued += o.Queued
	c.Inherited += o.Inherited
	c.ICMPLimited += o.ICMPLimited
	for i := range c.Verdicts {
		c.Verdicts[i] += o.Verdicts[i]
	}
}

// A Ledger is the conservation of packets, in wire segments:
// In + Generated + Inherited = Out + Consumed + Dropped + Queued, exact.
type Ledger struct {
	In        uint64 `json:"in"`
	Generated uint64 `json:"generated"`
	Inherited int64  `json:"inherited"` // from the daemon before, less those left to the next one
	Out       uint64 `json:"out"`
	Consumed  uint64 `json:"consumed"`
	Dropped   uint64 `json:"dropped"`
	Queued    uint64 `json:"queued"`
	// Judged is the sum over all verdicts: every packet gets exactly one, so it equals
	// In + Generated + Inherited - Queued.
	Judged uint64 `json:"judged"`
}

// Ledger sums the counters up.
func (c *Counters) Ledger() Ledger {
	l := Ledger{Generated: c.Generated, Inherited: c.Inherited, Queued: c.Queued}
	for _, p := range c.Ports {
		l.In += p.SegmentsIn
		l.Out += p.SegmentsOut
	}
	for v, n := range c.Verdicts {
		l.Judged += n
		switch verdict := packet.Verdict(v); {
		case verdict.Consumed():
			l.Consumed += n
		case verdict.Dropped():
			l.Dropped += n
		}
	}
	return l
}

// Balanced reports whether no packet is missing and none was counted twice.
func (l Ledger) Balanced() bool {
	in := l.In + l.Generated + uint64(l.Inherited)
	return in == l.Out+l.Consumed+l.Dropped+l.Queued && in == l.Judged+l.Queued
}
