package main

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"github.com/tulle-net/tulle/scripts/lab"
)

// contextOfTests outlives single tests.
var contextOfTests = context.Background()

// TestCNIPods makes two pods on each of two nodes by the plugin: all reach each other, the nodes, and are reached by them, and every
// packet for a pod went through an engine.
func TestCNIPods(t *testing.T) {
	for _, family := range []string{lab.FamilyV4, lab.FamilyDual} {
		t.Run(family, func(t *testing.T) {
			l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0, Family: family})
			var pods []*sandbox
			var addrs [][]netip.Addr
			var runtimes []*cniRuntime
			for _, n := range l.Nodes() {
				r := newRuntime(t, n, "1.1.0")
				for j := range 2 {
					s := newSandbox(t, fmt.Sprintf("%s-%d", n.Name, j))
					addrs = append(addrs, addrsOf(r.add(s)))
					pods = append(pods, s)
					runtimes = append(runtimes, r)
				}
			}
			everyWay := func() {
				for i, from := range pods {
					for j, to := range addrs {
						before := status(t, l, i/2+1).Verdicts["delivered"]
						for _, a := range to {
							if i != j {
								reach(t, from.run, a)
							}
						}
						if after := status(t, l, i/2+1).Verdicts["delivered"]; i != j && after-before < uint64(3*len(to)) {
							t.Errorf("pod %d to pod %d: %d packets went through the engine", i, j, after-before)
						}
					}
				}
				for k, n := range l.Nodes() {
					for _, to := range addrs {
						for _, a := range to {
							reach(t, inNode(n), a)
						}
					}
					for i, from := range pods {
						reach(t, from.run, n.VTEP)
						if i/2 == k {
							reach(t, from.run, n.PublicIP)
						}
					}
				}
			}
			everyWay()
			for i, s := range pods {
				if err := runtimes[i].check(s); err != nil {
					t.Error(err)
				}
			}
			if err := l.StopNode(t.Context(), 1, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := l.StartNode(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			everyWay()
			for i, s := range pods {
				if err := runtimes[i].del(s); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
