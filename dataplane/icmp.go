package dataplane

import (
	"time"

	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// complain tells the sender of a packet why it is dropped, with an ICMP error from the engine's address, and returns the
// verdict. mtu is the path's, for DropTooBig.
func (w *worker) complain(set *tables.Set, f *packet.Frame, v packet.Verdict, mtu int) packet.Verdict {
	kind := packet.NoRoute
	switch v {
	case packet.DropTTL:
		kind = packet.HopLimitExceeded
	case packet.DropTooBig:
		kind = packet.TooBig
	}
	if !w.limits.allow(f.Hash, v == packet.DropTooBig, w.now) {
		w.count.ICMPLimited++
		return v
	}
	from := set.Node.Engine
	if f.EtherType == packet.EtherTypeIPv6 {
		from = set.Node.Engine6
	}
	if e, ok := packet.ICMPError(w.made, f, from, kind, mtu); ok {
		offender := w.sighting
		w.meetMade(e, f.Serial)
		w.reply(set, e)
		w.sighting = offender
	}
	return v
}

// An icmpLimiter bounds the ICMP errors of one worker, as RFC 1812 section 4.3.2.8 and RFC 4443 section 2.4 (f) demand: a
// token bucket over all, and one for each of some groups of flows, so that one flow that provokes errors takes nothing
// from the others. What a path MTU depends on is exempt from the latter, as in Linux. The zero value is ready.
type icmpLimiter struct {
	all   bucket
	flows [256]bucket
}

// Rates in errors a second, and bursts. Linux: net.ipv4.icmp_msgs_per_sec 1000 and icmp_msgs_burst 50; icmp_ratelimit allows
// one a second with a burst of 6, which traceroute's parallel probes overrun.
const (
	allRate, allBurst   = 1000, 200
	flowRate, flowBurst = 20, 20
)

func (l *icmpLimiter) allow(hash uint32, tooBig bool, now time.Duration) bool {
	if !tooBig && !l.flows[hash%uint32(len(l.flows))].take(now, flowRate, flowBurst) {
		return false
	}
	return l.all.take(now, allRate, allBurst)
}

// A bucket holds tokens as time: it is full when its mark lies a burst in the past.
type bucket struct {
	mark time.Duration // when the last token was, or will be, paid for
	used bool
}

func (b *bucket) take(now time.Duration, rate, burst int) bool {
	price := time.Second / time.Duration(rate)
	full := now - price*time.Duration(burst)
	if !b.used || b.mark < full {
		b.mark, b.used = full, true
	}
	if b.mark+price > now {
		return false
	}
	b.mark += price
	return true
}
