package result

import (
	"strings"
	"testing"
)

func TestEnvironment(t *testing.T) {
	e := ReadEnvironment("v1")
	if e.Kernel == "" || e.CPUs < 1 || e.MemoryBytes == 0 || e.Go == "" || e.Version != "v1" || e.Congestion == "" {
		t.Errorf("%+v", e)
	}
	if about := (&Result{Environment: Environment{GOARCH: "amd64", Congestion: "bbr"}}).about(); !strings.HasSuffix(about[0], "amd64, TCP bbr") {
		t.Errorf("%q", about)
	}
	if load := parseLoad([]byte("1.53 6.08 8.30 2/345 678\n")); load != [3]float64{1.53, 6.08, 8.3} {
		t.Errorf("load %v", load)
	}
	model, hypervisor := parseCPUInfo([]byte("processor\t: 0\nmodel name\t: A B\nflags\t\t: fpu hypervisor vme\n\nprocessor\t: 1\n"))
	if model != "A B" || !hypervisor {
		t.Errorf("%q, %t", model, hypervisor)
	}
}
