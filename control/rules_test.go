package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/tulle-net/tulle/control/netfilter"
)

// TestUnannounced demands that what the kernel tells nobody about is mended by a look at just that.
func TestUnannounced(t *testing.T) {
	inNamespace(t)
	tap := addTAP(t, "tulle-t0")
	addPodLink(t, "tulle-v1")
	k := kernelUnderTest("10.244.1.0/24")
	k.Mode, k.NoNetfilter = netfilter.Island, false
	k.Pods = []Pod{{Link: "tulle-v1", Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, MAC: podMAC}}
	r := NewReconciler(k, func(State) {})
	for range 2 {
		r.apply(true)
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	drop := func(table string) error {
		conn.DelTable(&nftables.Table{Name: table, Family: nftables.TableFamilyIPv4})
		return conn.Flush()
	}
	for _, c := range []struct {
		kind   Change
		damage func() error
	}{
		{ChangedSysctl, func() error { return os.WriteFile(conf4+"tulle-t0/accept_local", []byte("0"), 0o644) }},
		{ChangedNeighbour, func() error {
			neighbours, err := netlink.NeighList(tap.Attrs().Index, netlink.FAMILY_V4)
			if err == nil && len(neighbours) == 0 {
				err = errors.New("no neighbour")
			}
			for _, n := range neighbours {
				n.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, 9}
				err = errors.Join(err, netlink.NeighSet(&n))
			}
			return err
		}},
		{ChangedPod, func() error {
			rules, err := ownedRules(netlink.FAMILY_V4)
			return errors.Join(err, netlink.RuleDel(&rules[0]))
		}},
		{ChangedPod, func() error { return drop("tulle-pods") }},
		{ChangedNetfilter, func() error { return drop("tulle") }},
	} {
		if changes, err := r.want.apply(false); err != nil || len(changes) != 0 {
			t.Fatalf("before %s: changed %v, %v", c.kind, changes, err)
		}
		if err := c.damage(); err != nil {
			t.Fatalf("%s: %v", c.kind, err)
		}
		if changes, err := r.want.apply(false); err != nil || !slices.Equal(changes, []Change{c.kind}) {
			t.Errorf("changed %v, %v, want %s", changes, err, c.kind)
		}
	}
}

// TestRulesSeen demands that rules are compared once for each generation and each thing that they have to be.
func TestRulesSeen(t *testing.T) {
	inNamespace(t)
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	touched := 0
	touch := func() {
		touched++
		conn.AddTable(&nftables.Table{Name: fmt.Sprint("other", touched), Family: nftables.TableFamilyIPv4})
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	r := &rules{seen: map[string]seenRules{}}
	compared := 0
	compare := func(want int, changed bool, fails error, compares bool) {
		t.Helper()
		before := compared
		got, err := r.unlessSeen("x", []int{want}, func() (bool, error) {
			compared++
			if changed {
				touch()
			}
			return changed, fails
		})
		if (compared > before) != compares || compares && (got != changed || err != fails) || !compares && (got || err != nil) {
			t.Errorf("compared %t, want %t; %t, %v", compared > before, compares, got, err)
		}
	}
	touch()
	compare(1, false, errors.New("fails"), true)
	compare(1, true, nil, true)
	compare(1, false, nil, true)
	compare(1, false, nil, false)
	compare(2, false, nil, true)
	compare(2, false, nil, false)
	compare(1, false, nil, true)
	touch()
	compare(1, false, nil, true)
	compare(1, false, nil, false)
	compare(2, true, nil, true)
	compare(1, true, nil, true) // back to what was seen, but not since
	compare(1, false, nil, true)
	var unknown *rules
	if changed, err := unknown.unlessSeen("x", 1, func() (bool, error) { return true, nil }); !changed || err != nil {
		t.Error("nothing was compared without memory")
	}
}
