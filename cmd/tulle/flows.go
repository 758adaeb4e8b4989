package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/tulle-net/tulle/dataplane/conntrack"
	"github.com/tulle-net/tulle/dataplane/packet"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// A flowsReport is the answer to tulle flows.
type flowsReport struct {
	SchemaVersion int          `json:"schemaVersion"`
	Matching      int          `json:"matching"` // flows that the filter lets through; more than are listed when there is a limit
	Flows         []flowReport `json:"flows"`
	Sums          []flowSum    `json:"sums,omitempty"`
	Table         tableReport  `json:"table"`
}

// A flowReport is one flow, in the direction of its first packet.
type flowReport struct {
	ID             string  `json:"id"` // never that of another flow
	Proto          string  `json:"proto"`
	State          string  `json:"state"`
	Replied        bool    `json:"replied"`
	Src            string  `json:"src"`
	SrcPort        uint16  `json:"srcPort"` // of an ICMP query: its identifier
	Dst            string  `json:"dst"`
	DstPort        uint16  `json:"dstPort"`
	Peer           string  `json:"peer,omitempty"` // the other node; none for a flow within this one
	CreatedSeconds float64 `json:"createdSeconds"` // on CLOCK_MONOTONIC, whole: stays when the daemon is restarted with a holder
	AgeSeconds     float64 `json:"ageSeconds"`
	IdleSeconds    float64 `json:"idleSeconds"`    // to the second
	ExpiresSeconds float64 `json:"expiresSeconds"` // from now, if nothing more is seen
}

// A flowSum counts the flows that have a property in common.
type flowSum struct {
	Key   string `json:"key"`
	Flows int    `json:"flows"`
}

// tableReport is the flow table itself.
type tableReport struct {
	Flows4    int    `json:"flows4"`
	Flows6    int    `json:"flows6"`
	Capacity4 int    `json:"capacity4"`
	Capacity6 int    `json:"capacity6"`
	Inserted  uint64 `json:"inserted"`
	Expired   uint64 `json:"expired"`
	Evicted   uint64 `json:"evicted"`   // unreplied or closing, removed to make room
	Full      uint64 `json:"full"`      // packets of new flows that found no room
	PerSource int    `json:"perSource"` // flows that a source may begin
	OverQuota uint64 `json:"overQuota"` // packets of new flows of sources that have as many
}

// A flowFilter says which flows are listed. Zero fields match all.
type flowFilter struct {
	peer     string
	proto    uint8
	src, dst netip.Prefix
	sum      string // one of flowKeys, or ""
	limit    int    // flows listed; 0 for all
}

// flowKeys are what flows are summed up by.
var flowKeys = map[string]func(*flowReport) string{
	"peer":  func(r *flowReport) string { return cmp.Or(r.Peer, "-") },
	"proto": func(r *flowReport) string { return r.Proto },
	"state": func(r *flowReport) string { return r.State },
	"src":   func(r *flowReport) string { return r.Src },
	"dst":   func(r *flowReport) string { return r.Dst },
}

// protoNames are those of flows' protocols; others are numbers.
var protoNames = map[uint8]string{packet.ProtoICMP: "icmp", packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp", packet.ProtoICMPv6: "icmpv6"}

func protoName(p uint8) string { return cmp.Or(protoNames[p], strconv.Itoa(int(p))) }

func parseProto(s string) (uint8, error) {
	for number, name := range protoNames {
		if s == name {
			return number, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("protocol %q: unknown (allowed: tcp, udp, icmp, icmpv6, or a number from 1 to 255)", s)
	}
	return uint8(n), nil
}

// parseAddrs reads an address or a prefix.
func parseAddrs(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a.WithZone(""), a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q: an address or a prefix such as 10.244.1.0/24 is needed", s)
	}
	return p.Masked(), nil
}

// parseFlowFilter reads a filter from the parameters of a request, in which the command line is carried as it is.
func parseFlowFilter(q url.Values) (f flowFilter, err error) {
	f.peer = q.Get("peer")
	if s := q.Get("proto"); s != "" {
		if f.proto, err = parseProto(s); err != nil {
			return f, fmt.Errorf("--proto: %w", err)
		}
	}
	for _, side := range []struct {
		flag string
		to   *netip.Prefix
	}{{"src", &f.src}, {"dst", &f.dst}} {
		if s := q.Get(side.flag); s != "" {
			if *side.to, err = parseAddrs(s); err != nil {
				return f, fmt.Errorf("--%s: %w", side.flag, err)
			}
		}
	}
	if f.sum = q.Get("sum"); f.sum != "" && flowKeys[f.sum] == nil {
		return f, fmt.Errorf("--sum %s: unknown (allowed: peer, proto, state, src, dst)", f.sum)
	}
	if s := q.Get("limit"); s != "" {
		if f.limit, err = strconv.Atoi(s); err != nil || f.limit < 0 {
			return f, fmt.Errorf("--limit %s: a number of flows is needed, 0 for all", s)
		}
	}
	return f, nil
}

func (f *flowFilter) matches(flow *conntrack.Flow, peer string) bool {
	t := &flow.Tuple
	return (f.proto == 0 || f.proto == t.Proto) && (f.peer == "" || f.peer == peer) &&
		(!f.src.IsValid() || f.src.Contains(t.Src)) && (!f.dst.IsValid() || f.dst.Contains(t.Dst))
}

// peerOf names the other node of a flow, "" when there is none.
func peerOf(set *tables.Set, t *conntrack.Tuple) string {
	if set == nil {
		return ""
	}
	for _, a := range [...]netip.Addr{t.Dst, t.Src} {
		if p := set.Owner(a); p != nil {
			return p.Name
		}
	}
	return ""
}

func reportFlow(flow *conntrack.Flow, peer string, now time.Duration) flowReport {
	t := &flow.Tuple
	return flowReport{
		ID: fmt.Sprintf("%x", uint64(flow.ID)), Proto: protoName(t.Proto), State: flow.State.String(), Replied: flow.Replied,
		Src: t.Src.String(), SrcPort: t.SrcPort, Dst: t.Dst.String(), DstPort: t.DstPort, Peer: peer,
		CreatedSeconds: flow.Created.Seconds(), AgeSeconds: max(0, (now - flow.Created).Seconds()), IdleSeconds: max(0, (now - flow.LastSeen).Seconds()),
		ExpiresSeconds: max(0, (flow.Expires - now).Seconds()),
	}
}

// flows lists the flow table through a filter.
func (d *daemon) flows(ctx context.Context, f flowFilter) (*flowsReport, error) {
	r := &flowsReport{SchemaVersion: schemaVersion, Flows: []flowReport{}, Table: d.forwarder.tableReport()}
	set, now := d.forwarder.tables(), d.forwarder.now()
	sums := map[string]int{}
	for flow := range d.forwarder.flows.Flows(now) {
		peer := peerOf(set, &flow.Tuple)
		if !f.matches(&flow, peer) {
			continue
		}
		if r.Matching++; r.Matching%4096 == 0 && ctx.Err() != nil {
			return nil, fmt.Errorf("list flows: %w: narrow the filter", ctx.Err())
		}
		listed := f.limit == 0 || len(r.Flows) < f.limit
		if !listed && f.sum == "" {
			continue
		}
		report := reportFlow(&flow, peer, now)
		if listed {
			r.Flows = append(r.Flows, report)
		}
		if f.sum != "" {
			sums[flowKeys[f.sum](&report)]++
		}
	}
	for key, n := range sums {
		r.Sums = append(r.Sums, flowSum{key, n})
	}
	slices.SortFunc(r.Sums, func(a, b flowSum) int { return cmp.Or(b.Flows-a.Flows, cmp.Compare(a.Key, b.Key)) })
	return r, nil
}

// answerFlows serves a listing. A filter that is none is the asker's mistake.
func (d *daemon) answerFlows(w http.ResponseWriter, r *http.Request) {
	f, err := parseFlowFilter(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(func(ctx context.Context) (*flowsReport, error) { return d.flows(ctx, f) })(w, r)
}
