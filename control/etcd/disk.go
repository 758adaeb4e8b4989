package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/tulle-net/tulle/control/atomicfile"
)

// stateFile has what a node begins with, with or without etcd.
const stateFile = "etcd.json"

const stateVersion = 1

// A diskState is what etcd said last.
type diskState struct {
	Version int         `json:"version"`
	Prefix  string      `json:"prefix"` // of the keys; those of another one mean nothing
	Cluster uint64      `json:"cluster"`
	Own     string      `json:"own"` // the key; empty without a subnet
	Leases  []diskLease `json:"leases"`
}

type diskLease struct {
	Key         string `json:"key"`
	Value       string `json:"value"`
	Reservation bool   `json:"reservation,omitempty"`
}

// load begins with what is on disk. Damaged, or of another network, it is as if there was nothing.
func (s *Store) load() error {
	if err := os.MkdirAll(s.config.StateDir, 0o700); err != nil {
		return fmt.Errorf("etcd: state directory: %w", err)
	}
	path := filepath.Join(s.config.StateDir, stateFile)
	data, err := atomicfile.Load(path)
	if errors.Is(err, atomicfile.ErrDamaged) {
		s.config.Log.Warn("etcd: goes on with the state before the last one", "reason", err)
		data, err = atomicfile.Load(path + atomicfile.Previous)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, atomicfile.ErrDamaged):
		s.config.Log.Warn("etcd: begins without state", "reason", err)
		return nil
	case err != nil:
		return fmt.Errorf("etcd: state: %w", err)
	}
	var d diskState
	if err := json.Unmarshal(data, &d); err != nil || d.Version != stateVersion {
		s.config.Log.Warn("etcd: begins without state", "file", path, "version", d.Version, "error", err)
		return nil
	}
	if d.Prefix == s.prefix {
		s.adopt(&d)
	}
	return nil
}

func (s *Store) adopt(d *diskState) {
	s.cluster = d.Cluster
	for _, l := range d.Leases {
		id := int64(-1) // some lease's
		if l.Reservation {
			id = 0
		}
		s.put(s.prefix+l.Key, []byte(l.Value), 0, id)
	}
	own := s.leases[d.Own]
	delete(s.leases, d.Own)
	given := s.config.Self
	switch {
	case own == nil:
	case !s.fits(own.node) && !given.Subnet.IsValid(), given.Subnet.IsValid() && (own.node.Subnet != given.Subnet || own.node.IPv6Subnet != given.IPv6Subnet):
		s.config.Log.Warn("etcd: the kept subnet is not one that this node may have now", "subnet", own.node.Subnet)
	default:
		wanted, err := s.want(own.node.Subnet, own.node.IPv6Subnet)
		if err == nil {
			s.own, s.held, s.before = wanted, true, own.value
		}
	}
}

// save keeps what etcd said last.
func (s *Store) save() error {
	d := diskState{Version: stateVersion, Prefix: s.prefix, Cluster: s.cluster}
	all := maps.Clone(s.leases)
	for key, g := range s.gone {
		all[key] = g.lease
	}
	if s.held {
		d.Own = s.own.key
		all[d.Own] = s.own
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		d.Leases = append(d.Leases, diskLease{key, all[key].value, all[key].id == 0})
	}
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return atomicfile.Save(filepath.Join(s.config.StateDir, stateFile), append(data, '\n'), 0o600)
}
