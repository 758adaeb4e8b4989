// Package lab builds a pod network on one machine out of network namespaces: an underlay switch, nodes, and pods on each
// node. A node runs the tulle daemon or, as a kernel node, a kernel VXLAN device set up as flannel sets it up.
//
// It owns the namespaces named tulle-*, everything in them, and one directory with the record of it all. It never
// changes a link, a route or a sysctl of the host's own namespace, never ends a process outside its namespaces, and runs no
// external program but the daemon. Interfaces: rtnetlink(7), network_namespaces(7), veth(4), ethtool ioctls.
//
// Node i is 192.168.77.i on the underlay and holds 10.244.i.0/24; its pod j is 10.244.i.(j+1).
package lab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// DefaultDir holds the lab's record, the daemons' directories and their logs.
	DefaultDir = "/run/tulle-lab"
	// DefaultMTU is the underlay's, in bytes.
	DefaultMTU = 1500

	network  = "10.244.0.0/16"
	maxNodes = 250
	maxPods  = 250
	minMTU   = 576 + vxlanOverhead
	maxMTU   = 65535
	maxDir   = 80 // bytes: a daemon's socket, below it, has 108 for its path (unix(7))
)

// ErrNotRoot is returned by Up and Down when the process may not make or remove namespaces.
var ErrNotRoot = errors.New("needs root (namespaces and links): run it with sudo")

// Config says what Up builds. Its zero value is not valid: Nodes must be set, and Executable unless all nodes are kernel
// nodes.
type Config struct {
	Dir        string       // DefaultDir if empty; at most 80 bytes
	Nodes      int          // 1 to 250
	Pods       int          // on each node, 0 to 250
	Kernel     map[int]bool // numbers, from 1, of the nodes that are kernel VXLAN devices
	MTU        int          // of the underlay, bytes; DefaultMTU if 0. Pods have 50 less
	Executable string       // the tulle binary
	NodeArgs   []string     // appended to the daemons' command line
	Env        []string     // added to the daemons' environment, KEY=VALUE
	Ephemeral  bool         // the lab belongs to this process: the next Up removes it when the process is gone
	Progress   io.Writer    // lines for people; nil for none
}

// Lab is a lab that is up. Its methods may be called from several goroutines.
type Lab struct {
	progress io.Writer
	mu       sync.Mutex // guards all below
	rec      *record
	lock     *machineLock          // held iff the lab is Ephemeral and this process made it
	exits    map[int]chan struct{} // by node number; closed when a daemon started by this process has been reaped
}

// Node is a machine of the lab at the moment of the call.
type Node struct {
	Number    int
	Name      string // n1
	Namespace string // tulle-n1
	PublicIP  netip.Addr
	Subnet    netip.Prefix
	VTEP      netip.Addr // the subnet's .0 address: the source of the node's own traffic to pods of other nodes
	VtepMAC   string
	RunDir    string // empty for a kernel node, as LogFile and Args
	LogFile   string
	Kernel    bool
	PID       int // of the daemon; 0 for a kernel node and for a stopped one
	Alive     bool
	Args      []string // command line of the daemon
	Pods      []Pod
}

// Pod is one pod of a node.
type Pod struct {
	Namespace string // tulle-n1-p1
	Addr      netip.Addr
}

// Open gives the lab whose record is in dir.
func Open(dir string) (*Lab, error) {
	dir, err := cleanDir(dir)
	if err != nil {
		return nil, err
	}
	rec, err := loadRecord(dir)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, fmt.Errorf("no lab in %s: make one with: tulle lab up", dir)
	}
	return &Lab{rec: rec, progress: io.Discard, exits: map[int]chan struct{}{}}, nil
}

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.rec.Dir }

// Created is when the lab was made.
func (l *Lab) Created() time.Time { return l.rec.Created }

// MTU is the underlay's, in bytes.
func (l *Lab) MTU() int { return l.rec.MTU }

// Nodes lists the nodes in the order of their numbers, which begin at 1.
func (l *Lab) Nodes() []Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	nodes := make([]Node, 0, len(l.rec.Nodes))
	for _, n := range l.rec.Nodes {
		v := Node{Number: n.Number, Name: n.name(), Namespace: n.namespace(), PublicIP: n.publicIP(), Subnet: n.subnet(),
			VTEP: n.vtepIP(), VtepMAC: n.VtepMAC, Kernel: n.Kernel, PID: n.Daemon.PID, Alive: n.Daemon.alive(),
			Args: slices.Clone(n.Args)}
		if !n.Kernel {
			v.RunDir, v.LogFile = n.runDir(l.rec.Dir), n.logFile(l.rec.Dir)
		}
		for j := 1; j <= l.rec.Pods; j++ {
			v.Pods = append(v.Pods, Pod{Namespace: n.pod(j), Addr: n.podIP(j)})
		}
		nodes = append(nodes, v)
	}
	return nodes
}

func cleanDir(dir string) (string, error) {
	if dir == "" {
		dir = DefaultDir
	}
	return filepath.Abs(dir)
}

// Check says what is wrong with the numbers in c. Up does it first.
func (c Config) Check() error {
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: must be 1 to %d", c.Nodes, maxNodes)
	}
	if c.Pods < 0 || c.Pods > maxPods {
		return fmt.Errorf("%d pods: must be 0 to %d", c.Pods, maxPods)
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return fmt.Errorf("MTU %d: must be %d to %d", c.MTU, minMTU, maxMTU)
	}
	for number := range c.Kernel {
		if number < 1 || number > c.Nodes {
			return fmt.Errorf("kernel node %d: no such node (have: 1 to %d)", number, c.Nodes)
		}
	}
	return nil
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
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	return c.resolveExecutable()
}

func (c *Config) resolveExecutable() (err error) {
	if c.allKernel() {
		return nil
	}
	if c.Executable == "" {
		return errors.New("no executable given for the daemons")
	}
	if c.Executable, err = filepath.Abs(c.Executable); err != nil {
		return err
	}
	if st, err := os.Stat(c.Executable); err != nil {
		return fmt.Errorf("executable of the daemons: %w", err)
	} else if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("executable of the daemons: %s is not executable", c.Executable)
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
