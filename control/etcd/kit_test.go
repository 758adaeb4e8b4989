package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/tulle-net/tulle/control"
	"github.com/tulle-net/tulle/control/netconf"
)

const prefix = "/coreos.com/network"

func vxlanNode(i int) control.Node {
	ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	return control.Node{Name: fmt.Sprintf("n%d", i), PublicIP: ip, BackendType: netconf.TypeVXLAN, VNI: 1, VTEP: control.VTEPMAC(ip, 1)}
}

func pool(network string, bits int, low, high string) Pool {
	return Pool{Network: netip.MustParsePrefix(network), Bits: bits, Min: netip.MustParseAddr(low), Max: netip.MustParseAddr(high)}
}

func (s *server) config(i int) Config {
	return Config{
		Server: Server{Endpoints: []string{s.client}, Prefix: prefix}, Self: vxlanNode(i), Pool: pool("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
		TTL: 10 * time.Second, Margin: 5 * time.Second, Grace: 2 * time.Second, Probe: 200 * time.Millisecond, StateDir: s.t.TempDir(), Log: slog.New(slog.DiscardHandler),
	}
}

// A running is a store that runs, with the views that it gave.
type running struct {
	*Store
	t    *testing.T
	stop func()

	mu    sync.Mutex
	views []control.View
}

func run(t *testing.T, c Config) *running {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Store: s, t: t}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Run(ctx, func(v control.View) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.views = append(r.views, v)
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *running) subnet() netip.Prefix {
	r.t.Helper()
	await(r.t, "a subnet", func() bool { return r.View().Self.Subnet.IsValid() })
	return r.View().Self.Subnet
}

// always says whether a condition held in every view so far.
func (r *running) always(what string, ok func(control.View) bool) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, v := range r.views {
		if !ok(v) {
			r.t.Fatalf("%s: not in view %d: %+v", what, i, v)
		}
	}
}

func peerAt(v control.View, ip netip.Addr) *control.Peer {
	for i := range v.Peers {
		if v.Peers[i].PublicIP == ip {
			return &v.Peers[i]
		}
	}
	return nil
}

// keptPeers demands that no view after the first with so many peers has fewer.
func (r *running) keptPeers(n int) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	had := false
	for i, v := range r.views {
		if had && len(v.Peers) < n {
			r.t.Fatalf("view %d has %d peers, there were %d", i, len(v.Peers), n)
		}
		had = had || len(v.Peers) >= n
	}
}
