package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Where the nodes learn of each other.
const (
	StoreGossip = "gossip" // the daemons claim their subnets and tell each other
	StoreFile   = "file"   // the lab gives every node its subnet and all the same list of peers
	StoreEtcd   = "etcd"   // NodeArgs say where it is; Prepare starts it, and puts the network's configuration and the kernel nodes there
)

// How packets get from node to node.
const (
	BackendVXLAN = "vxlan"
	BackendUDP   = "udp" // flannel's: bare IPv4 packets in datagrams
	// BackendHostGW has no tunnel: the kernel routes to the nodes of the same segment, and daemons reach no others.
	BackendHostGW = "host-gw"
)

// What the daemons have towards their kernels.
const (
	DeviceTAP   = "tap"
	DeviceTUN   = "tun"   // of golang.zx2c4.com/wireguard/tun
	DeviceWater = "water" // of github.com/songgao/water
)

// Config says what Up builds. Its zero value is not valid: Nodes must be set, and Executable unless all nodes are kernel
// nodes.
type Config struct {
	Dir         string                    // DefaultDir if empty; at most 80 bytes
	Nodes       int                       // 1 to 250
	Pods        int                       // on each node, 0 to 250
	Kernel      map[int]bool              // numbers, from 1, of the nodes that run no daemon but flannel's data path, see Node.Kernel
	Family      string                    // FamilyV4 if empty
	Backend     string                    // BackendVXLAN if empty
	Store       string                    // StoreGossip if empty
	Device      string                    // DeviceTAP if empty
	Holder      bool                      // each daemon has a tulle holder beside it
	Routed      bool                      // two underlay segments with a router between them, odd and even nodes
	MTU         int                       // of the underlay, bytes; DefaultMTU if 0. Pods have less, see Lab.PodMTU
	Executable  string                    // the tulle binary
	FlannelPeer string                    // the flannelpeer binary: what Kernel nodes run in a lab of BackendUDP
	PeerArgs    []string                  // before flannelpeer's own, for a binary that is more than that
	NodeArgs    []string                  // appended to the daemons' command line
	NodeArgsFor func(number int) []string // appended after NodeArgs for one node; nil for none
	Prepare     func([]Node) error        // called when all but the daemons is there; nil for nothing
	MayFail     map[int]bool              // numbers of daemon nodes that start last and need not get ready, see Lab.Settle
	Env         []string                  // added to the daemons' environment, KEY=VALUE
	Ephemeral   bool                      // the lab belongs to this process: the next Up removes it when the process is gone
	Progress    io.Writer                 // lines for people; nil for none
}

// Check says what is wrong with the numbers in c. Up does it first.
func (c Config) Check() error {
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: must be 1 to %d", c.Nodes, maxNodes)
	}
	if c.Pods < 0 || c.Pods > maxPods {
		return fmt.Errorf("%d pods: must be 0 to %d", c.Pods, maxPods)
	}
	if least := c.minMTU(); c.MTU != 0 && (c.MTU < least || c.MTU > maxMTU) {
		return fmt.Errorf("MTU %d: must be %d to %d", c.MTU, least, maxMTU)
	}
	for _, choice := range []struct {
		what, value string
		have        []string
	}{
		{"store", c.Store, []string{StoreGossip, StoreFile, StoreEtcd}},
		{"family", c.Family, []string{FamilyV4, FamilyV6, FamilyDual}},
		{"backend", c.Backend, []string{BackendVXLAN, BackendUDP, BackendHostGW}},
		{"device", c.Device, []string{DeviceTAP, DeviceTUN, DeviceWater}},
	} {
		if choice.value != "" && !slices.Contains(choice.have, choice.value) {
			return fmt.Errorf("%s %s: no such %s (have: %s)", choice.what, choice.value, choice.what, strings.Join(choice.have, ", "))
		}
	}
	if c.Backend == BackendUDP && slices.Contains(familiesOf(c.Family), ipv6) {
		return fmt.Errorf("family %s with backend udp: flannel's udp backend carries IPv4 only", c.Family)
	}
	if c.Backend == BackendHostGW && len(c.Kernel) > 0 {
		return errors.New("kernel nodes with backend host-gw: a lab has them of vxlan and udp only")
	}
	for number := range c.Kernel {
		if number < 1 || number > c.Nodes {
			return fmt.Errorf("kernel node %d: no such node (have: 1 to %d)", number, c.Nodes)
		}
	}
	return nil
}

// minMTU leaves the pods the least that their families allow: RFC 791's 576 bytes that every host takes, RFC 8200's 1280.
func (c Config) minMTU() int {
	families := familiesOf(c.Family)
	if slices.Contains(families, ipv6) {
		return minPodMTUv6 + overhead(c.Backend, families)
	}
	return minPodMTU + overhead(c.Backend, families)
}

func (c *Config) normalize() (err error) {
	if err := c.Check(); err != nil {
		return err
	}
	if c.Dir, err = cleanDir(c.Dir); err != nil {
		return err
	}
	if len(c.Dir) > maxDir {
		return fmt.Errorf("directory %s: longer than %d bytes, too long for the path of a socket", c.Dir, maxDir)
	}
	if c.Store == "" {
		c.Store = StoreGossip
	}
	if c.Family == "" {
		c.Family = FamilyV4
	}
	if c.Backend == "" {
		c.Backend = BackendVXLAN
	}
	if c.Device == "" {
		c.Device = DeviceTAP
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	if err := resolve(&c.Executable, "the daemons", !c.allKernel()); err != nil {
		return err
	}
	return resolve(&c.FlannelPeer, "the nodes without daemon (flannelpeer)", c.Backend == BackendUDP && c.anyKernel())
}

// resolve makes the path of an executable absolute. An empty one stays so unless it is needed.
func resolve(path *string, whose string, needed bool) (err error) {
	if *path == "" {
		if needed {
			return fmt.Errorf("no executable given for %s", whose)
		}
		return nil
	}
	if *path, err = filepath.Abs(*path); err != nil {
		return err
	}
	if st, err := os.Stat(*path); err != nil {
		return fmt.Errorf("executable of %s: %w", whose, err)
	} else if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("executable of %s: %s is not executable", whose, *path)
	}
	return nil
}

func (c *Config) allKernel() bool {
	for i := 1; i <= c.Nodes; i++ {
		if !c.Kernel[i] {
			return false
		}
	}
	return true
}

func (c *Config) anyKernel() bool {
	for i := 1; i <= c.Nodes; i++ {
		if c.Kernel[i] {
			return true
		}
	}
	return false
}

// argsFor is what the daemon of one node has beside the others.
func (c *Config) argsFor(number int) []string {
	if c.NodeArgsFor == nil {
		return nil
	}
	return c.NodeArgsFor(number)
}
