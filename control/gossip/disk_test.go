package gossip

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tulle-net/tulle/control/atomicfile"
	"github.com/tulle-net/tulle/control/claim"
)

func someState(id claim.NodeID) diskState {
	return diskState{
		Version: diskVersion, NodeID: id.String(), BootEpoch: 7, Nonce: 1 << 63, Seq: 3,
		Claims:    []diskClaim{toDisk(claim.Claim{Block: netip.MustParsePrefix("10.244.3.0/24"), Fence: 2, Tenure: 90 * time.Minute, State: claim.Confirmed})},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:7946")},
	}
}

func TestStateOnDisk(t *testing.T) {
	dir, id := t.TempDir(), claim.NodeID{1}
	fresh, _, err := loadState(dir, id)
	if err != nil || fresh.BootEpoch != 0 || fresh.Claims != nil {
		t.Fatalf("%+v %v", fresh, err)
	}
	want := someState(id)
	if err := want.save(dir); err != nil {
		t.Fatal(err)
	}
	got, _, err := loadState(dir, id)
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{})); d != "" || err != nil {
		t.Fatalf("%v %s", err, d)
	}
	c, err := got.Claims[0].claim()
	if err != nil || c.Block != netip.MustParsePrefix("10.244.3.0/24") || c.Fence != 2 || c.Tenure != 90*time.Minute || c.State != claim.Confirmed {
		t.Errorf("%+v %v", c, err)
	}
	if info, err := os.Stat(filepath.Join(dir, stateFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// A crash while the new state is written, wherever it stops, leaves the old one.
func TestCrashWhileWritingKeepsTheOldState(t *testing.T) {
	dir, id := t.TempDir(), claim.NodeID{1}
	old := someState(id)
	if err := old.save(dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if err := os.WriteFile(filepath.Join(dir, stateFile+".tmp"), data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, err := loadState(dir, id); err != nil || got.BootEpoch != 7 {
			t.Fatalf("after %d bytes: %+v, %v", n, got, err)
		}
	}
	reader, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	next := old
	next.BootEpoch = 8
	if err := next.save(dir); err != nil {
		t.Fatal(err)
	}
	if seen, err := io.ReadAll(reader); err != nil || !bytes.Equal(seen, data) {
		t.Errorf("the old file was written to: %q, %v", seen, err)
	}
	if got, _, err := loadState(dir, id); err != nil || got.BootEpoch != 8 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestDamagedState cuts the state at each byte, and turns each bit over: it is always found out, and the state before it taken. If that is
// damaged too, the node says which files it is and what helps.
func TestDamagedState(t *testing.T) {
	dir, id := t.TempDir(), claim.NodeID{1}
	path := filepath.Join(dir, stateFile)
	s := someState(id)
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.BootEpoch, s.Seq = 8, 1
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, bad []byte) {
		t.Helper()
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, older, err := loadState(dir, id); err != nil || older == nil || got.BootEpoch != 8 || got.Seq != 3 { // one boot is added
			t.Fatalf("%s: %+v, %v, %v", what, got, older, err)
		}
	}
	for n := range whole {
		try(fmt.Sprintf("cut to %d bytes", n), whole[:n])
		for bit := range 8 {
			bad := bytes.Clone(whole)
			bad[n] ^= 1 << bit
			try(fmt.Sprintf("byte %d, bit %d", n, bit), bad)
		}
	}
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path + atomicfile.Previous); err != nil || !bytes.Equal(kept, first) {
		t.Errorf("a damaged state took the place of the one before it: %q, %v", kept, err)
	}
	for _, p := range []string{path, path + atomicfile.Previous} {
		if err := os.WriteFile(p, whole[:100], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := loadState(dir, id); err == nil || !strings.Contains(err.Error(), path+atomicfile.Previous) || !strings.Contains(err.Error(), "remove both") {
		t.Errorf("both damaged: %v", err)
	}
}

// TestUnsealedState: what a tulle before checksums wrote is read.
func TestUnsealedState(t *testing.T) {
	dir, id := t.TempDir(), claim.NodeID{1}
	s := someState(id)
	s.Version = unsealedVersion
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), append(data, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, older, err := loadState(dir, id); err != nil || older != nil || got.BootEpoch != 7 || got.Version != diskVersion {
		t.Errorf("%+v, %v, %v", got, older, err)
	}
}

func TestWrongState(t *testing.T) {
	id := claim.NodeID{1}
	for what, change := range map[string]func(*diskState){
		"of version 3":             func(s *diskState) { s.Version = 3 },
		"restore the two together": func(s *diskState) { s.NodeID = claim.NodeID{2}.String() },
		"bootEpoch is missing":     func(s *diskState) { s.BootEpoch = 0 },
		"10.244.3.1/24":            func(s *diskState) { s.Claims[0].Block = netip.MustParsePrefix("10.244.3.1/24") },
		"tenure -1":                func(s *diskState) { s.Claims[0].TenureMS = -1 },
		`state "tentative"`:        func(s *diskState) { s.Claims[0].State = "tentative" },
	} {
		dir, s := t.TempDir(), someState(id)
		change(&s)
		if err := s.save(dir); err != nil {
			t.Fatal(err)
		}
		if _, _, err := loadState(dir, id); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestIdentityOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	key, err := openIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, keyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	again, err := openIdentity(dir)
	if err != nil || !key.Equal(again) {
		t.Errorf("another key: %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2 * ed25519.SeedSize {
		if err := os.WriteFile(path, data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openIdentity(dir); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove it") {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	s := someState(claim.NodeID{1})
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := openIdentity(dir); err == nil || !strings.Contains(err.Error(), "put the key back") {
		t.Errorf("a state without its key: %v", err)
	}
}
