// Package need gets tests and checks what they need beside the packages they import: programs of Debian's, and programs of this
// module's. It changes the machine only by installing packages, as root, and only those whose program is missing.
package need

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// update is apt's list of packages, brought up to date at most once in a process. Guarded by its mutex.
var update struct {
	sync.Mutex
	done bool
}

// Debian installs a package unless the program that it is wanted for is there, and gives the program's path. The error has
// what apt-get said.
func Debian(ctx context.Context, program, pkg string) (path string, err error) {
	if path, err = exec.LookPath(program); err == nil {
		return path, nil
	}
	update.Lock()
	defer update.Unlock()
	if !update.done {
		if err := apt(ctx, "update"); err != nil {
			return "", err
		}
		update.done = true
	}
	if err := apt(ctx, "install", "-y", "--no-install-recommends", pkg); err != nil {
		return "", err
	}
	if path, err = exec.LookPath(program); err != nil {
		return "", fmt.Errorf("package %s is installed: %w", pkg, err)
	}
	return path, nil
}

// apt waits while another process holds dpkg's lock.
func apt(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=120"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// Binary builds a program of this module, such as scripts/lab/flannelpeer, into dir and gives its path. The working directory
// must be in the module, as it is in a test.
func Binary(ctx context.Context, dir, pkg string) (string, error) {
	path := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/tulle-net/tulle/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}
