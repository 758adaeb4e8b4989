// Package lab builds a pod network on one machine out of network namespaces: an underlay switch, nodes, and pods on each
// node. A node runs the tulle daemon or, as a kernel node, what flannel has in its place: kernel VXLAN devices or, for the udp
// backend, the program flannelpeer.
//
// It owns the namespaces named tulle-*, everything in them, and one directory with the record of it all. It never
// changes a link, a route or a sysctl of the host's own namespace, never ends a process outside its namespaces, and runs no
// external program but the daemon. Interfaces: rtnetlink(7), network_namespaces(7), veth(4), ethtool ioctls.
//
// Node i is 192.168.77.i and fd77:77::i on the underlay; in a routed lab the even ones are 192.168.78.i and fd77:78::i, behind
// a router with .254 and ::fe on both sides. Its pod j has the address j+1 of its subnets. With the gossip store a daemon claims
// its subnets, and kernel node i holds 10.244.k.0/24 and fd44:0:0:k::/64 with k = 255-i, or the next below that no daemon has;
// with the file store k is i for all. The numbers in IPv6 addresses are, as the rest of them, hexadecimal.
package lab

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
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
	// RouterNamespace joins the segments of a routed lab.
	RouterNamespace = "tulle-router"

	maxNodes    = 250
	maxPods     = 250
	minPodMTU   = 576
	minPodMTUv6 = 1280
	maxMTU      = 65535
	maxDir      = 80 // bytes: a daemon's socket, below it, has 108 for its path (unix(7))
)

// ErrNotRoot is returned by Up and Down when the process may not make or remove namespaces.
var ErrNotRoot = errors.New("needs root (namespaces and links): run it with sudo")

// Lab is a lab that is up. Its methods may be called from several goroutines; what changes the lab takes turns, what
// reads it waits for nobody.
type Lab struct {
	dir      string
	progress io.Writer
	config   Config // what the record does not hold: functions and maps. Zero iff from Open

	op    sync.Mutex            // held by what changes the lab, for as long as that takes
	lock  *machineLock          // held iff the lab is Ephemeral and this process made it; guarded by op
	exits map[int]chan struct{} // by node number, negative for its holder; closed when what this process started is reaped; guarded by op
	wires map[int]*Impairment   // by node number; guarded by op

	mu        sync.Mutex // guards what is below. Writers hold op too, so its holder reads without mu
	rec       *record
	started   time.Time     // of the last daemon; zero once all knew all
	converged time.Duration // from then until all nodes knew all others
}

// Node is a machine of the lab at the moment of the call.
type Node struct {
	Number     int
	Name       string       // n1
	Namespace  string       // tulle-n1
	PublicIP   netip.Addr   // zero in a lab without IPv4, as Subnet, VTEP, VtepMAC
	Subnet     netip.Prefix // zero until the daemon has claimed one; VTEP and Pods likewise
	VTEP       netip.Addr   // the subnet's .0 address: the source of the node's own traffic to pods of other nodes
	VtepMAC    string       // empty with a backend that has no MACs
	PublicIPv6 netip.Addr   // zero in a lab without IPv6, as IPv6Subnet, VTEPv6, VtepMACv6
	IPv6Subnet netip.Prefix
	VTEPv6     netip.Addr
	VtepMACv6  string // a kernel node has one device for each family
	RunDir     string // empty for a kernel node, as Args
	LogFile    string // empty for a node without a process
	Kernel     bool   // no daemon, but what a node of flannel has: kernel VXLAN devices or, with BackendUDP, flannelpeer
	PID        int    // of the daemon; 0 for a kernel node and for a stopped one
	HolderPID  int    // 0 without one
	Alive      bool
	Args       []string // command line of the daemon
	Pods       []Pod
}

// Pod is one pod of a node.
type Pod struct {
	Namespace string     // tulle-n1-p1
	Addr      netip.Addr // zero in a lab without IPv4
	Addr6     netip.Addr // zero in a lab without IPv6
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
	return &Lab{dir: dir, rec: rec, progress: io.Discard, exits: map[int]chan struct{}{}, wires: map[int]*Impairment{}}, nil
}

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Created is when the lab was made.
func (l *Lab) Created() time.Time { return l.record().Created }

// MTU is the underlay's, in bytes.
func (l *Lab) MTU() int { return l.record().MTU }

// PodMTU is the pods', in bytes: the underlay's less 50 with VXLAN, 70 in a lab that has IPv6, 28 with BackendUDP, nothing with BackendHostGW.
func (l *Lab) PodMTU() int { return l.record().podMTU() }

// Family is FamilyV4, FamilyV6 or FamilyDual.
func (l *Lab) Family() string { return l.record().Family }

// Backend is BackendVXLAN, BackendUDP or BackendHostGW.
func (l *Lab) Backend() string { return l.record().Backend }

// Store is StoreGossip, StoreFile or StoreEtcd.
func (l *Lab) Store() string { return l.record().Store }

// Device is DeviceTAP, DeviceTUN or DeviceWater.
func (l *Lab) Device() string { return cmp.Or(l.record().Device, DeviceTAP) }

// Router lists the addresses of the router of a routed lab, nothing for any other.
func (l *Lab) Router() []netip.Addr {
	r := l.record()
	if !r.Routed {
		return nil
	}
	var addrs []netip.Addr
	for _, f := range r.families() {
		addrs = append(addrs, segments[0].router(f), segments[1].router(f))
	}
	return addrs
}

// Converged is how long it took from the last start of a daemon until every node was seen to know all others, some 50 ms
// of polling per four nodes included; 0 if this process started none.
func (l *Lab) Converged() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.converged
}

// Nodes lists the nodes in the order of their numbers, which begin at 1 and have gaps where nodes were removed.
func (l *Lab) Nodes() []Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	nodes := make([]Node, 0, len(l.rec.Nodes))
	for _, n := range l.rec.Nodes {
		nodes = append(nodes, l.rec.view(n))
	}
	return nodes
}

// Node is the node of that number.
func (l *Lab) Node(number int) (Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.rec.find(number)
	if err != nil {
		return Node{}, err
	}
	return l.rec.view(n), nil
}

func (r *record) view(n *node) Node {
	v := Node{Number: n.Number, Name: n.name(), Namespace: n.namespace(),
		PublicIP: n.V4.PublicIP, Subnet: n.V4.Subnet, VTEP: n.V4.vtepIP(), VtepMAC: n.V4.VtepMAC,
		PublicIPv6: n.V6.PublicIP, IPv6Subnet: n.V6.Subnet, VTEPv6: n.V6.vtepIP(), VtepMACv6: n.V6.VtepMAC,
		Kernel: n.Kernel}
	if !n.Kernel {
		v.RunDir, v.PID, v.HolderPID, v.Alive, v.Args = n.runDir(r.Dir), n.Daemon.PID, n.Holder.PID, n.Daemon.alive(), slices.Clone(n.Args)
	}
	if r.hasDir(n) {
		v.LogFile = n.logFile(r.Dir)
	}
	if n.Wired {
		for j := 1; j <= r.Pods; j++ {
			v.Pods = append(v.Pods, Pod{Namespace: n.pod(j), Addr: n.V4.podIP(j), Addr6: n.V6.podIP(j)})
		}
	}
	return v
}

// record is the record of this moment. What is not a node's never changes in it.
func (l *Lab) record() *record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec
}

// edit changes the record and saves it. The caller holds op.
func (l *Lab) edit(f func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	return l.rec.save()
}

func cleanDir(dir string) (string, error) {
	if dir == "" {
		dir = DefaultDir
	}
	return filepath.Abs(dir)
}
