package result

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const benchmarkOutput = `goos: linux
pkg: github.com/tulle-net/tulle/dataplane/conntrack
cpu: AMD
BenchmarkLookup/flows=1000/v4/hit=true-2         	 1000000	        25.5 ns/op	        64.00 B/flow	        24.0 median-ns/op	       0 B/op	       0 allocs/op
BenchmarkLookup/flows=1000/v4/hit=true-2         	 1000000	        99 ns/op	        64.00 B/flow	        26.0 median-ns/op	       0 B/op	       0 allocs/op
BenchmarkLookup/flows=1/v4/hit=true-2            	 1000000	        15.5 ns/op	        99.00 B/flow	        14.0 median-ns/op	       0 B/op	       0 allocs/op
BenchmarkTCP-2                                   	 1000000	        15.5 ns/op
pkg: github.com/tulle-net/tulle/dataplane/tables
BenchmarkPeers/peers=10/compile-2	 1000	 1500 ns/op
BenchmarkPeers/peers=100/compile-2	 1000	 15000 ns/op
--- some log
PASS
ok  	x	1.2s
`

func TestCurves(t *testing.T) {
	got, err := ReadCurves(strings.NewReader(benchmarkOutput))
	if err != nil {
		t.Fatal(err)
	}
	want := []Curve{
		{"conntrack.Lookup", "v4/hit=true", "flows", "B/flow", []Point{{1, 99}, {1000, 64}}},
		{"conntrack.Lookup", "v4/hit=true", "flows", "allocs/op", []Point{{1, 0}, {1000, 0}}},
		{"conntrack.Lookup", "v4/hit=true", "flows", "ns/op", []Point{{1, 14}, {1000, 25}}},
		{"tables.Peers", "compile", "peers", "ns/op", []Point{{10, 1500}, {100, 15000}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	r := sample(3, 0.5)
	r.Curves = got
	var page, md bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	checkHTML(t, page.String())
	for _, want := range []string{"conntrack.Lookup, ns/op", "by number of flows", ">1k</text>", `<title>v4/hit=true, 1k flows: 25 ns/op</title>`} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if strings.Contains(page.String(), "allocs/op") {
		t.Error("a plot of nothing but zeros")
	}
	if err := r.WriteMarkdown(&md); err != nil {
		t.Fatal(err)
	}
	if want := "### conntrack.Lookup, ns/op by flows\n\n| | 1 | 1000 |\n|---|---|---|\n| v4/hit=true | 14 | 25 |\n"; !strings.Contains(md.String(), want) {
		t.Errorf("no %q in:\n%s", want, &md)
	}
	for _, bad := range []string{"BenchmarkX/n=1 1 x ns/op"} {
		if _, err := ReadCurves(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
