package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	work       = "/run/tulle-containers"
	cgroupRoot = "/sys/fs/cgroup"
	// cgroupName is the parent of all cgroups of the run's containers, in each hierarchy.
	cgroupName = "tulle-containers"
)

// ownFiles gives the mount namespace empty directories in place of those that the runtimes write to, and copies the binaries there, for
// they may lie in one that is hidden. It returns the path of tulle.
func ownFiles(tulle string) (installed string, err error) {
	binaries := map[string][]byte{}
	for name, path := range map[string]string{"tulle": tulle, "tulle-cni": pluginBeside(tulle)} {
		if binaries[name], err = os.ReadFile(path); err != nil {
			return "", err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return "", fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run", "/opt", "/var/lib", "/etc/cni"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return "", fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
	}
	for _, dir := range []string{cniConfDir, cniBinDir, cniCacheDir, filepath.Join(work, "bin"), filepath.Join(work, "tmp"), "/run/netns"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	// As podman would do it: mounts of namespaces have a place of their own, and what is mounted there is seen everywhere.
	if err := unix.Mount("/run/netns", "/run/netns", "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("mount /run/netns: %w", err)
	}
	if err := unix.Mount("", "/run/netns", "", unix.MS_SHARED, ""); err != nil {
		return "", fmt.Errorf("share /run/netns: %w", err)
	}
	for name, b := range binaries {
		if err := os.WriteFile(filepath.Join(work, "bin", name), b, 0o755); err != nil {
			return "", err
		}
	}
	return filepath.Join(work, "bin", "tulle"), nil
}

// cgroupParents are the run's cgroups in the hierarchies that there are: one with cgroup v2, many with v1.
func cgroupParents() []string {
	parents, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", cgroupName))
	if _, err := os.Stat(filepath.Join(cgroupRoot, cgroupName)); err == nil {
		parents = append(parents, filepath.Join(cgroupRoot, cgroupName))
	}
	return parents
}

// cgroups lists what is below the parents.
func cgroups() (all []string) {
	for _, parent := range cgroupParents() {
		filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != parent {
				all = append(all, path)
			}
			return nil
		})
	}
	return all
}

// removeCgroups removes the parents and all below them. No process is in them: the PID namespace has ended.
func removeCgroups() error {
	all := append(cgroupParents(), cgroups()...)
	var errs []error
	for i := range all {
		path := all[len(all)-1-i] // children come after their parents
		if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}
