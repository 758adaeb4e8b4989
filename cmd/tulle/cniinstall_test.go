package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/tulle-net/tulle/scripts/lab"
	"github.com/tulle-net/tulle/scripts/need"
)

// TestCNIInstall runs a daemon that installs plugin and configuration, and adds a pod with these alone, as a runtime that was
// given the two directories.
func TestCNIInstall(t *testing.T) {
	conf, bin := filepath.Join(t.TempDir(), "etc", "net.d"), filepath.Join(t.TempDir(), "opt", "bin")
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 0, Store: lab.StoreFile, Executable: tulleWithPlugin(t), NodeArgs: []string{"--cni-conf-dir", conf, "--cni-bin-dir", bin}})
	list, err := libcni.LoadConfList(conf, "tulle")
	if err != nil {
		t.Fatal(err)
	}
	r := &cniRuntime{t, libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil), list}
	if info, err := os.Stat(filepath.Join(bin, cniPlugin)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("plugin %v %v, want mode 0755", info, err)
	}
	if info, err := os.Stat(filepath.Join(conf, cniConflist)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("configuration %v %v, want mode 0600", info, err)
	}
	s := newSandbox(t, "c")
	reach(t, inNode(l.Nodes()[0]), addrsOf(r.add(s))[0])
	if err := r.check(s); err != nil {
		t.Error(err)
	}
	if err := r.del(s); err != nil {
		t.Error(err)
	}
	if err := l.StopNode(t.Context(), 1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(conf); len(left) != 0 {
		t.Errorf("files in %s after the daemon's end: %v", conf, left)
	}
	if left, _ := os.ReadDir(bin); len(left) != 1 {
		t.Errorf("files in %s: %v", bin, left)
	}
}

// tulleWithPlugin puts this test binary and the plugin into one directory, as an installation has them.
func tulleWithPlugin(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := need.Binary(t.Context(), dir, "cmd/tulle-cni"); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Link(self, filepath.Join(dir, "tulle"))
	}
	if err != nil { // another file system
		data, rerr := os.ReadFile(self)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if err := os.WriteFile(filepath.Join(dir, "tulle"), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "tulle")
}

// TestCNIInstallRefused names what cannot be installed.
func TestCNIInstallRefused(t *testing.T) {
	for want, c := range map[string]cniInstall{
		"--cni-conf-dir etc": {confDir: "etc"}, "--cni-bin-dir opt": {binDir: "opt"}, "not beside this binary": {binDir: "/opt/cni/bin"},
	} {
		if err := c.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}
