package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tulle-net/tulle/dataplane/holder"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestAdoptsWhatFits kills a daemon and starts it with another configuration: what that has no use for is made anew, the rest adopted, and
// status says why.
func TestAdoptsWhatFits(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 1, Holder: true})
	dir := t.TempDir()
	conf := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	all := keptParts(status(t, l, 1))
	for _, c := range []struct {
		args []string
		not  []string // adopted, with what the reason has to name
	}{
		{nil, nil},
		{[]string{"--workers", "2"}, []string{"underlay 2 workers", "tap 2 queues", "tunnel 2 queues"}},
		{[]string{"--max-flows", "2048"}, []string{"flows 2048"}},
		{[]string{"--underlay", "packet"}, []string{"underlay packet"}},
		{[]string{"--device", "tun"}, []string{"tap device tun"}},
		{[]string{"--config", conf("vni", `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 8472}}`)}, []string{"flows VNI 7", "state VNI 7"}},
		{[]string{"--config", conf("port", `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1, "Port": 4789}}`)}, []string{"underlay :4789", "state port 4789"}},
		{[]string{"--config", conf("mtu", `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472, "MTU": 1400}}`)}, []string{"state MTU 1350"}},
		{[]string{"--name", "other"}, []string{"state node other"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			restartWith(t, l, c.args...)
			r := status(t, l, 1)
			h := r.Holder
			wantNot := 0
			for _, not := range c.not {
				part, why, _ := strings.Cut(not, " ")
				if !slices.Contains(all, part) {
					continue // a kernel without tunnel GSO
				}
				wantNot++
				if got := h.NotAdopted[part]; !strings.Contains(got, "configured: ") || !strings.Contains(got[strings.Index(got, "configured: "):], why) {
					t.Errorf("%s is not adopted because of %q, want %q", part, got, why)
				}
			}
			if len(h.NotAdopted) != wantNot || len(h.Adopted) != len(all)-wantNot || h.Keeps == 0 {
				t.Errorf("%+v", h)
			}
			if r.NotReady != "" || len(r.Problems) != 0 {
				t.Errorf("not ready: %s, problems %q", r.NotReady, r.Problems)
			}
			restartWith(t, l) // as it was
			if again := status(t, l, 1).Holder; !slices.Equal(slices.Sorted(maps.Keys(again.NotAdopted)), slices.Sorted(maps.Keys(h.NotAdopted))) && len(c.args) > 0 && c.args[0] != "--device" {
				t.Errorf("back: %+v after %+v", again, h)
			}
		})
	}
	stopClean(t, l)
}

func restartWith(t *testing.T, l *lab.Lab, args ...string) {
	t.Helper()
	restart(t, l, func() {
		if err := l.SetNodeArgs(t.Context(), 1, args...); err != nil {
			t.Fatal(err)
		}
	})
}

// TestHolderOfAnotherVersion starts a daemon with a set that it does not understand: the holder lets go of it, and all is made anew.
func TestHolderOfAnotherVersion(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 1, Holder: true})
	n, err := l.Node(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, meta := range []string{`{"version": 99}`, `{`, `{"version": 1}`, `{"version": 1, "parts": [{"name": "tap", "files": 1000}]}`, `{"version": 1, "parts": [{"name": "tap", "files": -1}]}`} {
		restart(t, l, func() {
			withSet(t, n, func(c *holder.Client, set holder.Set) {
				set.Meta = []byte(meta)
				if err := c.Keep(set); err != nil {
					t.Fatal(err)
				}
			})
		})
		if h := status(t, l, 1).Holder; len(h.Adopted) != 0 || h.NotAdopted["all"] == "" || h.Keeps == 0 {
			t.Errorf("%s: %+v", meta, h)
		}
	}
	restartWith(t, l)
	checkAdopted(t, l, 0)
	stopClean(t, l)
}

// TestHolderDies ends the holder beside a running daemon: status says that nothing outlives the daemon now, and the next holder gets all
// there is without being asked.
func TestHolderDies(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 1, Pods: 1, Holder: true})
	n, err := l.Node(1)
	if err != nil {
		t.Fatal(err)
	}
	had := status(t, l, 1).Holder.Keeps
	if err := syscall.Kill(n.HolderPID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, l, func(r *statusReport) bool { return r.Holder.Keeps == 0 && r.Holder.Problem != "" })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	next := exec.Command(self, "holder", "--run-dir", n.RunDir)
	next.Env = append(os.Environ(), asTulle+"=1")
	in(t, n, next.Start)
	t.Cleanup(func() { next.Process.Kill(); next.Wait() })
	awaitStatus(t, l, func(r *statusReport) bool { return r.Holder.Keeps == had && r.Holder.Problem == "" })
	time.Sleep(50 * time.Millisecond)
	restartWith(t, l)
	checkAdopted(t, l, 0)
	stopClean(t, l)
}
