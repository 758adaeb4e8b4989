package compare

import (
	"strings"
	"testing"

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

// A rate near the generator's own is marked, a delay or a lower rate is not.
func TestGeneratorBound(t *testing.T) {
	s := &session{out: &result.Result{}, bare: map[string]float64{"a": 100, "b": 100}, say: func(string, ...any) {}}
	s.figure("a", 91, result.PerSecond)
	s.figure("a", 89, result.PerSecond)
	s.figure("b", 95, result.Nanosecond)
	s.figure("c", 95, result.PerSecond)
	s.figure("a", 95, result.Gbps, result.Incomplete)
	want := [][]string{{result.GeneratorBound}, nil, nil, nil, {result.Incomplete, result.GeneratorBound}}
	for i, f := range s.out.Figures {
		if strings.Join(f.Flags, " ") != strings.Join(want[i], " ") {
			t.Errorf("%+v, want the flags %v", f, want[i])
		}
	}
}
