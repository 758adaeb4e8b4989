package main

import (
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// runIn runs a program in a namespace of the lab and returns what it printed.
func runIn(t *testing.T, namespace, program string, args ...string) string {
	t.Helper()
	var out []byte
	err := lab.In(namespace, func() (err error) {
		out, err = exec.CommandContext(t.Context(), program, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	t.Logf("%s: %s %s\n%s", namespace, program, strings.Join(args, " "), out)
	return string(out)
}

// traceroute returns the address that answered at each hop.
func traceroute(t *testing.T, program, from string, to netip.Addr) []string {
	t.Helper()
	args := []string{"-n", "-q", "1", "-w", "2", "-m", "8", to.String()}
	if to.Is6() {
		args = append([]string{"-6"}, args...)
	}
	var hops []string
	hop := regexp.MustCompile(`^\s*\d+\s+(\S+)`)
	for line := range strings.Lines(runIn(t, from, program, args...)) {
		if m := hop.FindStringSubmatch(line); m != nil {
			hops = append(hops, m[1])
		}
	}
	return hops
}

// TestHops demands from traceroute the hops that there are: with VXLAN the two nodes' kernels, for the engines are none; with
// flannel's udp backend the two engines too. And tracepath finds the pods' MTU.
func TestHops(t *testing.T) {
	trace, err := need.Debian(t.Context(), "traceroute", "traceroute")
	if err != nil {
		t.Fatal(err)
	}
	path, err := need.Debian(t.Context(), "tracepath", "iputils-tracepath")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("vxlan", func(t *testing.T) {
		l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 1, Family: lab.FamilyDual})
		one, two := l.Nodes()[0], l.Nodes()[1]
		for _, c := range []struct {
			to   netip.Addr
			hops []string
		}{
			{two.Pods[0].Addr, []string{one.PublicIP.String(), two.VTEP.String(), two.Pods[0].Addr.String()}},
			{two.Pods[0].Addr6, []string{one.VTEPv6.String(), two.VTEPv6.String(), two.Pods[0].Addr6.String()}},
		} {
			if hops := traceroute(t, trace, one.Pods[0].Namespace, c.to); !slices.Equal(hops, c.hops) {
				t.Errorf("hops to %s: %v, want %v", c.to, hops, c.hops)
			}
			if out := runIn(t, one.Pods[0].Namespace, path, "-n", c.to.String()); !strings.Contains(out, "pmtu 1430") || !strings.Contains(out, "reached") {
				t.Errorf("tracepath to %s found no MTU of 1430", c.to)
			}
		}
	})
	t.Run("udp", func(t *testing.T) {
		l := udpLab(t, 3, 1, lab.DeviceTAP)
		one, two := l.Nodes()[0], l.Nodes()[1]
		to := two.Pods[0].Addr
		want := []string{one.PublicIP.String(), status(t, l, 1).Node.EngineAddr, status(t, l, 2).Node.EngineAddr, two.VTEP.String(), to.String()}
		if hops := traceroute(t, trace, one.Pods[0].Namespace, to); !slices.Equal(hops, want) {
			t.Errorf("hops to %s: %v, want %v", to, hops, want)
		}
		if out := runIn(t, one.Pods[0].Namespace, path, "-n", to.String()); !strings.Contains(out, "pmtu 1472") || !strings.Contains(out, "reached") {
			t.Error("tracepath found no MTU of 1472")
		}
	})
}
