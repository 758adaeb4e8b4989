package control

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of control need root (a network namespace for kernel state): run them with sudo")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// inNamespace runs the rest of the test's goroutine in a new network namespace, which goes with its thread.
func inNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
}

// addTAP makes a persistent TAP, which goes with the namespace.
func addTAP(t *testing.T, name string) netlink.Link {
	t.Helper()
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	got, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// addBridge makes a bridge with an address, as a CNI plugin does; it goes with the namespace.
func addBridge(t *testing.T, name, addr string) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	for _, err := range []error{netlink.LinkAdd(link), netlink.LinkSetUp(link), netlink.AddrAdd(link, a)} {
		if err != nil {
			t.Fatal(err)
		}
	}
}
