package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// packetLab is a lab whose daemons use raw underlays, but for those in udp.
func packetLab(t *testing.T, c lab.Config, udp ...int) *lab.Lab {
	t.Helper()
	c.NodeArgsFor = func(number int) []string {
		if slices.Contains(udp, number) {
			return nil
		}
		return []string{"--underlay", underlayPacket}
	}
	l := labUnderTest(t, c)
	for _, n := range l.Nodes() {
		if n.Kernel || slices.Contains(udp, n.Number) {
			continue
		}
		if u := status(t, l, n.Number).Underlay; u.Kind != underlayPacket || len(u.Limits) == 0 {
			t.Errorf("underlay of %s: %+v", n.Name, u)
		}
	}
	return l
}

// TestPacketUnderlay is TestPods with raw underlays: both nodes, a mix with UDP sockets, more than one worker.
func TestPacketUnderlay(t *testing.T) {
	for _, c := range []struct {
		name string
		udp  []int
		args []string
	}{{"both", nil, nil}, {"mixed", []int{2}, nil}, {"workers", nil, []string{"--workers", "3"}}} {
		t.Run(c.name, func(t *testing.T) {
			l := packetLab(t, lab.Config{Nodes: 2, Pods: 2, NodeArgs: c.args}, c.udp...)
			for _, on := range []bool{true, false} {
				t.Run(fmt.Sprintf("offloads=%t", on), func(t *testing.T) {
					if err := l.SetOffloads(on); err != nil {
						t.Fatal(err)
					}
					for _, opts := range []bench.Ping{smallPing, largePing, fullPing} {
						pingAll(t, l.PodPairs(), opts)
						pingAll(t, l.NodePairs(), opts)
					}
					pingAll(t, nodeToNode(l), smallPing)
					traffic(t, l)
				})
			}
			checkRaw(t, l, c.udp...)
		})
	}
}

// checkRaw demands of nodes with raw underlays that nothing came in that was wrong, and nothing had to be sent piece by piece.
func checkRaw(t *testing.T, l *lab.Lab, udp ...int) {
	t.Helper()
	for _, n := range l.Nodes() {
		if n.Kernel || slices.Contains(udp, n.Number) {
			continue
		}
		r := status(t, l, n.Number)
		if u := r.Underlay; len(u.OuterDrops) != 0 || u.Fallbacks != 0 || u.SocketDrops != 0 || len(r.Problems) != 0 {
			t.Errorf("%s: %+v, problems %v", n.Name, u, r.Problems)
		}
	}
}
