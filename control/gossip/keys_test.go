package gossip

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func keyOf(b byte) []byte { return bytes.Repeat([]byte{b}, keyBytes) }

// TestKeysConverge merges the same keys in any order, and demands the same ring.
func TestKeysConverge(t *testing.T) {
	all := []clusterKey{{Number: 1, Key: keyOf(1)}, {Number: 2, Key: keyOf(2)}, {Number: 2, Key: keyOf(3)}, {Number: 1, Key: keyOf(2)}, {Number: 3, Key: keyOf(1)}}
	var want []byte
	for range 50 {
		k, _ := newKeyring(keyring{}, keyOf(9))
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, c := range all {
			k.merge(c)
		}
		got := k.encode()
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) || k.newest().tag() != (clusterKey{Key: keyOf(1)}).tag() {
			t.Fatalf("%+v", k)
		}
		for _, c := range decodeKeys(got) {
			if k.merge(c) {
				t.Fatal("its own encoding is news")
			}
		}
	}
}

// TestKeysAdvance uses a new key when all have it, keeps the old one for its grace over a restart, and never takes it back.
func TestKeysAdvance(t *testing.T) {
	k, stale := newKeyring(keyring{}, keyOf(1))
	k.merge(clusterKey{Number: 1, Key: keyOf(2), Grace: time.Minute})
	if stale || k.advance(time.Hour, false) || !bytes.Equal(k.ring()[0], keyOf(1)) || len(k.ring()) != 2 {
		t.Fatalf("used before all have it: %+v", k)
	}
	if !k.advance(time.Second, true) || !bytes.Equal(k.ring()[0], keyOf(2)) || len(k.ring()) != 2 {
		t.Fatalf("not used, or without grace: %+v", k)
	}
	k.advance(30*time.Second, true)
	dir := t.TempDir()
	if err := k.save(dir); err != nil {
		t.Fatal(err)
	}
	kept, err := loadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	k, stale = newKeyring(kept, keyOf(1))
	if !stale || !bytes.Equal(k.ring()[0], keyOf(2)) {
		t.Fatalf("the key file's old key counts: %+v", k)
	}
	if !k.advance(30*time.Second, false) || len(k.ring()) != 1 {
		t.Fatalf("its grace is over: %+v", k)
	}
	if k.merge(clusterKey{Number: 5, Key: keyOf(1)}) {
		t.Error("a dropped key came back")
	}
	if k, stale = newKeyring(k, keyOf(1)); !stale || len(k.keys) != 1 {
		t.Errorf("a dropped key came back from the key file: %+v", k)
	}
	if k, stale = newKeyring(k, keyOf(7)); stale || !bytes.Equal(k.ring()[0], keyOf(7)) || len(k.ring()) != 2 {
		t.Errorf("a key that an operator gave is not used: %+v", k)
	}
}

func TestDamagedKeysFile(t *testing.T) {
	k, _ := newKeyring(keyring{}, keyOf(1))
	dir := t.TempDir()
	for range 2 {
		if err := k.save(dir); err != nil {
			t.Fatal(err)
		}
		k.merge(clusterKey{Number: 1, Key: keyOf(2)})
	}
	path := filepath.Join(dir, keysFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut < len(whole); cut += 7 {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := loadKeys(dir); err != nil || len(got.keys) != 1 {
			t.Fatalf("cut at %d: %+v, %v", cut, got, err)
		}
	}
	os.WriteFile(path+".previous", nil, 0o600)
	if _, err := loadKeys(dir); err == nil || !strings.Contains(err.Error(), "tulle keys export") {
		t.Error(err)
	}
}

// TestRotate rotates while nodes run: nobody is lost, all use the new key; a node that was away comes back within the grace with its old
// key, and learns the new one; one with the old key alone does not get in once the grace is over.
func TestRotate(t *testing.T) {
	c := newCluster(t)
	n1, n2, n3 := c.start(1), c.start(2), c.start(3)
	awaitMesh(t, n1, n2, n3)
	subnets := []string{n1.subnet().String(), n2.subnet().String(), n3.subnet().String()}
	n3.stop()
	if err := n1.store.Rotate(t.Context(), 15*time.Second); err != nil {
		t.Fatal(err)
	}
	uses := func(n *node, number uint64) bool {
		keys, err := n.store.Keys()
		return err == nil && slices.ContainsFunc(keys, func(k Key) bool { return k.Used && k.Number == number })
	}
	await(t, "the new key in use", func() bool { return uses(n1, 1) && uses(n2, 1) }, n1, n2)
	if keys, err := n2.store.Keys(); err != nil || len(keys) != 2 || !keys[1].Old || keys[1].Left <= 0 || keys[0].With != 2 {
		t.Errorf("%+v, %v", keys, err)
	}
	n3 = launch(t, n3.config)
	awaitMesh(t, n1, n2, n3)
	await(t, "the new key on the node that was away", func() bool { return uses(n3, 1) }, n3)
	if got := []string{n1.subnet().String(), n2.subnet().String(), n3.subnet().String()}; !slices.Equal(got, subnets) {
		t.Errorf("%v, before %v", got, subnets)
	}
	await(t, "the end of the grace", func() bool {
		for _, n := range []*node{n1, n2, n3} {
			if keys, err := n.store.Keys(); err != nil || len(keys) != 1 {
				return false
			}
		}
		return true
	}, n1, n2, n3)
	for _, n := range []*node{n1, n2, n3} {
		if v := n.now(); v.Members != 3 {
			t.Errorf("%+v", v)
		}
	}
	old := c.start(4)
	await(t, "a clear word", func() bool { return old.hasProblem("another cluster key", "tulle keys export") }, old)
	if key, err := n1.store.ExportKey(); err != nil {
		t.Error(err)
	} else {
		awaitMesh(t, n1, n2, n3, c.start(5, func(cfg *Config) { cfg.Key = key }))
	}
}
