package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// traces lists all that a container may leave, a line for each thing.
func (t *trial) traces(ctx context.Context) (all []string, err error) {
	for _, m := range t.machines {
		of, err := m.traces(ctx)
		if err != nil {
			return nil, err
		}
		for _, line := range of {
			all = append(all, m.Name+": "+line)
		}
	}
	for _, list := range []func() ([]string, error){mounts, processes, namespaces} {
		lines, err := list()
		if err != nil {
			return nil, err
		}
		all = append(all, lines...)
	}
	for _, path := range cgroups() {
		if filepath.Base(path) != "conmon" { // podman's own, of all containers together
			all = append(all, "cgroup "+path)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// traces lists what the node has: of its network namespace, of its daemon and of its runtimes.
func (m *machine) traces(ctx context.Context) (all []string, err error) {
	for what, argv := range map[string][]string{
		"link":                  {"ip", "-brief", "link"},
		"address":               {"ip", "-oneline", "address"},
		"route":                 {"ip", "route", "show", "table", "all"},
		"route6":                {"ip", "-6", "route", "show", "table", "all"},
		"rule":                  {"ip", "rule"},
		"rule6":                 {"ip", "-6", "rule"},
		"qdisc":                 {"tc", "qdisc"},
		"nftables":              {"nft", "--stateless", "list", "ruleset"},
		"container":             m.ctrArgv("container", "list", "--quiet"),
		"snapshot":              m.ctrArgv("snapshot", "--snapshotter", "native", "list"),
		"container of podman's": m.podmanArgv("ps", "--all", "--quiet"),
	} {
		out, err := m.command(ctx, argv...)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); !upstream(line) {
				all = append(all, what+" "+line)
			}
		}
	}
	leases, err := m.leases()
	return append(all, leases...), err
}

// upstream says that the line is of the tables, chains and rules which the upstream portmap plugin has iptables make once for all
// containers, and leaves.
func upstream(line string) bool {
	switch line {
	case "", "}", "table ip nat {", "table ip6 nat {", "chain PREROUTING {", "chain OUTPUT {", "chain POSTROUTING {",
		"chain CNI-HOSTPORT-DNAT {", "chain CNI-HOSTPORT-MASQ {", "chain CNI-HOSTPORT-SETMARK {":
		return true
	}
	return strings.HasPrefix(line, "#") || strings.HasPrefix(line, "type nat hook") || strings.HasSuffix(line, "jump CNI-HOSTPORT-MASQ") || strings.HasSuffix(line, "jump CNI-HOSTPORT-DNAT") ||
		strings.HasPrefix(line, "meta mark & 0x00002000 == 0x00002000") || strings.HasSuffix(line, "meta mark set mark or 0x2000")
}

func (m *machine) leases() (all []string, err error) {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(m.RunDir), "state", "ipam.json"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var file struct {
		Leases []json.RawMessage `json:"leases"`
	}
	if err == nil {
		err = json.Unmarshal(b, &file)
	} else {
		err = nil
	}
	for _, l := range file.Leases {
		all = append(all, "lease "+string(l))
	}
	return all, err
}

func mounts() (all []string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			all = append(all, "mount "+fields[4])
		}
	}
	return all, err
}

// processes lists those that run: process 1 of a PID namespace that is no init leaves the dead ones.
func processes() (all []string, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		head, rest, ok := strings.Cut(string(b), ") ")
		if err == nil && ok && !strings.HasPrefix(rest, "Z") {
			all = append(all, fmt.Sprintf("process %s)", head))
		}
	}
	return all, err
}

func namespaces() (all []string, err error) {
	entries, err := os.ReadDir("/run/netns")
	for _, e := range entries {
		all = append(all, "namespace "+e.Name())
	}
	return all, err
}

// difference marks what is only in one of two sorted lists.
func difference(before, after []string) (d []string) {
	for _, line := range before {
		if _, found := slices.BinarySearch(after, line); !found {
			d = append(d, "- "+line)
		}
	}
	for _, line := range after {
		if _, found := slices.BinarySearch(before, line); !found {
			d = append(d, "+ "+line)
		}
	}
	return d
}
