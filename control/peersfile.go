package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/control/netconf"
	"github.com/tulle-net/tulle/dataplane/tables"
)

// pollInterval is how often WatchPeers looks at the file.
const pollInterval = 250 * time.Millisecond

// peerEntry is one element of a peers file: flannel's lease fields plus the name and the subnets.
type peerEntry struct {
	Name          string       `json:"name"`
	PublicIP      netip.Addr   `json:"publicIP"`
	Subnet        netip.Prefix `json:"subnet"`
	BackendType   string       `json:"backendType"`
	BackendData   backendData  `json:"backendData"`
	PublicIPv6    netip.Addr   `json:"publicIPv6"`
	IPv6Subnet    netip.Prefix `json:"ipv6Subnet"`
	BackendV6Data backendData  `json:"backendV6Data"`
}

type backendData struct {
	VNI     uint32
	VtepMAC string
}

// ParsePeers reads a peers file. Errors name the entry, the field, the value and what is allowed.
func ParsePeers(data []byte) ([]Node, error) {
	var entries []peerEntry
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&entries); err != nil {
		return nil, describeJSON(data, err)
	}
	if dec.More() {
		return nil, errors.New("data behind the list of peers")
	}
	nodes := make([]Node, 0, len(entries))
	for i, e := range entries {
		n, err := e.node()
		if err != nil {
			return nil, fmt.Errorf("peer %d (%q): %w", i+1, e.Name, err)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// describeJSON adds the line to what encoding/json says.
func describeJSON(data []byte, err error) error {
	offset := int64(len(data))
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	}
	line := 1 + bytes.Count(data[:min(offset, int64(len(data)))], []byte("\n"))
	return fmt.Errorf("line %d: %w (expected a JSON list of peers)", line, err)
}

// node checks the entry. One without anything of IPv6 is an IPv4 one.
func (e peerEntry) node() (Node, error) {
	n := Node{Name: e.Name, BackendType: e.BackendType}
	v6 := e.PublicIPv6.IsValid() || e.IPv6Subnet.IsValid()
	v4 := !v6 || e.PublicIP.IsValid() || e.Subnet.IsValid()
	if v6 {
		if err := e.setIPv6(&n); err != nil {
			return n, err
		}
	}
	if v4 {
		if err := e.setIPv4(&n); err != nil {
			return n, err
		}
	}
	if v4 && v6 && n.BackendType == netconf.TypeVXLAN && e.BackendData.VNI != e.BackendV6Data.VNI {
		return n, fmt.Errorf("backendV6Data.VNI %d: backendData has %d: a node has one VNI", e.BackendV6Data.VNI, e.BackendData.VNI)
	}
	if n.Name == "" {
		n.Name = n.Underlay().String()
	}
	return n, nil
}

func (e peerEntry) setIPv4(n *Node) (err error) {
	switch {
	case !e.PublicIP.Is4():
		return fmt.Errorf("publicIP %q: an IPv4 address is needed", text(e.PublicIP))
	case !e.Subnet.Addr().Is4() || e.Subnet.Bits() > 30:
		return fmt.Errorf("subnet %q: an IPv4 prefix of /30 or shorter is needed", text(e.Subnet))
	case e.Subnet != e.Subnet.Masked():
		return fmt.Errorf("subnet %s has host bits: write %s", e.Subnet, e.Subnet.Masked())
	}
	n.PublicIP, n.Subnet = e.PublicIP, e.Subnet
	if n.BackendType == netconf.TypeVXLAN {
		n.VNI = e.BackendData.VNI
		n.VTEP, err = e.BackendData.mac("backendData")
	}
	return err
}

func (e peerEntry) setIPv6(n *Node) (err error) {
	p := e.IPv6Subnet
	switch {
	case backend(*n) == netconf.TypeUDP:
		return fmt.Errorf("ipv6Subnet %q, publicIPv6 %q: flannel's udp backend carries IPv4 only: leave both out", text(p), text(e.PublicIPv6))
	case !isIPv6(e.PublicIPv6) || !e.PublicIPv6.IsGlobalUnicast():
		return fmt.Errorf("publicIPv6 %q: a global IPv6 address is needed", text(e.PublicIPv6))
	case !isIPv6(p.Addr()) || p.Bits() > 126:
		return fmt.Errorf("ipv6Subnet %q: an IPv6 prefix of /126 or shorter is needed", text(p))
	case p != p.Masked():
		return fmt.Errorf("ipv6Subnet %s has host bits: write %s", p, p.Masked())
	}
	n.PublicIPv6, n.IPv6Subnet = e.PublicIPv6, p
	if n.BackendType == netconf.TypeVXLAN {
		n.VNI = e.BackendV6Data.VNI
		n.VTEPv6, err = e.BackendV6Data.mac("backendV6Data")
	}
	return err
}

// isIPv6 says whether a is an IPv6 address that means the same on every link.
func isIPv6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }

// mac returns the MAC; key is the object's, for errors.
func (d backendData) mac(key string) (tables.MAC, error) {
	mac, err := parseMAC(d.VtepMAC)
	if err != nil {
		return mac, fmt.Errorf("%s.VtepMAC: %w", key, err)
	}
	if mac[0]&1 != 0 {
		return mac, fmt.Errorf("%s.VtepMAC: %s is a multicast address", key, d.VtepMAC)
	}
	return mac, nil
}

// text returns v as a user wrote it, "" when it is missing.
func text(v interface {
	IsValid() bool
	String() string
}) string {
	if !v.IsValid() {
		return ""
	}
	return v.String()
}

// LoadPeers reads the peers file at path.
func LoadPeers(path string) ([]Node, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("peers file: %w", err)
	}
	nodes, err := ParsePeers(data)
	if err != nil {
		return nil, fmt.Errorf("peers file %s: %w", path, err)
	}
	return nodes, nil
}

// WatchPeers calls update with the content of the file, or with what is wrong with it, now and after each
// change, until ctx ends. A reader goes on with the peers it has while the file is wrong.
func WatchPeers(ctx context.Context, path string, update func([]Node, error)) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	var seen fileVersion
	for first := true; ; first = false {
		if now := versionOf(path); first || now != seen {
			seen = now
			update(LoadPeers(path))
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Static is the state of a peer that a file names.
const Static = "static"

// A FileStore is a Store for static networks: the peers are those of a file, and this node's subnets are given. It is made by NewFileStore.
type FileStore struct {
	path string

	mu   sync.Mutex // guards the rest
	view View
}

var _ Store = (*FileStore)(nil)

// NewFileStore returns a store for the peers file at path, with the peers that it had when it was read first. The file may name the node
// itself: a list for all nodes does.
func NewFileStore(self Node, path string, peers []Node) *FileStore {
	s := &FileStore{path: path}
	s.view = View{Self: self, Members: 1}
	s.take(peers, nil)
	return s
}

// Run reads the file again when it changes, until ctx ends. While the file is wrong the peers stay as they were.
func (s *FileStore) Run(ctx context.Context, update func(View)) error {
	WatchPeers(ctx, s.path, func(nodes []Node, err error) { update(s.take(nodes, err)) })
	return nil
}

func (s *FileStore) take(nodes []Node, err error) View {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.view
	if v.Problems = nil; err != nil {
		v.Problems = []string{err.Error()}
	} else {
		v.Peers = nil
		for _, n := range nodes {
			if !v.Self.HasSubnet() || !n.Is(v.Self) {
				v.Peers = append(v.Peers, Peer{Node: n, State: Static, Routable: true})
			}
		}
		v.Members = 1 + len(v.Peers)
	}
	s.view = v
	return v
}

// View returns what the file said last.
func (s *FileStore) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view
}

// Is says whether a node of a peers file is self, as far as self is known.
func (n Node) Is(self Node) bool {
	same := func(public, own netip.Addr, subnet, ownSubnet netip.Prefix) bool {
		return !own.IsValid() || public == own && (!ownSubnet.IsValid() || subnet == ownSubnet)
	}
	return same(n.PublicIP, self.PublicIP, n.Subnet, self.Subnet) && same(n.PublicIPv6, self.PublicIPv6, n.IPv6Subnet, self.IPv6Subnet)
}

// A fileVersion differs when a file was written or replaced. The zero value is an absent file.
type fileVersion struct {
	modified time.Time
	size     int64
	inode    uint64
}

func versionOf(path string) fileVersion {
	info, err := os.Stat(path)
	if err != nil {
		return fileVersion{}
	}
	v := fileVersion{modified: info.ModTime(), size: info.Size()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		v.inode = sys.Ino
	}
	return v
}
