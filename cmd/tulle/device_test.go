package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/tulle-net/tulle/dataplane/tap"
	"github.com/tulle-net/tulle/scripts/lab"
)

// eachDevice runs a test for each device that is a library's.
func eachDevice(t *testing.T, test func(t *testing.T, device string)) {
	for _, device := range []string{lab.DeviceTUN, lab.DeviceWater} {
		t.Run(device, func(t *testing.T) { test(t, device) })
	}
}

// TestDevices is TestFamilies with both families for nodes with other devices, among themselves and beside a kernel node.
func TestDevices(t *testing.T) {
	eachDevice(t, func(t *testing.T, device string) {
		for name, kernel := range map[string]map[int]bool{"own": nil, "kernel": {2: true}} {
			t.Run(name, func(t *testing.T) {
				l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 2, Family: lab.FamilyDual, Kernel: kernel, Device: device})
				for _, offloads := range []bool{true, false} {
					if err := l.SetOffloads(offloads); err != nil {
						t.Fatal(err)
					}
					allTraffic(t, l, 1430)
				}
				pingAll(t, nodeToNode(l), smallPing)
				checkDevice(t, l, tap.Kind(device))
			})
		}
	})
}

// checkDevice demands that status says what the device is and cannot do.
func checkDevice(t *testing.T, l *lab.Lab, kind tap.Kind) {
	t.Helper()
	r := status(t, l, 1)
	if r.TAP.Device != kind || r.TAP.Queues != 1 || len(r.TAP.Offloads) != 0 || !slices.Equal(r.TAP.Cannot, kind.Cannot()) || len(r.TAP.Cannot) == 0 {
		t.Errorf("status has %+v", r.TAP)
	}
	if n := r.Verdicts["drop_tap_write"]; n != 0 {
		t.Errorf("%d segments refused", n)
	}
	if r.Verdicts["encapsulated"] < 10000 {
		t.Errorf("%d segments encapsulated: the traffic did not go through the engine", r.Verdicts["encapsulated"])
	}
	n := l.Nodes()[0]
	table := runIn(t, n.Namespace, "env", asTulle+"=1", n.Args[0], "status", "--run-dir", n.RunDir)
	for _, want := range append([]string{"device " + string(kind)}, kind.Cannot()...) {
		if !strings.Contains(table, want) {
			t.Errorf("tulle status does not say %q:\n%s", want, table)
		}
	}
}

// TestDevicesTogether is one node of each device, with small packets and full ones between all of them.
func TestDevicesTogether(t *testing.T) {
	devices := []string{lab.DeviceTAP, lab.DeviceTUN, lab.DeviceWater}
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1, NodeArgsFor: func(number int) []string { return []string{"--device", devices[number-1]} }})
	pingAll(t, l.PodPairs(), smallPing)
	pingAll(t, l.PodPairs(), largePing)
	pingAll(t, nodeToNode(l), smallPing)
	for _, p := range []lab.Pair{between(l, 1, 2), between(l, 2, 3), between(l, 3, 1), between(l, 3, 2)} {
		r := transfer(t, p, 20<<20)
		t.Logf("%s to %s: 20 MB at %.2f Gb/s", p.From, p.To, r.Gbps())
		exchange(t, p, 60000, 20)
	}
}

// TestDevicesUDP is TestUDPBackend.
func TestDevicesUDP(t *testing.T) { eachDevice(t, udpBackend) }

// TestDevicesRepair is TestRepair.
func TestDevicesRepair(t *testing.T) { eachDevice(t, repair) }
