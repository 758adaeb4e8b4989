package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestKeysRotate rotates the cluster key of running daemons under a load of pings, which lose nothing, with one node away: it comes back
// with the old key within the grace. After the grace a node with the old key alone does not get in, says why, and does with the new one.
func TestKeysRotate(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 3, Pods: 1})
	nodes := l.Nodes()
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	if err := l.StopNode(t.Context(), 3, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		return len(keysOf(t, n1).Keys[0].Without) == 0 && claimsOf(t, n1)[n3.Subnet].Live == "dead"
	})
	lost := make(chan int, 1)
	go func() {
		r := ping(t, lab.Pair{From: n1.Pods[0].Namespace, To: n2.Pods[0].Namespace, Addr: n2.Pods[0].Addr}, bench.Ping{Count: 2000, Size: 56, Interval: 10 * time.Millisecond, Timeout: 2 * time.Second})
		lost <- r.Lost()
	}()
	const grace = 15 * time.Second
	stdout, stderr, code := tulle(t, nil, nil, "keys", "rotate", "--grace", grace.String(), "-o", "json", "--run-dir", n1.RunDir)
	var r keysReport
	if err := json.Unmarshal([]byte(stdout), &r); code != 0 || err != nil || r.Rotating || len(r.Keys) != 2 || r.Keys[0].State != "used" || r.Keys[0].Nodes != 2 || r.Keys[1].State != "old" {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	t.Logf("%s", stderr)
	waitFor(t, func() bool { return keysOf(t, n2).Keys[0].ID == r.Keys[0].ID && keysOf(t, n2).Keys[0].State == "used" })
	if err := l.StartNode(t.Context(), 3); err != nil { // with the old key, within the grace
		t.Fatal(err)
	}
	waitFor(t, func() bool { return keysOf(t, n3).Keys[0].ID == r.Keys[0].ID && keysOf(t, n3).Keys[0].State == "used" })
	if n := <-lost; n > 0 {
		t.Errorf("%d pings lost", n)
	}
	waitFor(t, func() bool { return len(keysOf(t, n1).Keys)+len(keysOf(t, n2).Keys)+len(keysOf(t, n3).Keys) == 3 })
	pingAll(t, l.PodPairs(), smallPing)
	lockedOut(t, l, n1, n3)
	if table, _, code := tulle(t, nil, nil, "keys", "list", "--run-dir", n1.RunDir); code != 0 || !strings.Contains(table, r.Keys[0].ID) || !strings.HasPrefix(table, "KEY ") {
		t.Errorf("exit code %d: %s", code, table)
	}
}

// lockedOut starts node 3 with the key file alone, whose key is not the network's any more, and lets it in again with the network's.
func lockedOut(t *testing.T, l *lab.Lab, n1, n3 lab.Node) {
	t.Helper()
	if err := l.StopNode(t.Context(), 3, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(filepath.Dir(n3.RunDir), "state")
	files, err := filepath.Glob(filepath.Join(state, "keys.json*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no keys in %s: %v", state, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	ctx, end := context.WithTimeout(t.Context(), 8*time.Second)
	err = l.StartNode(ctx, 3)
	end()
	if err == nil {
		t.Fatal("a node with the old key alone is in")
	}
	stdout, stderr, code := tulle(t, nil, nil, "status", "-o", "json", "--run-dir", n3.RunDir)
	if code != 0 || !strings.Contains(stdout, "tulle keys export") || !strings.Contains(stdout, "another cluster key") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	key, stderr, code := tulle(t, nil, nil, "keys", "export", "--run-dir", n1.RunDir)
	if code != 0 {
		t.Fatal(stderr)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.StopNode(t.Context(), 3, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := l.SetNodeArgs(t.Context(), 3, "--key-file", file); err != nil {
		t.Fatal(err)
	}
	if err := l.StartNode(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	pingAll(t, l.PodPairs(), smallPing)
}

func keysOf(t *testing.T, n lab.Node) *keysReport {
	t.Helper()
	stdout, stderr, code := tulle(t, nil, nil, "keys", "list", "-o", "json", "--run-dir", n.RunDir)
	r := &keysReport{}
	if err := json.Unmarshal([]byte(stdout), r); code != 0 || err != nil || len(r.Keys) == 0 {
		t.Fatalf("exit code %d, %v: %s%s", code, err, stdout, stderr)
	}
	return r
}

// TestKeysRefused asks for what cannot be.
func TestKeysRefused(t *testing.T) {
	for want, args := range map[string][]string{
		"--grace 800h0m0s: 0 to 720h0m0s is possible": {"rotate", "--grace", "800h"},
		"--grace -1s: 0 to 720h0m0s is possible":      {"rotate", "--grace", "-1s"},
		"-o xml: unknown format":                      {"export", "-o", "xml"},
	} {
		stdout, stderr, code := tulle(t, nil, nil, append(append([]string{"keys"}, args...), "--run-dir", t.TempDir())...)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d: %s%s", args, code, stdout, stderr)
		}
	}
}
