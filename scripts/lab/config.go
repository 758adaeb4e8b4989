package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Where the nodes learn of each other.
const (
	StoreGossip = "gossip" // the daemons claim their subnets and tell each other
	StoreFile   = "file"   // the lab gives every node its subnet and all the same list of peers
)

// Config says what Up builds. Its zero value is not valid: Nodes must be set, and Executable unless all nodes are kernel
// nodes.
type Config struct {
	Dir         string                    // DefaultDir if empty; at most 80 bytes
	Nodes       int                       // 1 to 250
	Pods        int                       // on each node, 0 to 250
	Kernel      map[int]bool              // numbers, from 1, of the nodes that are kernel VXLAN devices
	Store       string                    // StoreGossip if empty
	Routed      bool                      // two underlay segments with a router between them, odd and even nodes
	MTU         int                       // of the underlay, bytes; DefaultMTU if 0. Pods have 50 less
	Executable  string                    // the tulle binary
	NodeArgs    []string                  // appended to the daemons' command line
	NodeArgsFor func(number int) []string // appended after NodeArgs for one node; nil for none
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
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return fmt.Errorf("MTU %d: must be %d to %d", c.MTU, minMTU, maxMTU)
	}
	if c.Store != "" && c.Store != StoreGossip && c.Store != StoreFile {
		return fmt.Errorf("store %s: no such store (have: %s, %s)", c.Store, StoreGossip, StoreFile)
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
	if c.Store == "" {
		c.Store = StoreGossip
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
	if c.Executable == "" {
		if c.allKernel() {
			return nil
		}
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
