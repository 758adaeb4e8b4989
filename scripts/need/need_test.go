package need

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestBinary(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	path, err := Binary(ctx, t.TempDir(), "scripts/lab/flannelpeer")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, path, "-h").CombinedOutput(); !strings.Contains(string(out), "-public-ip") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := Binary(ctx, t.TempDir(), "scripts/nothing"); err == nil || !strings.Contains(err.Error(), "scripts/nothing") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestDebian(t *testing.T) {
	// With a context that has ended apt-get cannot run: what is there needs none.
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if path, err := Debian(ended, "sh", "dash"); err != nil || !strings.HasSuffix(path, "/sh") {
		t.Errorf("got %q, %v", path, err)
	}
	if _, err := Debian(ended, "tulle-no-such-program", "dash"); err == nil || !strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("a missing program without apt-get: %v", err)
	}
	if update.done {
		t.Error("a failed update counts as done")
	}
}
