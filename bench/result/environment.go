package result

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Environment is the machine, as it was before the run.
type Environment struct {
	Kernel      string              `json:"kernel"`
	CPU         string              `json:"cpu"` // model
	CPUs        int                 `json:"cpus"`
	MemoryBytes uint64              `json:"memoryBytes"`
	Go          string              `json:"go"`
	GOARCH      string              `json:"goarch"`
	Version     string              `json:"version"` // of the program, with its commit
	Hypervisor  bool                `json:"hypervisor"`
	Congestion  string              `json:"congestion"` // control of new TCP connections, such as cubic
	Load        [3]float64          `json:"load"`       // averages over 1, 5 and 15 minutes
	Offloads    map[string][]string `json:"offloads"`   // that are on, of a node's link, by underlay
	ClientCPU   int                 `json:"clientCPU"`
	ServerCPU   int                 `json:"serverCPU"`
}

// Quiet says that little else ran: figures of another run are not to be published.
func (e Environment) Quiet() bool { return e.Load[0] < 0.5 }

// congestion goes behind the rest of the machine: what TCP's figures depend on. Older results do not have it.
func (e Environment) congestion() string {
	if e.Congestion == "" {
		return ""
	}
	return ", TCP " + e.Congestion
}

// ReadEnvironment looks at this machine. What cannot be read stays empty.
func ReadEnvironment(version string) Environment {
	e := Environment{Go: runtime.Version(), GOARCH: runtime.GOARCH, CPUs: runtime.NumCPU(), Version: version, Offloads: map[string][]string{}}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		e.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		e.MemoryBytes = info.Totalram * uint64(info.Unit)
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		e.Load = parseLoad(b)
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control"); err == nil {
		e.Congestion = string(bytes.TrimSpace(b))
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		e.CPU, e.Hypervisor = parseCPUInfo(b)
	}
	return e
}

func parseLoad(b []byte) (load [3]float64) {
	for i, field := range bytes.Fields(b)[:min(3, len(bytes.Fields(b)))] {
		load[i], _ = strconv.ParseFloat(string(field), 64)
	}
	return load
}

func parseCPUInfo(b []byte) (model string, hypervisor bool) {
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "model name":
			model = value
		case "flags":
			hypervisor = strings.Contains(" "+value+" ", " hypervisor ")
		}
	}
	return model, hypervisor
}
