package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const schemaVersion = 3

// record is what DIR/lab.json holds: everything that Down has to remove. It is saved before each thing it names is made.
// Processes need no entry to be found: all of them are born inside a recorded namespace.
type record struct {
	SchemaVersion int         `json:"schemaVersion"`
	Dir           string      `json:"dir"`
	Created       time.Time   `json:"created"`
	Owner         process     `json:"owner"`
	Ephemeral     bool        `json:"ephemeral"`
	MadeDirs      []string    `json:"madeDirs"` // removed when empty
	Paths         []string    `json:"paths"`    // files and trees, removed whole
	MTU           int         `json:"mtu"`
	Pods          int         `json:"pods"`
	Family        string      `json:"family"`
	Backend       string      `json:"backend"`
	Store         string      `json:"store"`
	Device        string      `json:"device"`      // of the daemons; empty as DeviceTAP
	Holder        bool        `json:"holder"`      // beside each daemon
	StaticPeers   bool        `json:"staticPeers"` // the daemons read the peers file
	Routed        bool        `json:"routed"`
	Far           []int       `json:"far"` // numbers of the nodes on the far side of a split underlay
	Executable    string      `json:"executable"`
	FlannelPeer   string      `json:"flannelPeer"`
	PeerArgs      []string    `json:"peerArgs"`
	NodeArgs      []string    `json:"nodeArgs"`
	Env           []string    `json:"env"`
	Namespaces    []namespace `json:"namespaces"`
	Nodes         []*node     `json:"nodes"`      // by number
	LastNumber    int         `json:"lastNumber"` // of a node, removed ones included: none is used twice
	// OldSubnets are those of removed nodes: the daemons may hold them back for these still.
	OldSubnets []netip.Prefix `json:"oldSubnets"`
}

type namespace struct {
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
}

// node is one machine of the lab. Daemon is valid iff its PID is not 0, Seed iff it is not 0.
type node struct {
	Number   int      `json:"number"`
	Kernel   bool     `json:"kernel"`
	MayFail  bool     `json:"mayFail"` // nobody waits for it
	Leaving  bool     `json:"leaving"` // some of it may be gone
	Ready    bool     `json:"ready"`   // its sides are whole: what a daemon says or the kernel chose is in them
	V4       side     `json:"v4"`
	V6       side     `json:"v6"`
	Wired    bool     `json:"wired"`    // its pods are linked to it
	Seed     int      `json:"seed"`     // number of the node that its daemon joins
	Daemon   process  `json:"daemon"`   // or flannelpeer
	Holder   process  `json:"holder"`   // beside the daemon
	MoreArgs []string `json:"moreArgs"` // after the record's NodeArgs
	Args     []string `json:"args"`     // the daemon's command line
}

func (n *node) name() string          { return fmt.Sprintf("n%d", n.Number) }
func (n *node) namespace() string     { return fmt.Sprintf("tulle-n%d", n.Number) }
func (n *node) pod(j int) string      { return fmt.Sprintf("tulle-n%d-p%d", n.Number, j) }
func (n *node) dir(lab string) string { return filepath.Join(lab, n.name()) }

func (n *node) side(f family) *side {
	if f == ipv6 {
		return &n.V6
	}
	return &n.V4
}

// publicIP is that of the first family that the node has: the one by which others find it.
func (n *node) publicIP() netip.Addr {
	if n.V4.PublicIP.IsValid() {
		return n.V4.PublicIP
	}
	return n.V6.PublicIP
}

// subnets are those that the node has so far.
func (n *node) subnets() (subnets []netip.Prefix) {
	for _, s := range []side{n.V4, n.V6} {
		if s.Subnet.IsValid() {
			subnets = append(subnets, s.Subnet)
		}
	}
	return subnets
}

// known says that the other nodes can be told of n, or are expected to tell.
func (n *node) known() bool { return n.Ready && !n.MayFail && !n.Leaving }

func (r *record) families() []family { return familiesOf(r.Family) }
func (r *record) podMTU() int        { return r.MTU - overhead(r.Backend, r.families()) }

func recordPath(dir string) string { return filepath.Join(dir, "lab.json") }

// loadRecord gives nil when dir holds no record.
func loadRecord(dir string) (*record, error) {
	b, err := os.ReadFile(recordPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", recordPath(dir), err)
	}
	return r, nil
}

func newRecord(c Config) *record {
	r := &record{SchemaVersion: schemaVersion, Dir: c.Dir, Created: time.Now().UTC(), Ephemeral: c.Ephemeral, MTU: c.MTU,
		Pods: c.Pods, Family: c.Family, Backend: c.Backend, Store: c.Store, Device: c.Device, Holder: c.Holder, StaticPeers: c.Store == StoreFile || c.Store == StoreGossip && c.anyKernel(),
		Routed: c.Routed, Executable: c.Executable, FlannelPeer: c.FlannelPeer, PeerArgs: c.PeerArgs, NodeArgs: c.NodeArgs, Env: c.Env}
	r.Namespaces = append(r.Namespaces, namespace{Name: underlayNamespace})
	if r.Routed {
		r.Namespaces = append(r.Namespaces, namespace{Name: RouterNamespace})
	}
	r.Paths = []string{netConfPath(c.Dir), peersPath(c.Dir), keyPath(c.Dir)}
	for i := 1; i <= c.Nodes; i++ {
		r.add(r.newNode(i, c.Kernel[i], c))
	}
	return r
}

// newNode is node i of a lab. A kernel node has its subnets from the start, and every node has in a lab on files.
func (r *record) newNode(i int, kernel bool, c Config) *node {
	n := &node{Number: i, Kernel: kernel}
	for _, f := range r.families() {
		s := n.side(f)
		s.PublicIP = segmentOf(i, r.Routed).addr(f, i)
		switch {
		case r.Store == StoreFile:
			s.Subnet = f.subnetAt(i)
		case kernel:
			s.Subnet = f.subnetAt(r.freeBlock(255 - i))
		}
	}
	if !kernel {
		n.MayFail, n.MoreArgs = c.MayFail[i], c.argsFor(i)
	}
	return n
}

// freeBlock is the place of the first subnets at or below i that no node has or had: a lab has at most 250 in its life.
func (r *record) freeBlock(i int) int {
	taken := slices.Clone(r.OldSubnets)
	for _, n := range r.Nodes {
		taken = append(taken, n.subnets()...)
	}
	for slices.ContainsFunc(r.families(), func(f family) bool { return slices.Contains(taken, f.subnetAt(i)) }) {
		i--
	}
	return i
}

// add names all that will be made for n.
func (r *record) add(n *node) {
	r.Nodes = append(r.Nodes, n)
	r.LastNumber = n.Number
	for _, name := range r.namespacesOf(n) {
		r.Namespaces = append(r.Namespaces, namespace{Name: name})
	}
	if r.hasDir(n) {
		r.Paths = append(r.Paths, n.dir(r.Dir))
	}
}

// hasDir says that n has a directory, for its process.
func (r *record) hasDir(n *node) bool { return !n.Kernel || r.Backend == BackendUDP }

// namespacesOf lists the names of n's own namespace and of its pods'.
func (r *record) namespacesOf(n *node) []string {
	names := []string{n.namespace()}
	for j := 1; j <= r.Pods; j++ {
		names = append(names, n.pod(j))
	}
	return names
}

// only is the part of r that is about n.
func (r *record) only(n *node) *record {
	own := &record{Dir: r.Dir, Backend: r.Backend, Nodes: []*node{n}}
	names := r.namespacesOf(n)
	for _, ns := range r.Namespaces {
		if slices.Contains(names, ns.Name) {
			own.Namespaces = append(own.Namespaces, ns)
		}
	}
	if r.hasDir(n) {
		own.Paths = []string{n.dir(r.Dir)}
	}
	return own
}

// remove takes out what is in part.
func (r *record) remove(part *record) {
	for _, n := range part.Nodes {
		r.OldSubnets = append(r.OldSubnets, n.subnets()...)
	}
	r.Nodes = slices.DeleteFunc(r.Nodes, func(n *node) bool { return slices.Contains(part.Nodes, n) })
	r.Namespaces = slices.DeleteFunc(r.Namespaces, func(ns namespace) bool { return slices.Contains(part.Namespaces, ns) })
	r.Paths = slices.DeleteFunc(r.Paths, func(path string) bool { return slices.Contains(part.Paths, path) })
}

// names lists all namespaces.
func (r *record) names() []string {
	var names []string
	for _, ns := range r.Namespaces {
		names = append(names, ns.Name)
	}
	return names
}

func (r *record) save() error { return writeJSON(recordPath(r.Dir), r) }

// stale says that nobody is left to bring the lab down.
func (r *record) stale() bool { return r.Ephemeral && !r.Owner.alive() }

func (r *record) find(number int) (*node, error) {
	var have []string
	for _, n := range r.Nodes {
		if n.Number == number {
			return n, nil
		}
		have = append(have, n.name())
	}
	return nil, fmt.Errorf("no node n%d (have: %v)", number, have)
}

// writeJSON replaces path in one step. The temporary file has one name, so that a record can cover it.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
