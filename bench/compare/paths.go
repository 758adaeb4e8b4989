// Package compare measures ways to join pods against each other: for each it builds the same lab of two nodes, round by round so
// that what changes on the machine meets all of them, and relates every figure to kernel VXLAN's of the same round.
//
// It owns the lab while it measures and leaves nothing behind. The traffic is package bench's, the search package search's, and
// what comes out is package result's.
package compare

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// Path is one way to join pods. A new one is a line in Paths.
type Path struct {
	Name  string
	Title string
	// Backend, NodeArgs and Router say what the lab runs; none of them means kernel VXLAN.
	Tulle    bool
	Backend  string   // lab.BackendVXLAN if empty
	Device   string   // lab.DeviceTAP if empty
	NodeArgs []string // more of the daemons' command line
	Router   string   // a kind of package router, in place of flannel's udp backend
	// Attachment is that of the pods, of cniapi's kinds; with none they are the lab's, whose kernels route to them without rules.
	Attachment string
	// KernelPeer makes the second node one of kernel VXLAN.
	KernelPeer bool
	// Direct joins the pods by a veth and nothing else: the generator's own limit. There is no underlay then.
	Direct bool
}

// The paths that others are measured by.
const (
	Bare   = "bare"
	Kernel = "kernel"
)

// Paths are all that there are, in the order in which they are shown.
var Paths = []Path{
	{Name: Bare, Title: "bare veth (the generator's limit)", Direct: true},
	{Name: Kernel, Title: "kernel VXLAN"},
	{Name: "tulle", Title: "tulle, VXLAN", Tulle: true},
	{Name: "tulle-2w", Title: "tulle, VXLAN, 2 workers", Tulle: true, NodeArgs: []string{"--workers", "2"}},
	{Name: "tulle-udp", Title: "tulle, udp backend", Tulle: true, Backend: lab.BackendUDP},
	{Name: "tulle-packet", Title: "tulle, VXLAN, packet sockets", Tulle: true, NodeArgs: []string{"--underlay", "packet"}},
	{Name: "tulle-tun", Title: "tulle, VXLAN, wireguard/tun as device", Tulle: true, Device: lab.DeviceTUN},
	{Name: "tulle-water", Title: "tulle, VXLAN, water as device", Tulle: true, Device: lab.DeviceWater},
	{Name: "tulle-veth", Title: "tulle, VXLAN, CNI attachment veth", Tulle: true, Attachment: cniapi.KindVeth},
	{Name: "tulle-tap", Title: "tulle, VXLAN, CNI attachment tap", Tulle: true, Attachment: cniapi.KindTAP},
	{Name: "tulle-kernel", Title: "tulle to a kernel VXLAN node", Tulle: true, KernelPeer: true},
	{Name: "water", Title: "one packet per system call (water)", Router: "water", Backend: lab.BackendUDP},
	{Name: "wireguard", Title: "segments in batches (wireguard/tun, no crypto)", Router: "wireguard", Backend: lab.BackendUDP},
}

// Select finds paths by name, with Bare and Kernel in front, which all others need.
func Select(names []string) (paths []Path, err error) {
	var have []string
	for _, p := range Paths {
		have = append(have, p.Name)
	}
	for _, name := range names {
		if !slices.Contains(have, name) {
			return nil, fmt.Errorf("path %q: no such path (have: %s)", name, strings.Join(have, ", "))
		}
	}
	for _, p := range Paths {
		if p.Name == Bare || p.Name == Kernel || slices.Contains(names, p.Name) {
			paths = append(paths, p)
		}
	}
	return paths, nil
}

// carries says whether p takes packets of a family, one of the lab's.
func (p Path) carries(family string) bool {
	return p.Backend != lab.BackendUDP || family == lab.FamilyV4
}

// config is the lab of p.
func (p Path) config(o Options) lab.Config {
	c := lab.Config{Nodes: 2, Pods: 1, Dir: o.Dir, Family: o.Family, Backend: p.Backend, Store: lab.StoreFile, Executable: o.Executable,
		Device: p.Device, NodeArgs: p.NodeArgs, Ephemeral: true, Kernel: map[int]bool{1: !p.Tulle, 2: !p.Tulle || p.KernelPeer}}
	if p.Attachment != "" {
		c.Pods = 0
	}
	if p.Router != "" {
		c.FlannelPeer, c.PeerArgs = o.Executable, append(slices.Clone(o.RouterArgs), p.Router)
	}
	return c
}
