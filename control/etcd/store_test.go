package etcd

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tulle-net/tulle/control"
)

// What flanneld wrote is understood, and what it would have written is written, byte by byte.
func TestFlannelsSchema(t *testing.T) {
	s := startServer(t)
	etcd, ctx := s.admin(), t.Context()
	const value = `{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}}`
	if _, err := etcd.Put(ctx, prefix+"/subnets/10.5.9.0-24", value); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Put(ctx, prefix+"/subnets/10.5.8.0-24", `{"PublicIP":"192.0.2.8","PublicIPv6":null}`); err != nil { // udp
		t.Fatal(err)
	}
	r := run(t, s.config(1))
	subnet := r.subnet()
	await(t, "both peers", func() bool { return len(r.View().Peers) == 2 })
	p := peerAt(r.View(), netip.MustParseAddr("192.0.2.9"))
	if p == nil || p.Subnet.String() != "10.5.9.0/24" || p.BackendType != "vxlan" || p.VNI != 1 || p.VTEP.String() != "12:c6:65:89:b4:e3" || !p.Routable || p.State != Reserved {
		t.Errorf("flannel's vxlan node: %+v", p)
	}
	if p := peerAt(r.View(), netip.MustParseAddr("192.0.2.8")); p == nil || p.BackendType != "" {
		t.Errorf("flannel's udp node: %+v", p)
	}
	key := prefix + "/subnets/" + strings.Replace(subnet.String(), "/", "-", 1)
	got, err := etcd.Get(ctx, key)
	if err != nil || len(got.Kvs) != 1 {
		t.Fatalf("%s: %v, %v", key, got, err)
	}
	want := fmt.Sprintf(`{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}`, control.VTEPMAC(netip.MustParseAddr("192.0.2.1"), 1))
	if string(got.Kvs[0].Value) != want {
		t.Errorf("wrote %s\nwant  %s", got.Kvs[0].Value, want)
	}
	if ttl, err := etcd.TimeToLive(ctx, clientv3.LeaseID(got.Kvs[0].Lease)); err != nil || ttl.GrantedTTL != 10 {
		t.Errorf("its lease: %+v, %v", ttl, err)
	}
	after, err := etcd.Get(ctx, prefix+"/subnets/10.5.9.0-24")
	if err != nil || string(after.Kvs[0].Value) != value || after.Kvs[0].Lease != 0 || after.Kvs[0].Version != 1 {
		t.Errorf("the reservation of another node was touched: %+v, %v", after.Kvs, err)
	}
}

// A dual-stack node's key has both subnets, of one number.
func TestDualStack(t *testing.T) {
	s := startServer(t)
	c := s.config(1)
	c.Self.PublicIPv6, c.Self.VTEPv6 = netip.MustParseAddr("2001:db8::1"), c.Self.VTEP
	c.Pool6 = pool("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::")
	r := run(t, c)
	subnet := r.subnet()
	number := subnet.Addr().As4()[2]
	subnet6 := fmt.Sprintf("fc00:0:0:%x::", number)
	if got := r.View().Self.IPv6Subnet.String(); got != subnet6+"/64" {
		t.Errorf("IPv6 subnet %s beside %s", got, subnet)
	}
	got, err := s.admin().Get(t.Context(), fmt.Sprintf("%s/subnets/10.5.%d.0-24&%s-64", prefix, number, subnet6))
	if err != nil || len(got.Kvs) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	var value struct{ BackendV6Data struct{ VtepMAC string } }
	if err := json.Unmarshal(got.Kvs[0].Value, &value); err != nil || value.BackendV6Data.VtepMAC != c.Self.VTEP.String() {
		t.Errorf("%s: %v", got.Kvs[0].Value, err)
	}
}

// However many nodes want a subnet at once of a network that is just large enough, all get one, no two the same, and no grant is left over.
func TestRace(t *testing.T) {
	s := startServer(t)
	const nodes = 20
	var all []*running
	for i := range nodes {
		c := s.config(i + 1)
		c.Pool = pool("10.5.0.0/24", 29, "10.5.0.8", "10.5.0.168") // 21 blocks
		all = append(all, run(t, c))
	}
	seen := map[netip.Prefix]int{}
	for i, r := range all {
		p := r.subnet()
		if other, twice := seen[p]; twice {
			t.Errorf("%s is both node %d's and %d's", p, other, i)
		}
		seen[p] = i
	}
	for _, r := range all {
		await(t, "all peers", func() bool { return len(r.View().Peers) == nodes-1 })
		r.always("the subnet stays", func(v control.View) bool { return v.Withdrawn == 0 })
	}
	leases, err := s.admin().Leases(t.Context())
	if err != nil || len(leases.Leases) != nodes {
		t.Errorf("%d grants, want %d: %v", len(leases.Leases), nodes, err)
	}
}

// A full network says so, and its next free block is taken.
func TestFull(t *testing.T) {
	s := startServer(t)
	c1, c2 := s.config(1), s.config(2)
	c1.Pool = pool("10.5.0.0/24", 26, "10.5.0.64", "10.5.0.64")
	c2.Pool = c1.Pool
	one := run(t, c1)
	one.subnet()
	two := run(t, c2)
	await(t, "the problem", func() bool {
		p := two.View().Problems
		return len(p) == 1 && strings.Contains(p[0], "no /26 of 10.5.0.0/24 from 10.5.0.64 to 10.5.0.64 is free")
	})
	one.stop()
	if _, err := s.admin().Delete(t.Context(), prefix+"/subnets/10.5.0.64-26"); err != nil {
		t.Fatal(err)
	}
	two.subnet()
}

// The subnet stays over restarts: with the disk, without it, with another address, and before etcd answers.
func TestRestart(t *testing.T) {
	s := startServer(t)
	c := s.config(1)
	other := run(t, s.config(2))
	other.subnet()
	r := run(t, c)
	subnet := r.subnet()
	await(t, "the peer", func() bool { return len(r.View().Peers) == 1 })
	r.stop()
	restarted := func(what string, c Config) *running {
		t.Helper()
		r := run(t, c)
		if got := r.subnet(); got != subnet {
			t.Errorf("%s: %s, was %s", what, got, subnet)
		}
		return r
	}
	restarted("with its disk", c).stop()
	c.StateDir = t.TempDir()
	restarted("without its disk", c).stop()
	c.Self = vxlanNode(3)
	moved := restarted("with another address", c)
	await(t, "the others hear of the address", func() bool { return peerAt(other.View(), c.Self.PublicIP) != nil })
	await(t, "the lease is the node's", func() bool { return len(moved.View().Problems) == 0 })
	moved.stop()
	s.stop()
	alone := restarted("without etcd", c)
	if v := alone.View(); len(v.Peers) != 1 || !v.Peers[0].Routable {
		t.Errorf("without etcd it knows %+v", v.Peers)
	}
	await(t, "the problem", func() bool { return len(alone.View().Problems) == 1 })
}

// An outage longer than all leases removes nobody; after it everybody has the subnet of before, also when etcd has lost everything.
func TestOutage(t *testing.T) {
	for _, wiped := range []bool{false, true} {
		t.Run(map[bool]string{false: "stopped", true: "wiped"}[wiped], func(t *testing.T) {
			s := startServer(t)
			var all []*running
			for i := range 3 {
				c := s.config(i + 1)
				c.TTL, c.Margin, c.Grace = 2*time.Second, time.Second, 20*time.Second
				all = append(all, run(t, c))
			}
			var subnets []netip.Prefix
			for _, r := range all {
				subnets = append(subnets, r.subnet())
				await(t, "all peers", func() bool { return len(r.View().Peers) == 2 })
			}
			if s.stop(); wiped {
				s.wipe()
			}
			for _, r := range all {
				await(t, "the outage is noticed", func() bool { return len(r.View().Problems) == 1 })
			}
			time.Sleep(3 * time.Second) // longer than a lease
			s.start()
			etcd := s.admin()
			await(t, "all leases are there", func() bool {
				got, err := etcd.Get(t.Context(), prefix+"/subnets/", clientv3.WithPrefix(), clientv3.WithCountOnly())
				return err == nil && got.Count == 3
			})
			for i, r := range all {
				await(t, "the others are leased", func() bool {
					v := r.View()
					return len(v.Problems) == 0 && len(v.Peers) == 2 && v.Peers[0].State == Leased && v.Peers[1].State == Leased
				})
				r.always("the subnet and peers stay", func(v control.View) bool {
					n := 0
					for _, p := range v.Peers {
						if p.Routable {
							n++
						}
					}
					return !v.Self.Subnet.IsValid() || v.Self.Subnet == subnets[i] && v.Withdrawn == 0
				})
				r.keptPeers(2)
			}
		})
	}
}

// A peer whose lease went while etcd answers stays for a while, unless another node has its subnet.
func TestGone(t *testing.T) {
	s := startServer(t)
	r := run(t, s.config(1))
	r.subnet()
	etcd := s.admin()
	put := func(key, ip string) {
		t.Helper()
		if _, err := etcd.Put(t.Context(), prefix+"/subnets/"+key, fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, ip)); err != nil {
			t.Fatal(err)
		}
	}
	drop := func(key string) {
		t.Helper()
		if _, err := etcd.Delete(t.Context(), prefix+"/subnets/"+key); err != nil {
			t.Fatal(err)
		}
	}
	state := func(ip string) string {
		if p := peerAt(r.View(), netip.MustParseAddr(ip)); p != nil && p.Routable {
			return p.State
		}
		return ""
	}
	put("10.5.77.0-24", "192.0.2.7")
	await(t, "the peer", func() bool { return state("192.0.2.7") == Reserved })
	drop("10.5.77.0-24")
	await(t, "it is gone, and routed", func() bool { return state("192.0.2.7") == Gone })
	put("10.5.77.0-24", "192.0.2.7")
	await(t, "it is back", func() bool { return state("192.0.2.7") == Reserved })
	drop("10.5.77.0-24")
	await(t, "it is gone for good", func() bool { return state("192.0.2.7") == "" })
	put("10.5.78.0-24", "192.0.2.7")
	await(t, "another subnet of its", func() bool { return state("192.0.2.7") == Reserved })
	drop("10.5.78.0-24")
	put("10.5.78.0-24", "192.0.2.8")
	await(t, "its subnet is another's", func() bool { return state("192.0.2.8") == Reserved && state("192.0.2.7") == "" })
	// A changed MAC or address of a known subnet.
	put("10.5.78.0-24", "192.0.2.6")
	await(t, "the address changed", func() bool { return state("192.0.2.6") == Reserved && state("192.0.2.8") == "" })
}

// What is no lease is counted, named and ignored, and what was there before stays.
func TestMalformed(t *testing.T) {
	s := startServer(t)
	r := run(t, s.config(1))
	r.subnet()
	etcd := s.admin()
	good := `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}}`
	put := func(key, value string) {
		t.Helper()
		if _, err := etcd.Put(t.Context(), prefix+"/subnets/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	put("10.5.7.0-24", good)
	await(t, "the peer", func() bool { return len(r.View().Peers) == 1 })
	bad := []struct{ key, value string }{
		{"10.5.7.0-24", `{`}, {"10.5.7.0-24", `{"PublicIP":"192.0.2.300"}`}, {"10.5.7.0-24", ``}, {"10.5.7.0-24", `[]`},
		{"10.5.7.0-24", strings.Replace(good, "12:c6", "13:c6", 1)}, {"10.5.7.0-24", strings.Replace(good, `"VNI":1`, `"VNI":-1`, 1)},
		{"garbage", good}, {"10.5.6.1-24", good}, {"10.5.6.0-33", good}, {"fc00::-64", good}, {"10.5.6.0-24&10.5.7.0-24", good},
	}
	for i, b := range bad {
		put(b.key, b.value)
		await(t, fmt.Sprintf("%s = %s is counted", b.key, b.value), func() bool { return r.View().Refused[refusedLease] == uint64(i+1) })
	}
	if v := r.View(); len(v.Peers) != 1 || v.Peers[0].VTEP.String() != "12:c6:65:89:b4:e3" || len(v.Problems) != 6 {
		t.Errorf("peers %+v, problems %q", v.Peers, v.Problems)
	}
	put("10.5.7.0-24", strings.Replace(good, "e3", "e4", 1))
	await(t, "the next good value", func() bool {
		return r.View().Peers[0].VTEP.String() == "12:c6:65:89:b4:e4" && len(r.View().Problems) == 5
	})
}

// A node that finds its subnet leased to another one, as after a long time alone, withdraws and takes the next one; given, it says so.
func TestTaken(t *testing.T) {
	s := startServer(t)
	etcd := s.admin()
	c := s.config(1)
	r := run(t, c)
	subnet := r.subnet()
	key := prefix + "/subnets/" + keyOf(subnet, netip.Prefix{})
	if _, err := etcd.Put(t.Context(), key, `{"PublicIP":"192.0.2.7","PublicIPv6":null}`); err != nil {
		t.Fatal(err)
	}
	await(t, "another subnet", func() bool {
		v := r.View()
		return v.Withdrawn == 1 && v.Self.Subnet.IsValid() && v.Self.Subnet != subnet && len(v.Peers) == 1
	})
	c = s.config(2)
	c.Self.Subnet = subnet
	given := run(t, c)
	await(t, "the problem", func() bool {
		v := given.View()
		return len(v.Problems) == 1 && strings.Contains(v.Problems[0], subnet.String()+" is 192.0.2.7's") && !v.Self.Subnet.IsValid()
	})
}

// History that was compacted away while the node looked the other way is no trouble.
func TestCompaction(t *testing.T) {
	s := startServer(t)
	c := s.config(1)
	r := run(t, c)
	r.subnet()
	r.stop()
	etcd := s.admin()
	var revision int64
	for i := range 50 {
		put, err := etcd.Put(t.Context(), prefix+"/subnets/10.5.7.0-24", fmt.Sprintf(`{"PublicIP":"192.0.2.%d","PublicIPv6":null}`, 100+i))
		if err != nil {
			t.Fatal(err)
		}
		revision = put.Header.Revision
	}
	if _, err := etcd.Compact(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	store, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer store.hangUp()
	if store.client, err = c.Server.dial(); err != nil {
		t.Fatal(err)
	}
	store.own = &lease{}
	if err := store.follow(t.Context(), 1, func(control.View) {}); err != nil {
		t.Errorf("a watch from compacted history: %v, want another list", err)
	}
	r = run(t, c)
	await(t, "the last value", func() bool { return peerAt(r.View(), netip.MustParseAddr("192.0.2.149")) != nil })
}

// This node's own reservation stays one: it is used, and gets no lease that ends.
func TestOwnReservation(t *testing.T) {
	s := startServer(t)
	etcd, ctx := s.admin(), t.Context()
	key := prefix + "/subnets/10.5.9.0-24"
	if _, err := etcd.Put(ctx, key, `{"PublicIP":"192.0.2.1","PublicIPv6":null}`); err != nil {
		t.Fatal(err)
	}
	r := run(t, s.config(1))
	if got := r.subnet().String(); got != "10.5.9.0/24" {
		t.Errorf("it has %s", got)
	}
	got, err := etcd.Get(ctx, key)
	if err != nil || got.Kvs[0].Lease != 0 || !strings.Contains(string(got.Kvs[0].Value), "vxlan") {
		t.Errorf("%+v, %v", got.Kvs, err)
	}
}

// A subnet whose lease went is nobody's yet: it may come back. Of two leases for one node the one that went is over.
func TestGoneIsTaken(t *testing.T) {
	s := startServer(t)
	c := s.config(1)
	store, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key, ip string) {
		store.put(store.prefix+key, []byte(fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, ip)), 1, 1)
	}
	block := netip.MustParsePrefix("10.5.7.0/24")
	put("10.5.7.0-24", "192.0.2.7")
	store.remove("10.5.7.0-24")
	if !store.taken(block) || len(store.look().Peers) != 1 {
		t.Error("a subnet is free at once when its lease went")
	}
	put("10.5.8.0-24", "192.0.2.7")
	if store.expire(time.Now()); store.taken(block) || len(store.look().Peers) != 1 {
		t.Errorf("its node has another one, and still has it: %+v", store.look().Peers)
	}
	store.remove("10.5.8.0-24")
	put("10.5.8.0-25", "192.0.2.9")
	if store.expire(time.Now()); len(store.look().Peers) != 1 {
		t.Errorf("another node has a part of it: %+v", store.look().Peers)
	}
	if store.expire(time.Now().Add(c.Grace)); len(store.look().Peers) != 1 {
		t.Error("a lease ended with the grace of another one")
	}
}
