package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// An event is one fault and what came of it.
type event struct {
	Fault    string        `json:"fault"`
	Node     string        `json:"node"`
	Recovery time.Duration `json:"recovery"` // ns, from the end of the fault until everybody reached everybody
	Error    string        `json:"error,omitempty"`
	spoil    spoil
	Traffic  traffic `json:"traffic"` // from the fault until the next one; streams report when a slice has ended
}

func (e *event) text() string {
	what := fmt.Sprintf("all again after %v", e.Recovery.Round(time.Millisecond))
	if e.Error != "" {
		what = "FAILED: " + e.Error
	}
	t := e.Traffic
	if t.Duplicates+t.Reordered > 0 {
		what += fmt.Sprintf("; %d datagrams twice, %d out of order", t.Duplicates, t.Reordered)
	}
	return fmt.Sprintf("%s: %s: %s; %d of %d datagrams lost, %d of %d connections refused", e.Node, e.Fault, what, t.Sent-t.Received, t.Sent, t.Refused, t.Begun)
}

// report is what a run came to.
type report struct {
	Seed     uint64   `json:"seed"`
	Events   []event  `json:"events"`
	Traffic  traffic  `json:"traffic"`
	Growth   growth   `json:"growth"`
	Failures []string `json:"failures"`
	// of the traffic while no wire was bad, and for a while after that
	doubled, reordered uint64
	spoil              spoil // of the last faults
	after              int   // events for which it lasts
}

func (r *report) add(e event) {
	r.Events = append(r.Events, e)
	if e.Error != "" {
		r.Failures = append(r.Failures, fmt.Sprintf("%s: %s: %s", e.Node, e.Fault, e.Error))
	}
	if e.spoil > clean { // slices that began under it end in the next event
		r.after, r.spoil = 2, max(e.spoil, r.spoil)
	}
	if r.spoil < badWire {
		r.doubled += e.Traffic.Duplicates
	}
	if r.spoil < overtaken {
		r.reordered += e.Traffic.Reordered
	}
	if r.after--; r.after <= 0 {
		r.spoil = clean
	}
}

// write is a table with a line for each kind of fault, and the sums.
func (r *report) write(w io.Writer) {
	byKind := map[string][]event{}
	for _, e := range r.Events {
		byKind[e.Fault] = append(byKind[e.Fault], e)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "FAULT\tTIMES\tALL AGAIN, MEDIAN\tLONGEST\tDATAGRAMS LOST, MOST\tCONNECTIONS REFUSED, MOST")
	for _, name := range names() {
		all := byKind[name]
		if len(all) == 0 {
			continue
		}
		lost := slices.MaxFunc(all, func(a, b event) int { return cmp.Compare(a.lost(), b.lost()) }).lost()
		refused := slices.MaxFunc(all, func(a, b event) int { return cmp.Compare(a.Traffic.Refused, b.Traffic.Refused) }).Traffic.Refused
		slices.SortFunc(all, func(a, b event) int { return cmp.Compare(a.Recovery, b.Recovery) })
		ms := time.Millisecond
		fmt.Fprintf(t, "%s\t%d\t%v\t%v\t%d\t%d\n", name, len(all), all[len(all)/2].Recovery.Round(ms), all[len(all)-1].Recovery.Round(ms), lost, refused)
	}
	t.Flush()
	s := r.Traffic
	fmt.Fprintf(w, "datagrams: %d sent, %d lost, %d changed; while the wire was good %d twice, %d out of order\n", s.Sent, s.Sent-s.Received, s.Changed, r.doubled, r.reordered)
	fmt.Fprintf(w, "connections: %d messages over %d that stay, %d lost, longest stall %v; %d begun, %d refused\n", s.Exchanges, connections, s.Lost,
		s.Stall.Round(time.Millisecond), s.Begun, s.Refused)
	fmt.Fprintf(w, "daemons, most that one grew: %s\n", r.Growth)
	fmt.Fprintf(w, "not tried here: %s\n", strings.Join(notHere, "; "))
}

// verdict is nil iff all that must hold held.
func (r *report) verdict() error {
	fail := func(bad bool, format string, args ...any) {
		if bad {
			r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
		}
	}
	t := r.Traffic
	fail(t.Changed > 0, "%d datagrams or messages arrived changed", t.Changed)
	fail(t.Lost > 0, "%d connections lost (the last: %s)", t.Lost, t.LastError)
	fail(r.doubled+r.reordered > 0, "%d datagrams arrived twice and %d out of order although the wire was good", r.doubled, r.reordered)
	fail(t.Received == 0 || t.Exchanges == 0, "no traffic: %s", t.LastError)
	r.Failures = append(r.Failures, r.Growth.failures()...)
	if len(r.Failures) > 0 {
		return errors.New(strings.Join(r.Failures, "\n       "))
	}
	return nil
}

func (e event) lost() uint64 { return e.Traffic.Sent - e.Traffic.Received }
