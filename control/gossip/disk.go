package gossip

import (
	"cmp"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tulle-net/tulle/control/atomicfile"

	"github.com/tulle-net/tulle/control/claim"
)

// Files in the state directory.
const (
	keyFile   = "node.key"    // the Ed25519 seed in hex, 0600
	stateFile = "gossip.json" // diskState, with a checksum
)

// diskVersion is the version of the state file; unsealedVersion that of those which had no checksum.
const (
	diskVersion     = 2
	unsealedVersion = 1
)

// maxEndpoints bounds how many endpoints are kept for finding the network again.
const maxEndpoints = 32

// A diskState is what a node has to know after a restart.
type diskState struct {
	Version   int              `json:"version"`
	NodeID    string           `json:"nodeID"`
	BootEpoch uint64           `json:"bootEpoch"` // of the last boot
	Nonce     uint64           `json:"nonce"`     // of the last boot
	Seq       uint64           `json:"seq"`       // of the last boot's last record that was written with this file
	Claims    []diskClaim      `json:"claims"`    // confirmed ones
	Endpoints []netip.AddrPort `json:"endpoints"` // of other nodes that were alive last

	Known  [][]byte         `json:"records,omitempty"` // of other nodes that have a claim, as they signed them
	Fences []diskFence      `json:"fences,omitempty"`
	Gone   map[string]int64 `json:"goneSeconds,omitempty"` // node ID: how long it has been gone
}

// A diskFence is a block that was given back or taken away, with the number below which claims on it are dead.
type diskFence struct {
	Block    netip.Prefix `json:"block"`
	Number   uint64       `json:"number"`
	ServedMS int64        `json:"servedMilliseconds"` // of the quarantine
}

type diskClaim struct {
	Block    netip.Prefix `json:"block"`
	Fence    uint64       `json:"fence"`
	TenureMS int64        `json:"tenureMilliseconds"`
	State    string       `json:"state"`
}

// errNoKey: the node has no identity yet.
var errNoKey = errors.New("no key")

// openIdentity returns the node's key, which it makes in an empty directory.
func openIdentity(dir string) (ed25519.PrivateKey, error) {
	key, err := readKey(filepath.Join(dir, keyFile))
	if !errors.Is(err, errNoKey) {
		return key, err
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile)); err == nil {
		return nil, fmt.Errorf("%s is there without %s, the key of its node: put the key back, or remove %[1]s too and the node becomes a new one", filepath.Join(dir, stateFile), keyFile)
	}
	return newIdentity(dir)
}

// newIdentity makes a key and forgets what belonged to another.
func newIdentity(dir string) (ed25519.PrivateKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make the node's key: %w", err)
	}
	for _, name := range []string{stateFile, stateFile + atomicfile.Previous} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the state of the former key: %w", err)
		}
	}
	return key, atomicfile.Write(filepath.Join(dir, keyFile), []byte(hex.EncodeToString(key.Seed())+"\n"), 0o600)
}

func readKey(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoKey
	}
	if err != nil {
		return nil, fmt.Errorf("the node's key: %w", err)
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s is damaged: %d hexadecimal digits are expected: restore it, or remove it together with %s and the node becomes a new one, with another subnet",
			path, 2*ed25519.SeedSize, stateFile)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// loadState reads the state of the node id, or, if that is damaged, the one before it: then older says what is wrong. A directory without
// any is a node's first boot.
func loadState(dir string, id claim.NodeID) (s diskState, older error, err error) {
	path := filepath.Join(dir, stateFile)
	s, err = readState(path, id)
	if errors.Is(err, fs.ErrNotExist) {
		return diskState{Version: diskVersion, NodeID: id.String()}, nil, nil
	}
	if !errors.Is(err, errDamaged) {
		return s, nil, err
	}
	before, errBefore := readState(path+atomicfile.Previous, id)
	if errBefore != nil {
		return s, nil, fmt.Errorf("%w; %s: %v: restore one, or remove both and the node asks the others for its subnet or claims anew", err, path+atomicfile.Previous, errBefore)
	}
	before.BootEpoch++ // the damaged one may be of a later boot
	return before, err, nil
}

// errDamaged: a state file is not as it was written.
var errDamaged = errors.New("is damaged")

func damaged(path, what string) error { return fmt.Errorf("%s %w: %s", path, errDamaged, what) }

func readState(path string, id claim.NodeID) (s diskState, err error) {
	data, err := atomicfile.Load(path)
	sealed := err == nil
	if err != nil && !errors.Is(err, atomicfile.ErrDamaged) {
		return s, fmt.Errorf("state: %w", err)
	}
	if errJSON := json.Unmarshal(data, &s); errJSON != nil {
		return s, damaged(path, cmp.Or(err, errJSON).Error())
	}
	switch {
	case !sealed && s.Version != unsealedVersion:
		return s, damaged(path, err.Error())
	case sealed && s.Version != diskVersion:
		return s, fmt.Errorf("%s is of version %d, this tulle knows version %d: run the tulle that wrote it, or remove it and the node claims anew", path, s.Version, diskVersion)
	case s.NodeID != id.String():
		return s, fmt.Errorf("%s is of node %s, but %s is of node %s: restore the two together, or remove both and the node becomes a new one", path, s.NodeID, keyFile, id)
	case s.BootEpoch == 0:
		return s, damaged(path, "bootEpoch is missing")
	}
	for _, c := range s.Claims {
		if _, err := c.claim(); err != nil {
			return s, damaged(path, err.Error())
		}
	}
	s.Version = diskVersion
	return s, nil
}

// memory returns what the claim machine has to know of the boots before. What is no fence is left out.
func (s *diskState) memory() claim.Memory {
	m := claim.Memory{
		Last:   claim.LastWords{Epoch: s.BootEpoch, Nonce: s.Nonce, Seq: s.Seq},
		Fences: claim.Fences{}, Gone: map[claim.NodeID]time.Duration{},
	}
	if len(s.Claims) > 0 {
		m.Last.Block = s.Claims[0].Block
	}
	for _, f := range s.Fences {
		if f.Block.IsValid() && f.Block == f.Block.Masked() && f.ServedMS >= 0 && f.ServedMS <= claim.Quarantine.Milliseconds() {
			m.Fences[f.Block] = claim.Fence{Number: f.Number, Served: time.Duration(f.ServedMS) * time.Millisecond}
		}
	}
	for text, seconds := range s.Gone {
		if id, _, ok := claim.ParseMember(text + ".0"); ok && seconds > 0 && seconds < 1<<32 {
			m.Gone[id] = time.Duration(seconds) * time.Second
		}
	}
	for _, raw := range s.Known {
		if r, err := claim.OpenRecord(raw); err == nil {
			m.Known = append(m.Known, r)
		}
	}
	return m
}

// remember is memory's inverse, but for the claims.
func (s *diskState) remember(m claim.Memory) {
	s.Fences, s.Gone, s.Known = nil, nil, nil
	for _, r := range m.Known {
		s.Known = append(s.Known, r.Raw)
	}
	for block, f := range m.Fences {
		s.Fences = append(s.Fences, diskFence{block, f.Number, f.Served.Milliseconds()})
	}
	slices.SortFunc(s.Fences, func(a, b diskFence) int { return a.Block.Compare(b.Block) })
	for id, long := range m.Gone {
		if seconds := int64(long / time.Second); seconds > 0 {
			if s.Gone == nil {
				s.Gone = map[string]int64{}
			}
			s.Gone[id.String()] = seconds
		}
	}
}

// claim converts and checks a claim from disk.
func (c diskClaim) claim() (claim.Claim, error) {
	out := claim.Claim{Block: c.Block, Fence: c.Fence, Tenure: time.Duration(c.TenureMS) * time.Millisecond, State: claim.Confirmed}
	if !c.Block.IsValid() || c.Block != c.Block.Masked() || c.TenureMS < 0 || c.TenureMS > int64(time.Duration(1<<63-1)/time.Millisecond) {
		return claim.Claim{}, fmt.Errorf("claim of %s with tenure %d", c.Block, c.TenureMS)
	}
	if c.State != "confirmed" {
		return claim.Claim{}, fmt.Errorf("claim of %s: state %q", c.Block, c.State)
	}
	return out, nil
}

func toDisk(c claim.Claim) diskClaim {
	return diskClaim{c.Block, c.Fence, c.Tenure.Milliseconds(), "confirmed"}
}

// save writes the state. When it returns nil, the state survives a power failure.
func (s *diskState) save(dir string) error {
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return atomicfile.Save(filepath.Join(dir, stateFile), append(data, '\n'), 0o600)
}
