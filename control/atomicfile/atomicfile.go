// Package atomicfile replaces small files in one step: the daemon's state, and what other programs read of it.
//
// It knows nothing of what is in one. What it relies on is rename(2), link(2) and fsync(2) of POSIX.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// suffix of the file that is not complete yet. There is one at most for each path: whoever crashed leaves it to the next writer.
const suffix = ".tmp"

// Write replaces the file path, whose directory exists. Whoever reads it, even after a crash at any point, finds the old or the
// new content, and once Write has returned nil the new one survives a power failure. The mode does not depend on the
// umask. Two writers of one path must take turns.
func Write(path string, data []byte, mode fs.FileMode) error {
	return write(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Copy is Write with the content of another file.
func Copy(path, from string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer in.Close()
	return write(path, mode, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}

func write(path string, mode fs.FileMode, fill func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path+suffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err := errors.Join(finish(f, mode, fill), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func finish(f *os.File, mode fs.FileMode, fill func(io.Writer) error) error {
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
