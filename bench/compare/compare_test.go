package compare

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/bench/result"
	"github.com/tulle-net/tulle/bench/router"
	"github.com/tulle-net/tulle/scripts/lab"
)

// Names are one word each and all different, and the paths that all need are there.
func TestPaths(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range Paths {
		if seen[p.Name] || p.Name == "" || p.Title == "" || strings.ContainsAny(p.Name, " /,") {
			t.Errorf("%+v", p)
		}
		seen[p.Name] = true
		c := p.config(Options{Executable: "/bin/true", RouterArgs: []string{"bench", "router"}})
		if err := c.Check(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if c.Kernel[1] == p.Tulle || c.Kernel[2] != (!p.Tulle || p.KernelPeer) || !c.Ephemeral {
			t.Errorf("%s: %+v", p.Name, c)
		}
	}
	for _, kind := range router.Kinds() {
		if !seen[kind] {
			t.Errorf("no path for the router %s", kind)
		}
	}
	paths, err := Select([]string{"water"})
	if err != nil || len(paths) != 3 || paths[0].Name != Bare || paths[1].Name != Kernel || paths[2].Name != "water" {
		t.Errorf("%+v, %v", paths, err)
	}
	if paths[2].carries(lab.FamilyV6) || !paths[1].carries(lab.FamilyV6) {
		t.Error("flannel's udp backend carries IPv4 only, and VXLAN both")
	}
	if _, err := Select([]string{"wtaer"}); err == nil || !strings.Contains(err.Error(), "have: bare, kernel") {
		t.Errorf("%v", err)
	}
}

// All presets are made of what there is, and their cases' names are all different.
func TestPlans(t *testing.T) {
	for _, p := range Plans() {
		if _, err := Select(p.Paths); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if err := p.Check(); err != nil || p.Rounds < 1 {
			t.Errorf("%s: %v", p.Name, err)
		}
		seen := map[string]bool{}
		for _, c := range p.Cases {
			if seen[c.Name] {
				t.Errorf("%s: %s twice", p.Name, c.Name)
			}
			seen[c.Name] = true
			again := p
			if err := again.SelectCases([]string{c.Name}); err != nil || len(again.Cases) != 1 {
				t.Errorf("%s: %v", p.Name, err)
			}
		}
	}
	p, err := FindPlan("quick")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SelectCases([]string{"tcp/9-flows"}); err == nil {
		t.Error("no such case, and no error")
	}
	p.Underlays = []string{"tin"}
	if err := p.Check(); err == nil {
		t.Error("no such underlay, and no error")
	}
	if _, err := FindPlan("quik"); err == nil {
		t.Error("no such preset, and no error")
	}
}

// The preset of the table measures all that the table asks for.
func TestTableHasAllTargets(t *testing.T) {
	plan, err := FindPlan("table")
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range result.Targets {
		if target.Path == result.Tables {
			if plan.Entries != 1_000_000 {
				t.Errorf("%s: tables of %d", target.Name, plan.Entries)
			}
			continue
		}
		for _, path := range []string{target.Path, target.Against} {
			if path != "" && !slices.Contains(plan.Paths, path) {
				t.Errorf("%s: no path %s", target.Title, path)
			}
		}
		if !slices.Contains(plan.Underlays, target.Underlay) ||
			!slices.ContainsFunc(plan.Cases, func(c Case) bool { return target.Name == c.Name || strings.HasPrefix(target.Name, c.Name+"/") }) {
			t.Errorf("%s: no case for %s on %q", target.Title, target.Name, target.Underlay)
		}
	}
}

// What is left is told from what the labs of all rounds and underlays took so far; the plain routers are not on all of these.
func TestLeft(t *testing.T) {
	plan, err := FindPlan("table")
	if err != nil {
		t.Fatal(err)
	}
	paths, err := Select(plan.Paths)
	if err != nil {
		t.Fatal(err)
	}
	r := run{plan: plan, paths: paths, begun: time.Now().Add(-8 * time.Minute), labs: 8}
	if got := r.left(); got != "lab 8 of 24, about 16m0s left" {
		t.Error(got)
	}
}

// A rate near the generator's own is marked, and one whose like it was not tested for; a delay or a lower rate is not, nor one of exchanges,
// which is a delay's.
func TestGeneratorBound(t *testing.T) {
	s := &session{out: &result.Result{}, bare: map[string]float64{"a": 100, "b": 100}, say: func(string, ...any) {}}
	s.figure("a", 91, result.PerSecond)
	s.figure("a", 89, result.PerSecond)
	s.figure("b", 95, result.Nanosecond)
	s.figure("c", 95, result.PerSecond)
	s.figure("a", 95, result.Gbps, result.Incomplete)
	s.figure("a", 95, result.Transacts)
	want := [][]string{{result.GeneratorBound}, nil, nil, {result.GeneratorUntested}, {result.Incomplete, result.GeneratorBound}, nil}
	for i, f := range s.out.Figures {
		if strings.Join(f.Flags, " ") != strings.Join(want[i], " ") {
			t.Errorf("%+v, want the flags %v", f, want[i])
		}
	}
}

// Where the path is nothing but a veth the generator is the limit, and every rate is refused in one round or another: chance moves
// them by more than the tenth that is allowed, but not always.
func TestGeneratorIsRefused(t *testing.T) {
	d, err := lab.NewDirect(mtu(lab.FamilyV4))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	client, server, err := pinned()
	if err != nil {
		t.Fatal(err)
	}
	place := func(side, cpu int) bench.Place {
		return bench.Place{Addr: lab.DirectAddr(side, lab.FamilyV4), CPU: cpu, In: func(f func() error) error { return d.In(side, f) }}
	}
	plan, err := FindPlan("quick")
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]bool{"tcp/1-flow": false, "udp-64B/1-flow/flood": false, "udp-64B/1-flow/no-drop": false}
	for range 20 {
		r, err := Measure(t.Context(), plan, "a veth", bench.Ends{Client: place(0, client), Server: place(1, server)}, Options{Progress: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Figures {
			if _, rate := refused[f.Name]; rate && f.Path == This && slices.Contains(f.Flags, result.GeneratorBound) {
				refused[f.Name] = true
			}
		}
		if !slices.Contains(slices.Collect(maps.Values(refused)), false) {
			return
		}
	}
	t.Errorf("not refused in any round: %v", refused)
}

func TestUsage(t *testing.T) {
	text := "# HELP x\ngo_memstats_mallocs_total 1.5e+06\nprocess_cpu_seconds_total 2.25\nother 9\nprocess_resident_memory_bytes 3e+07\n"
	var u usage
	for range 2 { // two daemons
		if err := u.add(strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if u != (usage{3e6, 4.5, 6e7}) {
		t.Errorf("%+v", u)
	}
	for _, bad := range []string{"", "go_memstats_mallocs_total x\n"} {
		if err := u.add(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
