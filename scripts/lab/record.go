package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

const schemaVersion = 1

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
	Executable    string      `json:"executable"`
	NodeArgs      []string    `json:"nodeArgs"`
	Env           []string    `json:"env"`
	Namespaces    []namespace `json:"namespaces"`
	Nodes         []node      `json:"nodes"`
}

type namespace struct {
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
}

// node is one machine of the lab. Daemon is valid iff its PID is not 0.
type node struct {
	Number  int      `json:"number"`
	Kernel  bool     `json:"kernel"`
	VtepMAC string   `json:"vtepMAC"`
	Daemon  process  `json:"daemon"`
	Args    []string `json:"args"` // the daemon's command line
}

func (n node) name() string          { return fmt.Sprintf("n%d", n.Number) }
func (n node) namespace() string     { return fmt.Sprintf("tulle-n%d", n.Number) }
func (n node) pod(j int) string      { return fmt.Sprintf("tulle-n%d-p%d", n.Number, j) }
func (n node) publicIP() netip.Addr  { return netip.AddrFrom4([4]byte{192, 168, 77, byte(n.Number)}) }
func (n node) vtepIP() netip.Addr    { return netip.AddrFrom4([4]byte{10, 244, byte(n.Number), 0}) }
func (n node) subnet() netip.Prefix  { return netip.PrefixFrom(n.vtepIP(), 24) }
func (n node) dir(lab string) string { return filepath.Join(lab, n.name()) }
func (n node) podIP(j int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 244, byte(n.Number), byte(j + 1)})
}

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

func (r *record) save() error { return writeJSON(recordPath(r.Dir), r) }

// stale says that nobody is left to bring the lab down.
func (r *record) stale() bool { return r.Ephemeral && !r.Owner.alive() }

func (r *record) find(number int) (*node, error) {
	if number < 1 || number > len(r.Nodes) {
		return nil, fmt.Errorf("no node %d (have: 1 to %d)", number, len(r.Nodes))
	}
	return &r.Nodes[number-1], nil
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
