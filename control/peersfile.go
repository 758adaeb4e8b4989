package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/tulle-net/tulle/control/netconf"
)

// pollInterval is how often WatchPeers looks at the file.
const pollInterval = 250 * time.Millisecond

// peerEntry is one element of a peers file: flannel's lease fields plus the name and the subnet.
type peerEntry struct {
	Name        string       `json:"name"`
	PublicIP    netip.Addr   `json:"publicIP"`
	Subnet      netip.Prefix `json:"subnet"`
	BackendType string       `json:"backendType"`
	BackendData struct {
		VNI     uint32
		VtepMAC string
	} `json:"backendData"`
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

func (e peerEntry) node() (Node, error) {
	n := Node{Name: e.Name, PublicIP: e.PublicIP, Subnet: e.Subnet, BackendType: e.BackendType, VNI: e.BackendData.VNI}
	switch {
	case !n.PublicIP.Is4():
		return n, fmt.Errorf("publicIP %q: an IPv4 address is needed", text(n.PublicIP))
	case !n.Subnet.Addr().Is4() || n.Subnet.Bits() > 30:
		return n, fmt.Errorf("subnet %q: an IPv4 prefix of /30 or shorter is needed", text(n.Subnet))
	case n.Subnet != n.Subnet.Masked():
		return n, fmt.Errorf("subnet %s has host bits: write %s", n.Subnet, n.Subnet.Masked())
	}
	if n.Name == "" {
		n.Name = n.PublicIP.String()
	}
	if n.BackendType != netconf.TypeVXLAN {
		return n, nil
	}
	mac, err := parseMAC(e.BackendData.VtepMAC)
	if err != nil {
		return n, fmt.Errorf("backendData.VtepMAC: %w", err)
	}
	if mac[0]&1 != 0 {
		return n, fmt.Errorf("backendData.VtepMAC: %s is a multicast address", e.BackendData.VtepMAC)
	}
	n.VTEP = mac
	return n, nil
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
