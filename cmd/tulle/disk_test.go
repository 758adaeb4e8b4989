package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/control/cniapi"
	"github.com/tulle-net/tulle/scripts/lab"
)

// TestFullDisk takes the state directory away from a node under way, full at first, then read-only: it forwards as if nothing was, pods that
// are there stay, none is added, and the error says why. A daemon that starts on such a disk says why it does not; the old
// state is whole when there is room again.
func TestFullDisk(t *testing.T) {
	l := labUnderTest(t, lab.Config{Nodes: 2, Pods: 0})
	n := l.Nodes()[0]
	state := filepath.Join(filepath.Dir(n.RunDir), "state")
	onSmallDisk(t, l, state)
	subnet := status(t, l, 1).Node.Subnet
	r := newRuntime(t, n, "1.1.0")
	s := newSandbox(t, "before")
	addr := addrsOf(r.add(s))[0]
	far := newSandbox(t, "far")
	newRuntime(t, l.Nodes()[1], "1.1.0").add(far)
	from, to := datagrams(t, far, s, addr)
	for _, c := range []struct {
		name     string
		away     func() error
		back     func() error
		expected string
	}{
		{"full", func() error { return fill(state) }, func() error { return os.Remove(filepath.Join(state, "filler")) }, unix.ENOSPC.Error()},
		{"read-only", func() error { return readOnly(state) }, func() error { return unix.Unmount(state, unix.MNT_DETACH) }, unix.EROFS.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.away(); err != nil {
				t.Fatal(err)
			}
			_, err := r.tryAdd(newSandbox(t, "c"), nil)
			wantCode(t, "ADD", err, cniapi.CodeIO)
			if err == nil || !strings.Contains(err.Error(), c.expected) {
				t.Errorf("ADD: %v, want %q", err, c.expected)
			}
			if err := r.check(s); err != nil {
				t.Errorf("CHECK of the pod that is there: %v", err)
			}
			load := bench.Sequence{Count: 5000, Size: 200, Interval: 200 * time.Microsecond}
			if got, err := load.Run(t.Context(), from, to); err != nil || got.Lost() != 0 || got.Duplicates != 0 || got.Reordered != 0 {
				t.Errorf("meanwhile: %+v, %v", got, err)
			}
			if err := l.StopNode(t.Context(), 1, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := l.StartNode(t.Context(), 1); err == nil || !strings.Contains(err.Error(), c.expected) {
				t.Errorf("a daemon that starts: %v, want %q", err, c.expected)
			}
			if err := c.back(); err != nil {
				t.Fatal(err)
			}
			if err := l.StartNode(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			if after := status(t, l, 1).Node.Subnet; after != subnet {
				t.Errorf("subnet %s, was %s", after, subnet)
			}
			if err := r.check(s); err != nil {
				t.Errorf("CHECK after all: %v", err)
			}
			again := newSandbox(t, "c")
			r.add(again)
			if err := r.del(again); err != nil {
				t.Error(err)
			}
		})
	}
	reach(t, far.run, addr)
}

// datagrams is a UDP flow from one sandbox to an address of another.
func datagrams(t *testing.T, from, to *sandbox, addr netip.Addr) (sender, receiver *net.UDPConn) {
	t.Helper()
	err := to.run(func() (err error) {
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err == nil {
		t.Cleanup(func() { receiver.Close() })
		err = from.run(func() (err error) {
			sender, err = net.DialUDP("udp", nil, receiver.LocalAddr().(*net.UDPAddr))
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sender.Close() })
	return sender, receiver
}

// onSmallDisk gives node 1's state a file system of its own.
func onSmallDisk(t *testing.T, l *lab.Lab, state string) {
	t.Helper()
	if err := l.StopNode(t.Context(), 1, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	aside := state + ".aside"
	err := errors.Join(os.Rename(state, aside), os.Mkdir(state, 0o700), unix.Mount("tmpfs", state, "tmpfs", 0, "size=128k"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(os.CopyFS(state, os.DirFS(aside)), l.StartNode(t.Context(), 1)); err != nil {
		t.Fatal(err)
	}
}

// fill leaves no byte. The state before the last goes first: its room is what the next one would take.
func fill(dir string) error {
	if err := os.Remove(filepath.Join(dir, "gossip.json.previous")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// readOnly lays a mount over the directory that cannot be written to.
func readOnly(dir string) error {
	return errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
}
