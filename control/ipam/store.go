package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/control/atomicfile"
)

const (
	stateFile   = "ipam.json" // diskState, 0600
	lockFile    = "ipam.lock"
	diskVersion = 1
)

// A diskState is the content of the state file.
type diskState struct {
	Version int          `json:"version"`
	Last    []netip.Addr `json:"last"` // handed out last in turn, one for each family
	Leases  []Lease      `json:"leases"`
}

// A Store is the allocator with its state on disk: what a method has returned is there, and survives a power failure. Its
// methods are safe for concurrent use.
type Store struct {
	path string
	lock *os.File

	mu    sync.Mutex // guards the rest
	table table
}

// Open reads the state in a directory, which it makes, and keeps other processes from it until Close.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("addresses of pods: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("addresses of pods: %w", err)
	}
	s := &Store{path: filepath.Join(dir, stateFile), lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("%s: another process hands out addresses from it: stop that one or give another --state-dir", s.path)
	}
	if err := s.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

// Close lets other processes in.
func (s *Store) Close() error { return s.lock.Close() }

func (s *Store) load() error {
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("addresses of pods: %w", err)
	}
	var d diskState
	if err := json.Unmarshal(data, &d); err != nil {
		return s.damaged(err.Error())
	}
	if d.Version != diskVersion {
		return fmt.Errorf("%s is of version %d, this tulle knows version %d: run the tulle that wrote it", s.path, d.Version, diskVersion)
	}
	for _, a := range d.Last {
		if !a.IsValid() {
			return s.damaged("an address in last is missing")
		}
		s.table.last[family(a)] = a
	}
	for _, l := range d.Leases {
		if err := s.table.check(l); err != nil {
			return s.damaged(err.Error())
		}
		s.table.put(l)
	}
	return nil
}

func (s *Store) damaged(what string) error {
	return fmt.Errorf("%s is damaged: %s: restore it, or drain this node of its pods and remove it: pods that run would lose their addresses to others", s.path, what)
}

// check says what is wrong with a lease from disk.
func (t *table) check(l Lease) error {
	if l.Container == "" || l.Interface == "" || len(l.Addrs) == 0 {
		return fmt.Errorf("lease of %s with addresses %v", l.Owner, l.Addrs)
	}
	if _, twice := t.leases[l.Owner]; twice {
		return fmt.Errorf("two leases of %s", l.Owner)
	}
	if err := t.checkPorts(l); err != nil {
		return err
	}
	for _, a := range l.Addrs {
		if owner, taken := t.owners[a]; taken || !a.IsValid() {
			return fmt.Errorf("%s is of both %s and %s", a, owner, l.Owner)
		}
	}
	return nil
}

// save writes the table. s.mu is held.
func (s *Store) save() error {
	d := diskState{Version: diskVersion, Leases: s.table.all()}
	for _, a := range s.table.last {
		if a.IsValid() {
			d.Last = append(d.Last, a)
		}
	}
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("addresses of pods: %w", err)
	}
	return atomicfile.Write(s.path, append(data, '\n'), 0o600)
}

// Allocate gives the owner in want one address of each pool; want.Addrs are the static ones among them. An owner that has
// addresses keeps them and gets ErrHeld with them.
func (s *Store) Allocate(want Lease, pools []Pool) (Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.table.last
	l, err := s.table.allocate(want, pools)
	if err != nil {
		return l, err
	}
	if err := s.save(); err != nil {
		s.table.free(l.Owner)
		s.table.last = last
		return Lease{}, err
	}
	return l, nil
}

// Free takes the owner's addresses back. It is no error if there are none. On an error they are still the owner's.
func (s *Store) Free(o Owner) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.table.free(o)
	if !ok {
		return nil
	}
	if err := s.save(); err != nil {
		s.table.put(l)
		return err
	}
	return nil
}

// Lease returns what the owner has.
func (s *Store) Lease(o Owner) (Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.table.leases[o]
	return l, ok
}

// Leases lists all in the order of their addresses.
func (s *Store) Leases() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.all()
}
