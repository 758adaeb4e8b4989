package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tulle-net/tulle/bench"
	"github.com/tulle-net/tulle/scripts/need"
)

// underlayPairs go from one node to the underlay addresses of another.
func underlayPairs(t *testing.T, l *Lab, from, to int) []Pair {
	t.Helper()
	a, b := nodeOf(t, l, from), nodeOf(t, l, to)
	return []Pair{{From: a.Namespace, To: b.Namespace, Addr: b.PublicIP}, {From: a.Namespace, To: b.Namespace, Addr: b.PublicIPv6}}
}

// What a sender sees of a path that is narrower than its link: with 0 what it sees of one that is not.
func TestPathMTU(t *testing.T) {
	l := up(t, Config{Nodes: 3, Kernel: kernelNodes(3), Family: FamilyDual, Routed: true})
	for _, test := range []struct {
		mtu  int
		tell bool
	}{{0, true}, {1280, false}, {0, false}, {1400, true}, {0, true}} {
		if err := l.SetPathMTU(test.mtu, test.tell); err != nil {
			t.Fatal(err)
		}
		width := test.mtu
		if width == 0 {
			width = 1500
		}
		for _, p := range append(underlayPairs(t, l, 1, 2), underlayPairs(t, l, 2, 1)...) {
			t.Run(fmt.Sprintf("%+v %s", test, p.Addr), func(t *testing.T) {
				forget(t, p.From)
				ping(t, p, bench.Ping{Count: 2, Size: pingSize(p, width), DF: true})
				// The second request finds out what the first was told.
				r := pingResult(t, p, bench.Ping{Count: 2, Interval: 10 * time.Millisecond, Size: pingSize(p, width) + 1, DF: true,
					Timeout: 50 * time.Millisecond})
				told := errors.Is(r.Err, unix.EMSGSIZE)
				if r.Received != 0 || told != (test.tell || test.mtu == 0) {
					t.Errorf("one byte more: %+v", r)
				}
			})
		}
		for _, p := range underlayPairs(t, l, 1, 3) { // of one segment
			ping(t, p, bench.Ping{Size: pingSize(p, 1500), DF: true})
		}
	}
}

// forget makes a node forget the path MTUs that it has learned. Those of IPv6 hang on the route and go with it.
func forget(t *testing.T, namespace string) {
	t.Helper()
	err := In(namespace, func() error {
		if err := sysctl("ipv4/route/flush", "1"); err != nil {
			return err
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{}, netlink.RT_FILTER_DST)
		for _, r := range routes {
			err = errors.Join(err, netlink.RouteDel(&r), netlink.RouteAdd(&r))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNodeMTU(t *testing.T) {
	l := up(t, Config{Nodes: 2, Kernel: kernelNodes(2), Family: FamilyDual})
	if err := l.SetPathMTU(1400, true); err == nil {
		t.Error("a path MTU without a router")
	}
	for _, mtu := range []int{1300, 0} {
		if err := l.SetNodeMTU(1, mtu); err != nil {
			t.Fatal(err)
		}
		if mtu == 0 {
			mtu = 1500
		}
		for _, p := range underlayPairs(t, l, 1, 2) {
			ping(t, p, bench.Ping{Size: pingSize(p, mtu), DF: true})
			tooLong(t, p, bench.Ping{Size: pingSize(p, mtu) + 1, DF: true})
		}
		for _, p := range underlayPairs(t, l, 2, 1) { // node 2 knows nothing of it
			r := pingResult(t, p, bench.Ping{Size: pingSize(p, 1500), DF: true, Timeout: 50 * time.Millisecond})
			if r.Err != nil || (r.Received == 1) != (mtu == 1500) {
				t.Errorf("1500 bytes to a node of %d: %+v", mtu, r)
			}
		}
	}
}

// tracepath(8), which shares no code with this, finds what the path is set to.
func TestTracepath(t *testing.T) {
	tracepath, err := need.Debian(testContext(t), "tracepath", "iputils-tracepath")
	if err != nil {
		t.Fatal(err)
	}
	l := up(t, Config{Nodes: 2, Kernel: kernelNodes(2), Family: FamilyDual, Routed: true})
	if err := l.SetPathMTU(1400, true); err != nil {
		t.Fatal(err)
	}
	for _, p := range underlayPairs(t, l, 1, 2) {
		var out bytes.Buffer
		cmd := exec.CommandContext(testContext(t), tracepath, "-n", "-m", "5", p.Addr.String())
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := In(p.From, cmd.Start); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "Resume: pmtu 1400 hops 2") {
			t.Errorf("tracepath %s: %v\n%s", p.Addr, err, out.String())
		}
	}
}
