package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// fullSize is the largest ping that fits a pod MTU unfragmented.
func fullSize(to netip.Addr, mtu int) bench.Ping {
	headers := 28
	if to.Is6() {
		headers = 48
	}
	return bench.Ping{Count: 2, Size: mtu - headers, Timeout: 2 * time.Second, DF: true}
}

// TestFamilies is TestPods and TestKernelPeer with IPv6: alone, and beside IPv4, where kernel nodes have flannel's second VXLAN
// device for it.
func TestFamilies(t *testing.T) {
	for _, family := range []string{lab.FamilyV6, lab.FamilyDual} {
		for _, kernel := range []map[int]bool{nil, {2: true}} {
			t.Run(fmt.Sprintf("%s/kernel=%t", family, kernel != nil), func(t *testing.T) {
				l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 2, Family: family, Kernel: kernel})
				for _, offloads := range []bool{true, false} {
					if err := l.SetOffloads(offloads); err != nil {
						t.Fatal(err)
					}
					allTraffic(t, l, 1430)
				}
			})
		}
	}
}

// allTraffic sends everything between pods and nodes of a lab whose pods have the given MTU.
func allTraffic(t *testing.T, l *lab.Lab, mtu int) {
	t.Helper()
	for _, pairs := range [][]lab.Pair{l.PodPairs(), l.NodePairs()} {
		pingAll(t, pairs, smallPing)
		pingAll(t, pairs, largePing)
		for _, p := range pairs {
			pingAll(t, []lab.Pair{p}, fullSize(p.Addr, mtu))
		}
	}
	nodes := l.Nodes()
	for _, to := range []int{2, 1} {
		for _, addr := range nodes[to-1].Pods[0].Addrs() {
			p := lab.Pair{From: nodes[2-to].Pods[0].Namespace, To: nodes[to-1].Pods[0].Namespace, Addr: addr}
			r := transfer(t, p, 50<<20)
			t.Logf("%s to %s (%s): 50 MB at %.2f Gb/s", p.From, p.To, addr, r.Gbps())
			for _, size := range []int{8, 64, mtu - 28, mtu - 27, 9000, 60000} {
				exchange(t, p, size, 20)
			}
		}
	}
}
