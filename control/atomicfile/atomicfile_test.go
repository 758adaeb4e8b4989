package atomicfile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWrite replaces a file again and again under a reader, which must always find one content whole.
func TestWrite(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "file")
	contents := [][]byte{bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 10), {}}
	if err := Write(path, contents[0], 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) && !bytes.Equal(got, contents[2]) {
				t.Errorf("read %d: %d bytes, %v", n, len(got), err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i := range 100 {
		if err := Write(path, contents[i%3], 0o644); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v, want mode 0644 whatever the umask", info, err)
	}
	onlyFile(t, path)
}

func onlyFile(t *testing.T, path string) {
	t.Helper()
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
}

// TestCrashed finds the remains of a writer that was killed: another mode, more content than is written now.
func TestCrashed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path+suffix, bytes.Repeat([]byte("x"), 100), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if info, _ := os.Stat(path); err != nil || string(got) != "new" || info.Mode().Perm() != 0o600 {
		t.Errorf("%q %v %v", got, err, info.Mode())
	}
	onlyFile(t, path)
}

// TestFailed demands that nothing changes when the new content cannot be had.
func TestFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		write(path, 0o600, func(io.Writer) error { return io.ErrUnexpectedEOF }),
		Copy(path, path+"-absent", 0o600),
		Write(filepath.Join(path, "below"), nil, 0o600),
	} {
		if err == nil || !strings.Contains(err.Error(), "write "+path) {
			t.Errorf("error %v does not name the file", err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("%q %v", got, err)
	}
	onlyFile(t, path)
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := os.WriteFile(from, []byte("binary"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Copy(from+"2", from, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(from + "2")
	if info, _ := os.Stat(from + "2"); err != nil || string(got) != "binary" || info.Mode().Perm() != 0o755 {
		t.Errorf("%q %v", got, err)
	}
}

// TestSaveKeepsOneGeneration saves again and again, and damages what is there now and then: Load returns the last content or says that it
// is damaged, and beside it lies the last one before it that was whole.
func TestSaveKeepsOneGeneration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	var whole, before []byte // nil: damaged, none
	for i := range 60 {
		content := bytes.Repeat([]byte{byte('a' + i%26), '\n'}, i+1)
		if err := Save(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if whole != nil {
			before = whole
		}
		whole = content
		if i%3 == 1 {
			torn, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if torn[i/2] ^= 4; i%2 == 0 {
				torn = torn[:i]
			}
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			whole = nil
		}
		got, err := Load(path)
		if whole == nil != errors.Is(err, ErrDamaged) || whole != nil && !bytes.Equal(got, whole) {
			t.Fatalf("save %d: %q, %v, want %q", i, got, err, whole)
		}
		if got, err := Load(path + Previous); before != nil && (err != nil || !bytes.Equal(got, before)) {
			t.Fatalf("save %d: the one before is %q, %v, want %q", i, got, err, before)
		}
	}
}
