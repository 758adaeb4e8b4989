package dataplane

import (
	"encoding/json"
	"testing"
)

// TestLeftFragments ends an engine between the fragments of two datagrams each way: the next one sends those that waited when their first one
// comes, and the rest of the others.
func TestLeftFragments(t *testing.T) {
	out := fragments(udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64), 77, 24, 48)
	refused := fragments(udpFrame(t, macA, gateA, "10.0.1.9", "10.0.9.9", 64), 78, 24)
	in := fragments(udpFrame(t, macB, macA, "10.0.2.9", "10.0.1.9", 64), 79, 24, 48)
	before := newRig(t)
	before.send(TAP, memFrame{data: out[2]}, memFrame{data: refused[0]})
	before.send(Underlay, wrapB(in[0]), wrapB(in[2]))
	before.w.leaveFragments()
	text, err := json.Marshal(before.engine.Left())
	if err != nil {
		t.Fatal(err)
	}
	var left Fragments
	if err := json.Unmarshal(text, &left); err != nil {
		t.Fatal(err)
	}
	if c := before.w.snapshot(); c.Inherited != -1 || c.Queued != 0 {
		t.Errorf("%d segments inherited, %d queued", c.Inherited, c.Queued)
	}
	after := newRig(t, func(c *Config) { c.Fragments = left })
	if c := after.w.snapshot(); c.Inherited != 1 || c.Queued != 1 {
		t.Errorf("%d segments inherited, %d queued", c.Inherited, c.Queued)
	}
	after.send(TAP, memFrame{data: out[1]}, memFrame{data: out[0]}, memFrame{data: refused[1]})
	after.send(Underlay, wrapB(in[1]))
	if n := len(after.underlay().out); n != 3 {
		t.Errorf("%d fragments of 3 sent to the peer", n)
	}
	if n := len(after.tap().out); n != 1 {
		t.Errorf("%d fragments of 1 delivered", n)
	}
	if c := after.w.snapshot(); c.Ledger().Dropped != 1 {
		t.Errorf("%d dropped, want the one whose first was refused", c.Ledger().Dropped)
	}
}

// TestFragmentsOfOthers gives an engine what another version left, or one with more workers: it begins with nothing.
func TestFragmentsOfOthers(t *testing.T) {
	waits := fragments(udpFrame(t, macA, gateA, "10.0.1.9", "10.0.2.9", 64), 77, 24)[1]
	before := newRig(t)
	before.send(TAP, memFrame{data: waits})
	before.w.leaveFragments()
	left := before.engine.Left()
	for name, spoil := range map[string]func(*Fragments){
		"version": func(f *Fragments) { f.Version++ },
		"workers": func(f *Fragments) { f.Workers = append(f.Workers, WorkerFragments{}) },
		"none":    func(f *Fragments) { f.Workers = nil },
	} {
		t.Run(name, func(t *testing.T) {
			other := left
			spoil(&other)
			r := newRig(t, func(c *Config) { c.Fragments = other })
			if c := r.w.snapshot(); c.Inherited != 0 || c.Queued != 0 {
				t.Errorf("%d segments inherited, %d queued", c.Inherited, c.Queued)
			}
		})
	}
}
