package ipam

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

var dual = []Pool{pool("10.1.2.0/24"), pool("fd00:1::/120")}

// asAllocator makes the test binary allocate and free in a directory until it is killed.
const asAllocator = "TULLE_TEST_AS_ALLOCATOR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(asAllocator); dir != "" {
		allocateForever(dir)
	}
	os.Exit(m.Run())
}

// allocateForever says on stdout what it is about to do and what it has done.
func allocateForever(dir string) {
	s, err := Open(dir)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		o := Owner{"net", fmt.Sprint(rand.IntN(50)), "eth0"}
		if _, ok := s.Lease(o); ok {
			fmt.Println("free?", o.Container)
			err = s.Free(o)
			fmt.Println("freed", o.Container, err)
			continue
		}
		fmt.Println("lease?", o.Container)
		l, err := s.Allocate(Lease{Owner: o}, dual)
		fmt.Println("leased", o.Container, l.Addrs, err)
	}
}

// TestKilled kills a process that allocates, at any point, and demands that the next one finds all that the dead one had said
// it did, and of what it was about to do all or nothing.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	said, doubtful := map[string]string{}, ""
	for round := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asAllocator+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(20+rand.IntN(60))*time.Millisecond, func() { cmd.Process.Kill() })
		lines := 0
		for scanner := bufio.NewScanner(out); scanner.Scan(); lines++ {
			word, rest, _ := strings.Cut(scanner.Text(), " ")
			container, result, _ := strings.Cut(rest, " ")
			switch word {
			case "lease?", "free?":
				doubtful = container
			case "leased":
				addrs, _, _ := strings.Cut(result, "] ")
				said[container], doubtful = addrs+"]", ""
				if !strings.HasSuffix(result, "<nil>") {
					t.Fatal(scanner.Text())
				}
			case "freed":
				delete(said, container)
				doubtful = ""
			default:
				t.Fatal(scanner.Text())
			}
		}
		cmd.Wait()
		timer.Stop()
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, l := range s.Leases() {
			found[l.Container] = fmt.Sprint(l.Addrs)
		}
		if doubtful != "" { // done or not, as long as it is one of both
			if a, ok := found[doubtful]; ok {
				said[doubtful] = a
			} else {
				delete(said, doubtful)
			}
			doubtful = ""
		}
		if !reflect.DeepEqual(found, said) {
			t.Fatalf("round %d, %d lines: found %v, want %v", round, lines, found, said)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStore does what the daemon does, from many goroutines, and opens the state again.
func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			o := Owner{"net", fmt.Sprint(i), "eth0"}
			if _, err := s.Allocate(Lease{Owner: o, Netns: "/run/netns/x"}, dual); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := errors.Join(s.Free(o), s.Free(o)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[netip.Addr]bool{}
	for _, l := range s.Leases() {
		for _, a := range l.Addrs {
			if seen[a] {
				t.Errorf("%s twice", a)
			}
			seen[a] = true
		}
	}
	if len(seen) != 100 {
		t.Errorf("%d addresses, want 100", len(seen))
	}
	want, last := s.Leases(), s.table.last
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.Leases(); !reflect.DeepEqual(got, want) || s.table.last != last {
		t.Errorf("after opening again: %v last %v, want %v last %v", got, s.table.last, want, last)
	}
	if l, ok := s.Lease(want[3].Owner); !ok || !reflect.DeepEqual(l, want[3]) {
		t.Errorf("%v %t, want %v", l, ok, want[3])
	}
}

// TestDiskFull demands that what could not be written did not happen.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, b := Owner{"net", "a", "eth0"}, Owner{"net", "b", "eth0"}
	if _, err := s.Allocate(Lease{Owner: a}, dual); err != nil {
		t.Fatal(err)
	}
	last := s.table.last
	s.path = filepath.Join(dir, "absent", stateFile)
	if _, err := s.Allocate(Lease{Owner: b}, dual); err == nil {
		t.Error("allocated without a disk")
	}
	if err := s.Free(a); err == nil {
		t.Error("freed without a disk")
	}
	if _, ok := s.Lease(b); ok || len(s.Leases()) != 1 || s.table.last != last {
		t.Errorf("leases %v, last %v, want %v", s.Leases(), s.table.last, last)
	}
}

// TestDamaged refuses what nobody wrote.
func TestDamaged(t *testing.T) {
	const lease = `{"network":"n","container":"a","interface":"eth0","addrs":["10.0.0.2"]}`
	for content, want := range map[string]string{
		"": "damaged", "{": "damaged", `{"version":2}`: "version 2", `{"version":1,"last":[""]}`: "damaged",
		`{"version":1,"leases":[` + lease + `,` + lease + `]}`:                                                                                       "two leases",
		`{"version":1,"leases":[` + lease + `,` + strings.Replace(lease, `"a"`, `"b"`, 1) + `]}`:                                                     "of both",
		`{"version":1,"leases":[` + strings.Replace(lease, `"10.0.0.2"`, ``, 1) + `]}`:                                                               "with addresses []",
		`{"version":1,"leases":[` + strings.Replace(lease, `{`, `{"ports":[{"protocol":"udp","number":7},{"protocol":"udp","number":7}],`, 1) + `]}`: "twice",
		`{"version":1,"leases":[` + strings.Replace(lease, `"a"`, `""`, 1) + `]}`:                                                                    "lease of",
		`{"version":1,"leases":[` + strings.Replace(lease, `10.0.0.2`, `10.0.0`, 1) + `]}`:                                                           "damaged",
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, stateFile)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}
