package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/netns"
)

// netnsDir is where named namespaces are bind-mounted, as `ip netns` does it.
const netnsDir = "/run/netns"

// In runs f inside the named network namespace and returns its error. f runs on a goroutine and an OS thread of its own,
// which end with it, so a file descriptor opened by f stays in the namespace and nothing else ever does.
func In(namespace string, f func() error) error {
	fd, err := unix.Open(filepath.Join(netnsDir, namespace), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", namespace, err)
	}
	defer unix.Close(fd)
	return netns.Within(fd, f)
}

// Exec replaces the process by argv, run inside the named namespace: it returns only on failure. /sys still shows the
// links of the namespace it was mounted in, /proc/sys/net those of the new one.
func Exec(namespace string, argv []string) error {
	if len(argv) == 0 {
		return errors.New("no command given")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return In(namespace, func() error {
		return fmt.Errorf("exec %s: %w", path, syscall.Exec(path, argv, os.Environ()))
	})
}

// inode is the identity of the calling thread's network namespace.
func inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("stat own namespace: %w", err)
	}
	return st.Ino, nil
}

// makeNamespace makes a namespace, lets announce record its inode, and only then gives it its name.
func makeNamespace(name string, announce func(ino uint64) error) error {
	return netns.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace %s: %w", name, err)
		}
		ino, err := inode()
		if err != nil {
			return err
		}
		if err := announce(ino); err != nil {
			return err
		}
		path := filepath.Join(netnsDir, name)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
		if err != nil {
			return fmt.Errorf("name namespace %s: %w", name, err)
		}
		f.Close()
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount namespace %s: %w", name, err)
		}
		return nil
	})
}

// removeNamespace takes the name away from the namespace with inode ino, or removes the empty file that an interrupted
// makeNamespace left. A namespace of that name with another inode is somebody else's and stays.
func removeNamespace(name string, ino uint64) error {
	path := filepath.Join(netnsDir, name)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	switch {
	case st.Ino == ino && isNamespace(path):
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	case isNamespace(path) || st.Size != 0:
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func isNamespace(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

func namespaceExists(name string) bool {
	_, err := os.Lstat(filepath.Join(netnsDir, name))
	return err == nil
}
