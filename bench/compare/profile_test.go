package compare

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/pprof/profile"

	"github.com/tulle-net/tulle/bench/result"
)

// A sample belongs to what the worker was doing, and to the kernel iff its leaf is a system call.
func TestSplit(t *testing.T) {
	const module = "github.com/tulle-net/tulle/"
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}}}
	add := func(ns int64, stack ...string) { // the leaf first
		s := &profile.Sample{Value: []int64{1, ns}}
		for _, name := range stack {
			s.Location = append(s.Location, &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name}}}})
		}
		p.Sample = append(p.Sample, s)
	}
	worker := []string{module + "dataplane.(*worker).turn", module + "dataplane.(*worker).run", "runtime.goexit"}
	add(300e6, append([]string{"internal/runtime/syscall/linux.Syscall6", module + "dataplane/tap.(*Queue).Read"}, worker...)...)
	add(100e6, append([]string{module + "dataplane/packet.Sum.Add", module + "encap.(*Underlay).Write", module + "dataplane.(*worker).flush"}, worker...)...)
	add(100e6, append([]string{"syscall.RawSyscall6", module + "encap.(*Underlay).Write", module + "dataplane.(*worker).flush"}, worker...)...)
	add(200e6, append([]string{"syscall.RawSyscall", module + "dataplane.(*poller).look", module + "dataplane.(*poller).wait"}, worker...)...)
	add(200e6, append([]string{module + "dataplane/conntrack.(*Table).Lookup"}, worker...)...)
	add(100e6, "runtime.scanobject", "runtime.gcBgMarkWorker")
	var got result.Profile
	if err := split(&got, []*profile.Profile{p, p}); err != nil {
		t.Fatal(err)
	}
	want := result.Profile{Daemons: 2, Parts: []result.Part{{Name: "reading the TAP", Share: 0.3, Kernel: 1}, {Name: "deciding", Share: 0.2},
		{Name: "sending to the underlay", Share: 0.2, Kernel: 0.5}, {Name: "waiting", Share: 0.2, Kernel: 1}, {Name: elsewhere, Share: 0.1}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := split(&got, []*profile.Profile{{}}); err == nil {
		t.Error("a profile without CPU time passes")
	}
}
