package gossip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/tulle-net/tulle/control/atomicfile"
)

// keysFile holds the cluster keys beside the key file's, with a checksum, 0600.
const keysFile = "keys.json"

type diskKeys struct {
	Version int       `json:"version"`
	Used    uint64    `json:"used"` // tag
	Keys    []diskKey `json:"keys"`
	Dropped []uint64  `json:"dropped,omitempty"` // tags of keys that do not open anything any more
}

type diskKey struct {
	Number  uint64 `json:"number"`
	Key     []byte `json:"key"`
	Grace   int64  `json:"graceSeconds"`
	Retired int64  `json:"retiredSeconds"`
}

// loadKeys reads the keys from the state directory; none is an empty ring. If the last file is damaged the one before it counts: a key that it
// does not know comes from the others.
func loadKeys(dir string) (keyring, error) {
	path := filepath.Join(dir, keysFile)
	k, err := readKeys(path)
	if errors.Is(err, fs.ErrNotExist) {
		return keyring{}, nil
	}
	if err == nil {
		return k, nil
	}
	if before, errBefore := readKeys(path + atomicfile.Previous); errBefore == nil {
		return before, nil
	}
	return k, fmt.Errorf("cluster keys: %w: remove it, with the network's key of now (tulle keys export on another node) in the --key-file", err)
}

func readKeys(path string) (k keyring, err error) {
	data, err := atomicfile.Load(path)
	if err != nil {
		return k, err
	}
	var d diskKeys
	if err := json.Unmarshal(data, &d); err != nil {
		return k, fmt.Errorf("%s: %w", path, err)
	}
	k.used, k.dropped = d.Used, d.Dropped
	for _, c := range d.Keys {
		k.keys = append(k.keys, clusterKey{c.Number, c.Key, time.Duration(c.Grace) * time.Second, time.Duration(c.Retired) * time.Second})
		if len(c.Key) != keyBytes {
			return k, fmt.Errorf("%s holds a key of %d bytes", path, len(c.Key))
		}
	}
	if k.sort(); d.Version != 1 || len(k.keys) == 0 || k.at(k.used) < 0 {
		return k, fmt.Errorf("%s (version %d) holds no key that is used", path, d.Version)
	}
	return k, nil
}

func (k *keyring) save(dir string) error {
	d := diskKeys{Version: 1, Used: k.used, Dropped: k.dropped}
	for _, c := range k.keys {
		d.Keys = append(d.Keys, diskKey{c.Number, c.Key, int64(c.Grace / time.Second), int64(c.Retired / time.Second)})
	}
	data, err := json.MarshalIndent(d, "", "\t")
	if err != nil {
		return fmt.Errorf("cluster keys: %w", err)
	}
	return atomicfile.Save(filepath.Join(dir, keysFile), append(data, '\n'), 0o600)
}
